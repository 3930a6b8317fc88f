"""Files that are whole or not there, whenever the process dies."""
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """``write`` gets a name beside ``path``; what it wrote there is moved to its place at once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        write(partial)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_bytes(path: Path, content: bytes) -> None:
    write_whole(path, lambda partial: partial.write_bytes(content))


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    data = save({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, dict(metadata or {}))
    write_bytes(path, data)  # save_file's can be read by their owner only


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """(tensors, metadata) of a safetensors file.

    Raises:
        ValueError: it is not there, cut, or something else.
    """
    if not path.is_file():
        raise ValueError(f"There is no file {path}.")
    try:
        with safe_open(path, "pt") as file:
            return {k: file.get_tensor(k) for k in file.keys()}, file.metadata() or {}  # noqa: SIM118 (no dictionary)
    except SafetensorError as error:
        raise ValueError(f"{path} is cut or not a safetensors file ({error}). Fetch it again.") from error


def save_training(path: Path, state: Mapping[str, object]) -> None:
    write_whole(path, lambda partial: torch.save(dict(state), partial))


def copy_whole(source: Path, target: Path) -> None:
    write_whole(target, lambda partial: shutil.copyfile(source, partial))
