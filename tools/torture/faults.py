"""Faults under saving and loading styles: several servers, sudden death, a full or read-only disk, folders that move
away, files that are cut and written over.  No style may be lost, none half-written may bear a style's name.
"""
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch

sys.path.append(str(Path(__file__).resolve().parents[2]))

from inst_core.saving import save_new
from inst_core.style import Style, load_style, save_style

NAME = "wave"
SECONDS_TO_DIE = 0.2
SECONDS_TO_STOP = 0.02


class Result(NamedTuple):
    """Of one kind of fault: how often it was tried, what went wrong, and what else there is to say."""

    fault: str
    trials: int
    wrong: list[str]
    note: str = ""


def _style(value: float) -> Style:
    return Style({"clip_l": torch.full((4, 768), value)}, metadata={"inst.text": "*" * 500})


def _values(folder: Path, last: int = 0) -> tuple[list[float], list[str]]:
    """What the styles in a folder hold, and which files are no whole styles; of the ``last`` ones only, 0 = of all."""
    values, broken = [], []
    for path in sorted(folder.rglob("*.safetensors"))[-last:]:
        try:
            values.append(load_style(path).vectors["clip_l"][0, 0].item())
        except ValueError as error:
            broken.append(str(error))
    return values, broken


def _lost(count: int, *folders: Path) -> list[str]:
    """What is wrong with folders that should hold styles 0 to ``count`` - 1, whole."""
    found = [_values(folder) for folder in folders]
    values, wrong = (sum(lists, []) for lists in zip(*found, strict=True))
    if set(values) != {float(n) for n in range(count)}:
        wrong.append(f"{count - len(set(values))} styles are lost")
    return wrong


def _ended(*processes: multiprocessing.Process) -> list[str]:
    """Waits for processes; which of them failed."""
    for process in processes:
        process.join()
    return [f"a server ended with {process.exitcode}" for process in processes if process.exitcode]


def _leftovers(folder: Path) -> int:
    return len(list(folder.rglob("*.partial")))


def _in_process(work: Callable, *arguments: object) -> multiprocessing.Process:
    kind = "fork" if "fork" in multiprocessing.get_all_start_methods() else "spawn"
    process = multiprocessing.get_context(kind).Process(target=work, args=arguments)
    process.start()
    return process


def _save_many(folders: list[Path], first: int, count: int) -> None:
    for number in range(first, first + count):
        said = save_new(_style(float(number)), NAME, folders, True, folders)
        assert "NOT SAVED" not in said, said


def several_servers(folder: Path, processes: int = 4, each: int = 50) -> Result:
    """Processes that save under one name into one folder at the same time."""
    running = [_in_process(_save_many, [folder], n * each, each) for n in range(processes)]
    wrong = _ended(*running) + _lost(processes * each, folder)
    return Result(f"{processes} servers on one folder", processes * each, wrong, f"{_leftovers(folder)} leftovers")


def sudden_death(folder: Path, times: int = 50, seed: int = 0) -> Result:
    """A process that saves without a pause and is killed at any moment."""
    draw, wrong = random.Random(seed), []
    for n in range(times):
        process = _in_process(_save_many, [folder], n * 10**6, 10**6)
        time.sleep(draw.uniform(0.01, SECONDS_TO_DIE))
        process.kill()
        process.join()
    values, broken = _values(folder)
    return Result("killed while saving", times, wrong + broken,
                  f"{len(values)} whole styles, {_leftovers(folder)} leftovers without a style's name")


def moving_folder(folder: Path, count: int = 300) -> Result:
    """The folder is renamed again and again while styles are saved into it."""
    first, second = folder / "first", folder / "second"
    process = _in_process(_save_many, [first, second], 0, count)
    moved = 0
    while process.is_alive():
        try:
            os.rename(first, folder / f"moved{moved}")
            moved += 1
        except OSError:
            pass
    wrong = _ended(process) + _lost(count, folder)
    return Result(f"folder moved away {moved} times", count, wrong, f"{_leftovers(folder)} leftovers")


def _spoil(path: Path, whole: bytes, seconds: float) -> None:
    """Writes over the file in place and cuts it, as no program should."""
    draw, end = random.Random(0), time.monotonic() + seconds
    while time.monotonic() < end:
        with path.open("r+b") as file:
            file.write(whole[:draw.randrange(len(whole))])
            file.truncate(draw.randrange(len(whole)))
        with path.open("r+b") as file:
            file.write(whole)


