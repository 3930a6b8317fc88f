"""Doing the same with less memory, when memory runs out."""
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

import torch
from torch.utils._python_dispatch import is_traceable_wrapper_subclass


class Halvable(Protocol):
    """Limits that say how much is done at once."""

    def halved(self) -> "Halvable | None":
        """Smaller limits, or None when smaller ones would no longer help."""


T = TypeVar("T")
L = TypeVar("L", bound=Halvable)


# What torch says without a type of its own: main memory on Linux, macOS and Windows, Apple's GPUs, NVIDIA's driver and
# libraries, AMD's, Intel's, and DirectML; all in small letters.
_MESSAGES = ("out of memory", "outofmemory", "out_of_device_memory", "out_of_host_memory", "status_alloc_failed",
             "statusallocfailed", "status_memory_error", "bad_alloc", "can't allocate memory", "not enough memory",
             "could not allocate tensor", "not enough gpu video memory")
_CUDA_OUT_OF_MEMORY = 2  # cudaErrorMemoryAllocation, also HIP's


def is_out_of_memory(error: BaseException) -> bool:
    """True for torch's, Python's and the drivers' ways to say so."""
    accelerator = isinstance(error, getattr(torch, "AcceleratorError", ()))
    return (isinstance(error, (torch.OutOfMemoryError, MemoryError))
            or (accelerator and getattr(error, "error_code", None) == _CUDA_OUT_OF_MEMORY)
            or any(message in str(error).lower() for message in _MESSAGES))


class WithinMemory(Generic[L]):
    """Calls functions of some limits, and again with smaller limits as often as memory runs out.

    Args:
        is_out_of_memory: tells whether an exception says so.
    """

    def __init__(self, limits: L, is_out_of_memory: Callable[[BaseException], bool] = is_out_of_memory):
        self.limits, self._is_out_of_memory = limits, is_out_of_memory

    def __call__(self, function: Callable[[L], T]) -> T:
        while True:
            try:
                return function(self.limits)
            except (RuntimeError, MemoryError) as error:
                smaller = self.limits.halved()
                if smaller is None or not self._is_out_of_memory(error):
                    raise
            self.limits = smaller  # outside the handler: the failed call's tensors are gone by now


def kept_for_backward(function: Callable[[], torch.Tensor]) -> int:
    """Bytes that the graph of ``function``'s result keeps alive for backward, besides what existed before.

    Weights that are used as they are do not count: they are leaves, whose memory is shared by every call.
    """
    alive: dict[int, torch.Tensor] = {}  # by address, which nothing else can have while they live

    def note(tensor: torch.Tensor) -> None:
        whole = tensor if tensor._base is None else tensor._base  # linear layers keep their weight transposed
        weight = whole.is_leaf and isinstance(whole, torch.nn.Parameter)
        wrapped = is_traceable_wrapper_subclass(tensor)  # a quantized weight, which has no memory of its own
        if not (weight or wrapped):
            alive[tensor.untyped_storage().data_ptr()] = tensor.detach()

    # The graph itself is given nothing to hold: a graph that holds its own outputs would never be freed.
    with torch.autograd.graph.saved_tensors_hooks(note, lambda nothing: nothing):
        function()
    return sum(tensor.untyped_storage().nbytes() for tensor in alive.values())
