"""What a piece of work costs: seconds, and memory at its highest, above what was taken before."""
import contextlib
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

CLEAR, STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")
RESET_PEAK = "5"  # see Linux, Documentation/filesystems/proc.rst


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def measure_seconds(function: Callable[[], object], device: torch.device, repeats: int = 1) -> float:
    """Mean time of some calls: of the clock, or of the processor on a CPU with one thread, where a busy machine does
    not change it."""
    clock = time.process_time if device.type == "cpu" and torch.get_num_threads() == 1 else time.perf_counter
    wait(device)
    start = clock()
    for _ in range(repeats):
        function()
    wait(device)
    return (clock() - start) / repeats


def name_of(device: torch.device) -> str:
    """Of the hardware, and how many threads it computes with."""
    place = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{platform.machine()} CPU"
    return f"{place}, {torch.get_num_threads()} threads, torch {torch.__version__}"


def _resident(field: str) -> int:
    """VmRSS (now) or VmHWM (highest) of this process in bytes."""
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024


class PeakMemory:
    """Measures between ``with`` and its end: ``bytes`` of GPU memory, or of this process's resident memory.

    Other work in the same process counts too, and memory that the process had taken and freed before may be used again
    without being seen: for exact numbers use a fresh process.  None where the system cannot tell.
    """

    def __init__(self, device: torch.device | str):
        self.device, self.bytes = torch.device(device), None

    def __enter__(self) -> "PeakMemory":
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            self._before = torch.cuda.memory_allocated(self.device)
        elif sys.platform == "linux":
            with contextlib.suppress(OSError):  # some containers forbid it: then the highest so far counts
                CLEAR.write_text(RESET_PEAK)
            self._before = _resident("VmRSS")
        return self

    def __exit__(self, *exception: object) -> None:
        if self.device.type == "cuda":
            self.bytes = torch.cuda.max_memory_allocated(self.device) - self._before
        elif sys.platform == "linux":
            self.bytes = max(0, _resident("VmHWM") - self._before)
