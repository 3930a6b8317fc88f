"""Where learned styles are written, and what happens when that fails."""
import logging
import re
from collections.abc import Sequence
from pathlib import Path

from .style import Style, save_style

log = logging.getLogger(__name__)

_FORBIDDEN = re.compile(r'[<>:"/\\|?*\x00-\x1f,\s]')


def check_name(name: str) -> None:
    """Raises ValueError unless ``name`` can be a file name and be written in a prompt as ``embedding:name``."""
    if not name or name in (".", "..") or name.startswith(".") or _FORBIDDEN.search(name) or len(name) > 100:
        raise ValueError(f"name is {name!r}; expected a plain file name without folders, spaces, commas or any of "
                         '< > : " / \\ | ? *, such as starry_night.')


def _next_free(folder: Path, name: str) -> Path:
    """``name_00001.safetensors`` and so on: a new name every time, because prompts are cached by name."""
    taken = re.compile(re.escape(name) + r"_(\d+)")
    numbers = [int(m.group(1)) for p in folder.glob("*.safetensors") if (m := taken.fullmatch(p.stem))]
    return folder / f"{name}_{max(numbers, default=0) + 1:05}.safetensors"


def save_new(style: Style, name: str, folders: Sequence[Path], with_metadata: bool) -> str:
    """Saves under a new numbered name in the first folder that takes it; never loses the style.

    Args:
        folders: best place first.

    Returns:
        Where it is, or that it is nowhere but on the output, for the user to read.
    """
    problems = []
    for folder in folders:
        try:
            path = _next_free(folder, name)
            save_style(style, path, with_metadata)
        except OSError as error:
            problems.append(f"{folder}: {error.strerror or error}")
            continue
        saved = f"saved as {path} (embedding:{path.stem})"
        if problems:
            saved += f"\nIt could not be saved in {'; '.join(problems)}. Move the file there to keep it."
            log.warning("InST style %s", saved)
        return saved
    message = (f"NOT SAVED: {'; '.join(problems)}. The style is on this node's output: make room or correct the "
               "folder's permissions, then connect Save InST Style and run again.")
    log.error("InST style %s", message)
    return message
