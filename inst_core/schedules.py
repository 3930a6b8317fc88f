"""Noise levels to sample at. Functions here know noise levels only; which model they belong to is the caller's."""
import math
from collections.abc import Callable

import torch
from torch import Tensor


def cosine_clock(noise_to_signal_start: float, noise_to_signal_end: float, steps: int) -> Tensor:
    """``steps`` noise-to-signal ratios at equal steps of the angle theta with ratio = tan(theta).

    The continuous cosine schedule (Nichol & Dhariwal 2021; signal cos, noise sin) run over the levels that a
    pretrained model knows.  For eps and v models the ratio is sigma itself.

    Returns:
        (steps,) descending float32, first = start, last = end.
    """
    start, end = math.atan(noise_to_signal_start), math.atan(noise_to_signal_end)
    return torch.linspace(start, end, steps, dtype=torch.float64).tan().float()


def from_level(schedule: Callable[[int], Tensor], sigma_start: float, steps: int) -> Tensor:
    """A host schedule entered at an exact level, so that strength means the same for 4 steps and for 50.

    Takes the shortest run of ``schedule`` that has ``steps`` levels below ``sigma_start`` and puts the start level
    itself on top.

    Args:
        schedule: n -> descending levels of a full run of n steps, ending in 0.
        sigma_start: level to start from.
        steps: number of sampler steps.

    Returns:
        (steps + 1,) descending, first = ``sigma_start``, last = 0.
    """
    for total in range(steps, 100 * steps + 1000):
        levels = schedule(total).float()
        below = levels[levels < sigma_start * (1 - 1e-4)]
        if len(below) >= steps:
            return torch.cat([torch.tensor([sigma_start]), below[-steps:]])
    raise ValueError(f"The scheduler has no {steps} levels below sigma {sigma_start:.4g}. Use fewer steps, more "
                     f"strength, or another scheduler (normal and karras always work).")