def spoiled_file(folder: Path, seconds: float = 5.0) -> Result:
    """A style that is loaded while its file is cut and written over."""
    path, wrong, read, refused = folder / "a.safetensors", [], 0, 0
    save_style(_style(1.0), path)
    process = _in_process(_spoil, path, path.read_bytes(), seconds)
    kept = []
    while process.is_alive():
        try:
            style = load_style(path)
            kept = [*kept[-20:], (style.vectors["clip_l"], style.vectors["clip_l"].clone())]
            read += 1
        except ValueError as error:
            refused += 1
            if path.name not in str(error):
                wrong.append(f"a refusal does not name the file: {error}")
        if not all(torch.equal(now, then) for now, then in kept):
            wrong.append("a loaded style changed with its file")
    process.join()
    return Result("file cut and written over", read + refused, wrong, f"{read} read, {refused} refused")


def _save_both_ways(folder: Path, count: int) -> None:
    """Each style under a new name, and under one name over the style before it."""
    for number in range(count):
        _save_many([folder / "new"], number, 1)
        save_style(_style(float(number)), folder / "same.safetensors")


def slow_disk(folder: Path, count: int = 400, seed: int = 0) -> Result:
    """A process that saves stands still again and again, as on a disk that hangs, often in the middle of a file;
    meanwhile another saves under the same name, and the newest styles are loaded."""
    if not hasattr(signal, "SIGSTOP"):
        return Result("slow disk", 0, [], "not tried: needs signals of Unix")
    draw, wrong = random.Random(seed), []
    stops = halves = 0
    process = _in_process(_save_both_ways, folder, count)
    while process.is_alive() and stops < count:
        time.sleep(draw.uniform(0, SECONDS_TO_STOP))
        os.kill(process.pid, signal.SIGSTOP)
        try:
            halves += _leftovers(folder) > 0
            _save_many([folder / "new"], count + stops, 1)
            wrong += _values(folder, 20)[1]
        finally:
            os.kill(process.pid, signal.SIGCONT)
        stops += 1
    wrong += _ended(process) + _lost(count + stops, folder / "new")
    return Result(f"disk hung {stops} times, {halves} of them in the middle of a file", 2 * count + stops, wrong,
                  f"{_leftovers(folder)} leftovers")


def _on_small_disk(folder: Path, other: Path, count: int, options: str) -> str:
    """Saves ``count`` styles in a process whose ``folder`` is a disk of its own; what went wrong, or why not tried."""
    work = (f"mount -t tmpfs -o size=200k tmpfs '{folder}' && {{ [ -z '{options}' ] || mount -o remount,{options} "
            f"'{folder}'; }} && '{sys.executable}' '{Path(__file__).resolve()}' '{folder}' '{other}' {count}")
    if not shutil.which("unshare"):
        return "not tried: needs Linux"
    done = subprocess.run(["unshare", "-rm", "sh", "-c", work], capture_output=True, text=True, check=False)
    if done.returncode:
        return f"not tried: {done.stderr.strip().splitlines()[-1]}" if "mount" in done.stderr else done.stderr.strip()
    return done.stdout.strip()


def _save_and_look(folder: Path, other: Path, count: int) -> str:
    """Inside: every style is on the small disk or on the other one, whole; what is wrong, or nothing."""
    _save_many([folder, other], 0, count)
    wrong = _lost(count, folder, other)
    if _leftovers(folder):
        wrong.append(f"{_leftovers(folder)} leftovers")
    return "; ".join(wrong) or f"{len(_values(folder)[0])} on it, {len(_values(other)[0])} elsewhere"


def bad_disk(folder: Path, fault: str, options: str, count: int = 40) -> Result:
    small, other = folder / "small", folder / "other"
    small.mkdir()
    said = _on_small_disk(small, other, count, options)
    tried = not said.startswith("not tried")
    fine = " on it, " in said
    return Result(fault, count * tried, [said] if tried and not fine else [], said)


def faults(folder: Path) -> list[Result]:
    """All of them; each in a folder of its own."""
    works = (several_servers, sudden_death, moving_folder, spoiled_file, slow_disk,
             partial(bad_disk, fault="full disk", options=""), partial(bad_disk, fault="read-only disk", options="ro"))
    return [work(Path(tempfile.mkdtemp(dir=folder))) for work in works]


if __name__ == "__main__":
    print(_save_and_look(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])))
