"""Weight files of whatever origin as flat tables of tensors: safetensors, and what ``torch.save`` wrote."""
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor

from . import pickles

# Keys under which training code puts the network's table beside optimiser, step and settings, the best first.
WRAPPERS = ("params_ema", "ema_state_dict", "state_dict_ema", "state_dict", "model_state_dict", "model", "module",
            "params", "net", "network", "weights")
PREFIXES = ("module.", "_orig_mod.")  # of DataParallel and torch.compile
# Names beginning so that torch may not build: some of them make large things of a few bytes.
_REFUSED = ("builtins.", "torch.", "os.", "posix.", "nt.", "sys.", "subprocess.")
_PASSED_OVER = ("torch.nn.", "torch.optim.")
_TYPES = {f"builtins.{name}" for name in ("bool", "dict", "float", "int", "list", "object", "str", "tuple")}


class _PassedOver:
    """Stands in for settings, optimisers and other objects that lie beside the tensors."""

    def __init__(self, *_: Any):
        pass

    def __new__(cls, *_: Any) -> "_PassedOver":
        return super().__new__(cls)

    def __setstate__(self, state: Any) -> None:
        pass


def _plain_dict(*_: Any) -> dict:
    return {}


def read_weights(path: Path, mapped: bool = False) -> dict[str, Tensor]:
    """The network's tensors by name, without wrappers and the prefixes of DataParallel and torch.compile.

    Args:
        mapped: tensors stay in the file until they are used, for large files of which little is; the file must not
            change meanwhile. Otherwise the file is read, and may be replaced or vanish afterwards.

    Raises:
        ValueError: no table of tensors, or it asks for more than that; names the file.
    """
    try:
        held = _read_safetensors(path, mapped) if _is_safetensors(path) else _read_pickled(path, mapped)
        weights = _unwrap(held)
    except pickles.Refused as error:
        raise ValueError(f"{path.name} is not opened: {error}") from error
    except Exception as error:  # what the libraries raise depends on the kind of damage
        raise ValueError(f"{path.name} cannot be read as a file of tensors ({pickles.reason(error)}). It is damaged, "
                         "or not a weight file: download it again.") from error
    if larger := [key for key, tensor in weights.items() if not pickles.is_whole(tensor)]:
        raise ValueError(f"{path.name} is not opened: {larger[0]} takes more numbers than are stored for it. The file "
                         "is damaged: download it again.")
    return weights


def _is_safetensors(path: Path) -> bool:
    with path.open("rb") as file:
        start = file.read(9)
    return len(start) == 9 and start[8:] == b"{" and 2 <= struct.unpack("<Q", start[:8])[0] <= path.stat().st_size - 8


def _read_safetensors(path: Path, mapped: bool) -> dict[str, Tensor]:
    if mapped:
        try:
            return safetensors.torch.load_file(path)
        except OSError:
            pass  # a file system that cannot map
    return safetensors.torch.load(path.read_bytes())


def _read_pickled(path: Path, mapped: bool) -> Any:
    others = pickles.names_in(path) - pickles.TENSORS
    stand_ins = {name: _PassedOver for name in others} | {"collections.defaultdict": _plain_dict} | pickles.NUMPY
    refused = sorted(name for name in others - _TYPES
                     if name.startswith(_REFUSED) and not name.startswith(_PASSED_OVER))
    if refused:
        raise pickles.Refused(f"it asks for {refused[0]}, which a file of tensors does not need. Nothing was run. Do "
                              "not trust this file unless you know who made it.")
    try:
        return pickles.load(path, stand_ins, mapped)
    except OSError:
        return pickles.load(path, stand_ins)


def _unwrap(held: Any) -> dict[str, Tensor]:
    """The network's own table in what a training saved."""
    while isinstance(held, Mapping):
        inner = [held[name] for name in WRAPPERS if isinstance(held.get(name), Mapping)]
        if not inner and len(held) == 1:
            inner = [value for value in held.values() if isinstance(value, Mapping)]
        if not inner:
            break
        held = inner[0]
    tensors = {k: v for k, v in held.items() if isinstance(v, Tensor)} if isinstance(held, Mapping) else {}
    nested = [k for k, v in held.items() if isinstance(v, Mapping)] if tensors else []
    if not tensors or nested or not all(isinstance(key, str) for key in tensors):
        kind = ", ".join(map(str, list(held)[:4])) if isinstance(held, Mapping) else type(held).__name__
        raise pickles.Refused(f"it does not hold a plain table of tensors (it has {kind or 'nothing'}). Save the "
                              "network's state_dict().")
    for prefix in PREFIXES:
        tensors = _without(prefix, tensors)
    return tensors


def _without(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    every = all(key.startswith(prefix) for key in tensors)
    return {key[len(prefix) * every:]: tensor for key, tensor in tensors.items()}


def fingerprint(paths: Iterable[Path]) -> str:
    """Changes when one of the files is replaced or written to; their contents, often gigabytes, are not read."""
    stats = [(str(path), s.st_size, s.st_mtime_ns, s.st_ctime_ns) for path in paths for s in [path.stat()]]
    return repr(stats)
