"""Style files that come from outside: dropped on the canvas of the editor."""
import os
import re
import tempfile
import unicodedata
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from .library import SUFFIX, files_in
from .saving import MAX_NAME_BYTES
from .style import load_style
from .whole import name_exclusively

_FORBIDDEN = re.compile(r'[<>:"/\\|?*\x00-\x1f\x7f]')


def file_name(name: str) -> str:
    """A name from another machine as one for this folder: its last part, without what file systems refuse.

    Raises:
        ValueError: nothing is left of it, or it is no safetensors file.
    """
    last = unicodedata.normalize("NFC", re.split(r"[/\\]", name)[-1])
    stem, suffix = os.path.splitext(last)
    if suffix.lower() != SUFFIX:
        raise ValueError(f"{last!r} is no style file. Expected a file that ends in {SUFFIX}.")
    cleaned = _FORBIDDEN.sub("_", stem).strip(" .").encode()[:MAX_NAME_BYTES].decode(errors="ignore")
    if not cleaned:
        raise ValueError(f"The file name {name!r} is empty. Rename the file and drop it again.")
    return cleaned + SUFFIX


def keep(name: str, content: bytes, folder: Path, known: Iterable[Path]) -> str:
    """Puts a style file among the others; one that is there already stays as it is.

    Args:
        name: of the file where it came from.
        folder: where it goes.
        known: folders of styles, ``folder`` among them.

    Returns:
        Its name in the list of styles: relative to the folder it is in.

    Raises:
        ValueError: no usable name, or no style file.
        OSError: it cannot be written.
    """
    wanted, known = file_name(name), list(known)
    for path in files_in(known):
        if path.name == wanted and path.read_bytes() == content:
            return path.relative_to(next(home for home in known if path.is_relative_to(home))).as_posix()
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".") as place:
        temporary = Path(place, wanted)  # its own name, for the messages of what refuses it
        temporary.write_bytes(content)
        load_style(temporary)
        stem = wanted.removesuffix(SUFFIX)
        number = 0
        while True:
            number += 1
            path = folder / (wanted if number == 1 else f"{stem} ({number}){SUFFIX}")
            with suppress(FileExistsError):
                name_exclusively(temporary, path)
                return path.name
