"""The library of learned styles: what was learned before is found again by what it was learned from.

A style file's header carries a key: a hash of the painting, the models, the prompt and the recipe, not of the name.
"""
import functools
import hashlib
import json
import logging
import os
import re
import struct
import types
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .style import KEY, Style, load_style

log = logging.getLogger(__name__)

KEY_VERSION = 1  # another one when the same inputs no longer lead to the same style
SUFFIX = ".safetensors"
_SPOKEN = re.compile(r"[^\s()\[\]{},:|*\\]+")  # names that a prompt carries as embedding:name; files may have others
MAX_HEADER = 2**22  # bytes; a style's takes some ten thousand, most of it the thumbnail
WHOLE, SAMPLES, DEPTH = 2**16, 256, 12  # tensors up to this are hashed whole; of larger ones so many numbers


# ---- keys ----

class _Hash:
    """SHA-256 of nested values: the same for equal contents, also after a restart; never of addresses or ids."""

    def __init__(self):
        self._sha, self._inside = hashlib.sha256(), set()

    def hexdigest(self) -> str:
        return self._sha.hexdigest()

    def _say(self, *words: Any) -> None:
        self._sha.update(("\x1f".join(map(str, words)) + "\x1e").encode(errors="surrogatepass"))

    def add(self, value: Any) -> None:
        if value is None or isinstance(value, (bool, int, float, complex, str, bytes, torch.dtype, torch.Size)):
            self._say(type(value).__name__, repr(value))
        elif isinstance(value, Tensor):
            self._add_tensor(value)
        elif id(value) in self._inside or len(self._inside) >= DEPTH:
            self._say("deeper", type(value).__qualname__)
        else:
            self._inside.add(id(value))
            self._add_container(value)
            self._inside.remove(id(value))

    def _add_tensor(self, tensor: Tensor) -> None:
        """Small ones whole, of large ones shape and values at even distances."""
        tensor = getattr(tensor, "_qdata", tensor)  # the host's quantised weights: as stored, not multiplied out
        self._say("tensor", tensor.dtype, tuple(tensor.shape))
        flat = tensor.detach().reshape(-1)
        if flat.is_meta or not len(flat):
            return
        if len(flat) > WHOLE:
            flat = flat[torch.linspace(0, len(flat) - 1, SAMPLES, dtype=torch.float64).long().to(flat.device)]
        self._sha.update(flat.contiguous().cpu().view(torch.uint8).numpy().tobytes())

    def _add_container(self, value: Any) -> None:
        match value:
            case Mapping():
                self._say("mapping", len(value))
                for key in sorted(value, key=str):
                    self.add(key)
                    self.add(value[key])
            case list() | tuple():
                self._say("sequence", len(value))
                for item in value:
                    self.add(item)
            case set() | frozenset():
                self.add(sorted(map(fingerprint, value)))
            case nn.Module():
                self._say("module", type(value).__qualname__)
                self.add(value.state_dict())
            case types.MethodType():
                self.add([value.__self__, value.__func__])
            case types.FunctionType() | types.BuiltinFunctionType():
                self._say("function", value.__module__, value.__qualname__)
                closure = getattr(value, "__closure__", None) or ()
                self.add([cell.cell_contents for cell in closure if cell != types.CellType()])
            case functools.partial():
                self.add([value.func, value.args, value.keywords])
            case type():
                self._say("class", value.__module__, value.__qualname__)
            case _:
                self._say("object", type(value).__module__, type(value).__qualname__)
                self.add(getattr(value, "__dict__", {}))


def fingerprint(value: Any) -> str:
    """A hash of nested values that is the same after a restart.

    Tensors of more than 2**16 numbers are sampled: one in which a single number differs is taken for the same, one
    that was trained is not. Objects count by their class and attributes, functions by name and closure.
    """
    sha = _Hash()
    sha.add(value)
    return sha.hexdigest()


def learning_key(pictures: Tensor, **ingredients: Any) -> str:
    """The key of what is learned from ``pictures`` (P, H, W, C) in [0, 1], told apart by all their pixels in 8 bits."""
    pixels = (pictures * 255).round().byte().cpu().contiguous()
    painting = hashlib.sha256(pixels.numpy().tobytes()).hexdigest()
    return fingerprint([KEY_VERSION, tuple(pictures.shape), painting, ingredients])


# ---- files ----

def files_in(folders: Iterable[Path]) -> Iterator[Path]:
    """All files in folders and their subfolders, links followed, each folder once."""
    seen = set()
    for folder in folders:
        for root, inner, files in os.walk(folder, followlinks=True):
            if (real := os.path.realpath(root)) in seen:
                inner.clear()
                continue
            seen.add(real)
            yield from (Path(root, file) for file in files)


def read_metadata(path: Path) -> dict[str, str]:
    """The metadata in a safetensors file's header; nothing else is read. Empty for other files."""
    try:
        with path.open("rb") as file:
            length, = struct.unpack("<Q", file.read(8))
            metadata = json.loads(file.read(length))["__metadata__"] if length <= MAX_HEADER else {}
    except (OSError, struct.error, ValueError, KeyError, TypeError, RecursionError):
        return {}
    return metadata if isinstance(metadata, dict) else {}


class Known(NamedTuple):
    """A style that was learned before.

    Attributes:
        style: it.
        path: its file.
        label: what prompts call it, ``embedding:label``.
        date: when the file was written.
    """

    style: Style
    path: Path
    label: str
    date: datetime

    @property
    def text(self) -> str:
        """What the user is told."""
        called = f"; in any prompt it is embedding:{self.label}" if _SPOKEN.fullmatch(self.label) else ""
        return (f"{self.label}{SUFFIX} is loaded, learned on {self.date:%Y-%m-%d %H:%M} from the same painting, models "
                f"and settings{called}\nSwitch on learn_again to learn it anew.")


def find(key: str, folders: Iterable[Path]) -> Known | None:
    """The newest whole style file with this key.

    Args:
        folders: of styles; with their subfolders.
    """
    folders, found = list(folders), []
    for path in files_in(folders):
        if path.suffix.lower() == SUFFIX and read_metadata(path).get(KEY) == key:
            found.append((path.stat().st_mtime, path))
    for written, path in sorted(found, reverse=True):
        try:
            style = load_style(path)
        except ValueError as error:
            log.warning("InST style library: %s", error)
            continue
        home = next(folder for folder in folders if path.is_relative_to(folder))
        label = path.relative_to(home).with_suffix("").as_posix()
        return Known(style, path, label, datetime.fromtimestamp(written))
    return None
