"""Weight files in models/style_transfer, as nodes list, check and read them."""
from pathlib import Path, PurePath

from torch import Tensor

from ..inst_core import host, state_dicts
from .sockets import problem_of

NO_FILES = "(put weight files into models/style_transfer)"
NONE = "none"


def weight_files(wanted: str = "") -> list[str]:
    """Files of the folder; the earlier ``wanted`` stands in a name, the farther in front it is."""
    def place(name: str) -> tuple[bool, int]:
        found = PurePath(name).name.lower().find(wanted)
        return found < 0, found

    return sorted(host.files.model_files(host.files.TRANSFER_FOLDER), key=place) or [NO_FILES]


def file_problem(*names: str) -> bool | str:
    """True, or why the chosen files cannot be opened; ``NONE`` chooses nothing."""
    if NO_FILES in names:
        return "There is no weight file yet. Put one into models/style_transfer, press R and choose it here."
    answers = (problem_of(host.files.model_path, host.files.TRANSFER_FOLDER, name) for name in chosen(*names))
    return next((answer for answer in answers if answer is not True), True)


def chosen(*names: str) -> list[str]:
    """Without ``NONE``, and each name once."""
    return [name for name in dict.fromkeys(names) if name != NONE]


def read_weights(name: str, mapped: bool = False) -> dict[str, Tensor]:
    """As ``state_dicts.read_weights``, by the name in the folder."""
    return state_dicts.read_weights(_path(name), mapped)


def fingerprint(*names: str | None) -> str:
    """Changes when one of the chosen files is replaced under its name; for ``fingerprint_inputs``."""
    return host.files.fingerprint(host.files.TRANSFER_FOLDER, *(name for name in chosen(*names) if name != NO_FILES))


def _path(name: str) -> Path:
    return Path(host.files.model_path(host.files.TRANSFER_FOLDER, name))
