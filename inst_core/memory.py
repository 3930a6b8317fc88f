"""Doing the same with less memory, when memory runs out."""
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

import torch


class Halvable(Protocol):
    """Limits that say how much is done at once."""

    def halved(self) -> "Halvable | None":
        """Smaller limits, or None when smaller ones would no longer help."""


T = TypeVar("T")
L = TypeVar("L", bound=Halvable)


def is_out_of_memory(error: BaseException) -> bool:
    """True for torch's and Python's ways to say so."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "can't allocate memory" in str(error)


class WithinMemory(Generic[L]):
    """Calls functions of some limits, and again with smaller limits as often as memory runs out."""

    def __init__(self, limits: L):
        self.limits = limits

    def __call__(self, function: Callable[[L], T]) -> T:
        while True:
            try:
                return function(self.limits)
            except (RuntimeError, MemoryError) as error:
                smaller = self.limits.halved()
                if smaller is None or not is_out_of_memory(error):
                    raise
            self.limits = smaller  # outside the handler: the failed call's tensors are gone by now
