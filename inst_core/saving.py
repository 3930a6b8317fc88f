"""Names of learned styles, where they are written, and what happens when that fails."""
import logging
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

from .library import SUFFIX, files_in
from .style import Style, save_style

log = logging.getLogger(__name__)

AUTO, DEFAULT = "auto", "style"  # a name that is the painting's; the one where that is not known
PICTURE_LOADERS = {"LoadImage", "LoadImageOutput"}  # of the host, with the file in their widget ``image``
MASK_EDITOR = "clipspace"  # begins the paths of what it saves

MAX_NAME_BYTES = 200  # file systems take 255; the number and the suffix are added
MOST_DIGITS = 9  # of a number that counts; longer ones are part of a name
# What file systems refuse, and what the host takes for the end of an embedding's name, for a weight or for a choice.
_FORBIDDEN = re.compile(r'[<>:"\\|?*()\[\]{},\s\x00-\x1f\x7f]')
_JOINERS = "\u200c\u200d"  # invisible, and part of Persian words and of emoji
_WINDOWS_DEVICES = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)
# What ``embedding:name`` reads (comfy/sd1_clip.py, load_embed), beside a file of just that name.
_EMBEDDING_SUFFIXES = (SUFFIX, ".pt", ".bin")


def check_name(name: str) -> str:
    """The name as it will be used: without outer spaces and ``.safetensors``, in Unicode's composed form.

    Raises:
        ValueError: it cannot be a file inside the folder, or a prompt cannot carry it as ``embedding:name``.
    """
    cleaned = unicodedata.normalize("NFC", name.strip())
    if cleaned.lower().endswith(SUFFIX):
        cleaned = cleaned[:-len(SUFFIX)]
    if problem := _problem(cleaned):
        shown = name if len(name) <= 60 else f"{name[:57]}..."
        raise ValueError(f"name is {shown!r}: {problem}. Expected a file name, also in folders, that a prompt can "
                         f"carry as embedding:name, such as {_suggestion(cleaned)!r} or 'painters/monet'.")
    return cleaned


def _problem(name: str) -> str | None:
    if found := sorted(set(_FORBIDDEN.findall(name))):
        listed = " ".join("space" if c.isspace() else c if c.isprintable() else repr(c) for c in found)
        return f"a prompt or a file system cannot carry {listed}"
    if invisible := sorted({c for c in name if not c.isprintable() and c not in _JOINERS}):
        return f"it has invisible characters ({', '.join(f'U+{ord(c):04X}' for c in invisible)})"
    parts = name.split("/")
    if any(not part or part.startswith(".") for part in parts):
        return "the name or a folder in it is empty or starts with a full stop"
    if any(part.endswith(".") or _WINDOWS_DEVICES.fullmatch(part) for part in parts):
        return "Windows cannot have a file or folder of this name"
    if len(name.encode()) > MAX_NAME_BYTES:
        return f"it has {len(name.encode())} bytes, and {MAX_NAME_BYTES} are the most"
    if _is_number(_numbered(name, 1)):
        return f"with its number it reads as a number, and (embedding:{_numbered(name, 1)}) would take it for a weight"
    return None


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def usable_name(name: str, most: int) -> str | None:
    """A usable name of at most so many bytes near an unusable one."""
    visible = "".join(c for c in re.sub("__+", "_", _FORBIDDEN.sub("_", name)) if c.isprintable())
    parts = [part.strip("._") for part in visible.split("/")]
    near = "/".join(f"{part}_" if _WINDOWS_DEVICES.fullmatch(part) else part for part in parts if part)
    near = near.encode()[:most].decode(errors="ignore")
    near = f"style_{near}" if _is_number(_numbered(near, 1)) else near
    return near if near and not _problem(near) else None


