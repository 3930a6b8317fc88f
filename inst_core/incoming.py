"""Style files that come from outside: dropped on the canvas of the editor."""
import os
import tempfile
import unicodedata
from collections.abc import Collection, Iterable
from contextlib import suppress
from pathlib import Path, PurePosixPath

from .library import SUFFIX, files_in
from .saving import MAX_NAME_BYTES, folded_name, usable_name
from .style import load_style
from .whole import make_folder, name_exclusively


def _last_part(name: str) -> str:
    return unicodedata.normalize("NFC", PurePosixPath(name.replace("\\", "/")).name)


def file_name(name: str) -> str:
    """A name from another machine as one for this folder: its last part, without what file systems refuse and prompts
    cannot carry.

    Raises:
        ValueError: nothing is left of it, or it is no safetensors file.
    """
    stem, suffix = os.path.splitext(_last_part(name))
    if suffix.lower() != SUFFIX:
        raise ValueError(f"{_last_part(name)!r} is no style file. Expected a file that ends in {SUFFIX}.")
    if (cleaned := usable_name(stem, MAX_NAME_BYTES)) is None:
        raise ValueError(f"The file name {name!r} is empty. Rename the file and drop it again.")
    return cleaned + SUFFIX


def keep(name: str, content: bytes, folders: Iterable[Path], known: Iterable[Path],
         searched: Iterable[Path] = ()) -> str:
    """Puts a style file among the others; one that is there already stays as it is, and is found as before.

    Args:
        name: of the file where it came from.
        folders: where it may go, best place first.
        known: folders of styles, ``folders`` among them.
        searched: further folders in which prompts look for names.

    Returns:
        Its name in the list of styles: relative to the folder it is in.

    Raises:
        ValueError: no usable name, no style file, or no folder that can be written.
    """
    wanted, known, taken = file_name(name), list(known), set()
    for path in files_in([*known, *searched]):
        home = next((home for home in known if path.is_relative_to(home)), None)
        if home and path.name in (wanted, _last_part(name)) and path.read_bytes() == content:
            return path.relative_to(home).as_posix()
        taken.add(folded_name(path.stem))
    problems = []
    for folder in folders:
        try:
            return _put(wanted.removesuffix(SUFFIX), content, folder, taken)
        except OSError as error:
            problems.append(f"{folder}: {error.strerror or error}")
    raise ValueError(f"{wanted} could not be kept: {'; '.join(problems)}. Make room or correct the folder's "
                     "permissions, then drop the file again.")


def _put(stem: str, content: bytes, folder: Path, taken: Collection[str]) -> str:
    """Its name in the folder: ``stem``, or with the first number that makes one which is not ``taken``."""
    make_folder(folder)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".") as place:
        temporary = Path(place, stem + SUFFIX)  # its own name, for the messages of what refuses it
        temporary.write_bytes(content)
        load_style(temporary)
        number = 0
        while True:
            number += 1
            label = stem if number == 1 else f"{stem}_{number}"
            if folded_name(label) in taken:
                continue
            with suppress(FileExistsError):
                name_exclusively(temporary, folder / f"{label}{SUFFIX}")
                return f"{label}{SUFFIX}"
