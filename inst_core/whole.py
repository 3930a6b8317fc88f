"""Files that are whole or not there, whenever the process dies."""
import errno
import os
import time
import uuid
from contextlib import suppress
from pathlib import Path

PARTIAL, DAY = ".partial", 24 * 3600  # suffix of a file that is being written; seconds


def write_whole(path: Path, data: bytes, overwrite: bool = True) -> None:
    """Writes a file under a temporary name beside ``path``, then gives it its name.

    Args:
        overwrite: False never touches a file that is there already, also when it appeared a moment ago.

    Raises:
        FileExistsError: without ``overwrite``, the name is taken.
        OSError: the folder cannot be written.
    """
    make_folder(path.parent)
    clear_leftovers(path.parent)
    temporary = path.with_name(f".{uuid.uuid4().hex}{PARTIAL}")
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if overwrite:
            os.replace(temporary, path)
        else:
            name_exclusively(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def make_folder(folder: Path) -> None:
    """Makes a folder, unless it is there.

    Raises:
        NotADirectoryError: a file is called so, or a link leads to a disk that is gone.
        OSError: it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
        raise NotADirectoryError(errno.ENOTDIR, "it is a file, or a link to a folder that is gone") from error


def clear_leftovers(folder: Path) -> None:
    """Deletes what programs that died while writing left behind a day ago or earlier."""
    for leftover in folder.glob(f".*{PARTIAL}"):
        with suppress(OSError):
            if time.time() - leftover.stat().st_mtime > DAY:
                leftover.unlink()


def name_exclusively(temporary: Path, path: Path) -> None:
    """Names a finished file, or raises FileExistsError; of two who try at once only one succeeds."""
    try:
        os.link(temporary, path)
        return
    except FileExistsError:
        raise
    except OSError:
        pass  # no hard links here (FAT, some network folders): reserve the name, then move the file over it
    path.open("xb").close()
    try:
        os.replace(temporary, path)
    except BaseException:
        path.unlink(missing_ok=True)
        raise