def _suggestion(name: str) -> str:
    return usable_name(name, MAX_NAME_BYTES // 4) or "starry_night"


def file_behind(prompt: Mapping[str, Any] | None, node_id: str | None) -> str | None:
    """The file of the picture that reaches the input ``image`` of a node.

    It is looked for in Load Image, also behind nodes that only change a picture, which call theirs ``image``, too.

    Args:
        prompt: the host's, {node id: {"class_type": its type, "inputs": {name: value or [node id, output]}}}.

    Returns:
        The file's name without folders; None where the picture comes from elsewhere or was renamed by the mask editor.
    """
    passed: set[str | None] = set()
    while prompt and node_id in prompt and node_id not in passed:
        passed.add(node_id)
        node = prompt[node_id]
        match node.get("inputs", {}).get("image"):
            case str(file) if node.get("class_type") in PICTURE_LOADERS and not file.startswith(MASK_EDITOR):
                return PurePosixPath(re.sub(r" \[\w+\]$", "", file)).name  # " [output]" says where it lies
            case [str(node_id), _]:
                continue
    return None


def choose_name(name: str, file: str | None = None) -> str:
    """The name as it will be used: as typed, or for auto that of the painting's file, as far as prompts can carry it.

    Raises:
        ValueError: as ``check_name``.
    """
    name = check_name(name)
    if name != AUTO:
        return name
    return usable_name(unicodedata.normalize("NFC", PurePosixPath(file or "").stem), MAX_NAME_BYTES // 2) or DEFAULT


def _numbered(name: str, number: int) -> str:
    return f"{name}_{number:05}"


def folded_name(name: str) -> str:
    """Equal for names that some file systems cannot tell apart: case and Unicode form."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFD", name).casefold())


def _next_free(name: str, folders: Iterable[Path]) -> int:
    """One more than the highest number that ``name`` has anywhere: a new name every time, since prompts are cached by
    name, and ``embedding:name`` finds a file in any folder and subfolder."""
    wanted = re.compile(re.escape(folded_name(PurePosixPath(name).name)) + rf"_(\d{{1,{MOST_DIGITS}}})")
    numbers = [0]
    for file in (folded_name(path.name) for path in files_in(folders)):
        stems = (file, *(file.removesuffix(suffix) for suffix in _EMBEDDING_SUFFIXES))
        numbers += (int(match[1]) for stem in stems if (match := wanted.fullmatch(stem)))
    return max(numbers) + 1


def _save_numbered(style: Style, name: str, folder: Path, searched: Iterable[Path], with_metadata: bool) -> str:
    """Saves under the next free number and returns the name with it; nothing that is there is ever overwritten."""
    number = _next_free(name, [*searched, folder])
    # Without a title, lists show the name that the file has by then.
    untitled = replace(style, metadata={k: v for k, v in style.metadata.items() if k != "modelspec.title"})
    while True:
        label = _numbered(name, number)
        try:
            save_style(untitled, folder / f"{label}{SUFFIX}", with_metadata, overwrite=False)
            return label
        except FileExistsError:  # another program took it meanwhile
            number += 1


def save_new(style: Style, name: str, folders: Sequence[Path], with_metadata: bool,
             searched: Sequence[Path] = ()) -> str:
    """Saves under a new numbered name in the first folder that takes it; never loses the style.

    Args:
        name: as for ``check_name``.
        folders: best place first.
        searched: where loaders and prompts look for names; no number is given that one of them has already.

    Returns:
        What it is called and where it is, or that it is nowhere but on the output, for the user to read.

    Raises:
        ValueError: an unusable name or style.
    """
    name, problems = check_name(name), []
    for folder in folders:
        try:
            label = _save_numbered(style, name, folder, searched, with_metadata)
        except OSError as error:
            problems.append(f"{folder}: {error.strerror or error}")
            continue
        if not problems:
            return f"{label}{SUFFIX} is saved; in any prompt it is embedding:{label}"
        saved = f"{label}{SUFFIX} is saved in {folder}, because it could not be in {'; '.join(problems)}. "
        saved += f"In any prompt it is embedding:{label}" if folder in searched else "Move the file there to keep it."
        log.warning("InST style %s", saved)
        return saved
    message = (f"NOT SAVED: {'; '.join(problems)}. The style is on this node's output: make room or correct the "
               "folder's permissions, then connect Save InST Style and run again.")
    log.error("InST style %s", message)
    return message
