"""Noise levels to sample at. Functions here know noise levels only; which model they belong to is the caller's."""
import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

LONGEST = 1024  # steps of a full run that a host schedule is asked for, each of which takes it up to 0.05 ms

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
    itself on top.  Where that run would be longer than LONGEST, a schedule that goes on dividing is read between the
    levels of its longest run.

    Args:
        schedule: n -> descending levels of a full run of n steps, ending in 0.
        sigma_start: level to start from.
        steps: number of sampler steps.

    Returns:
        (steps + 1,) descending, first = ``sigma_start``, last = 0.

    Raises:
        ValueError: a schedule that knows fewer levels below the start.
    """
    def below(total: int) -> Tensor:
        return _levels_below(schedule(total), sigma_start)

    shorter, longer = steps - 1, steps
    while longer < LONGEST and len(below(longer)) < steps:
        shorter, longer = longer, min(2 * longer, LONGEST)
    if longer > LONGEST or len(levels := below(longer)) < steps:
        return _between_levels(schedule(LONGEST), sigma_start, steps)
    while longer - shorter > 1:
        middle = (shorter + longer) // 2
        if len(fewer := below(middle)) < steps:
            shorter = middle
        else:
            longer, levels = middle, fewer
    return torch.cat([torch.tensor([sigma_start]), levels[-steps:]])


def check_sigmas(sigmas: Tensor) -> None:
    """Raises ValueError unless SIGMAS are noise levels: one row of finite numbers, 0 or more."""
    if sigmas.ndim != 1:
        raise ValueError(f"sigmas has shape {tuple(sigmas.shape)}; expected one row of noise levels. Connect a "
                         "scheduler, such as InST Cosine Scheduler.")
    if wrong := [f"{s:g}" for s in sigmas.tolist() if not 0 <= s < math.inf]:
        raise ValueError(f"sigmas holds {', '.join(wrong[:3])}; expected finite noise levels, 0 or more. Check the "
                         "node that made them.")


def _levels_below(levels: Tensor, sigma_start: float) -> Tensor:
    """The levels under the start, each once, descending."""
    levels = levels.float().cpu()
    return levels[levels < sigma_start * (1 - 1e-4)].unique().flip(0)


def _between_levels(levels: Tensor, sigma_start: float, steps: int) -> Tensor:
    """A run from ``sigma_start`` at equal distances along a long schedule, read linearly between its levels.

    Raises:
        ValueError: a schedule of single levels (its longest run repeats or leaves out some), which has none between.
    """
    below = _levels_below(levels, sigma_start)
    above = levels.cpu()[levels.cpu() > 0].double().unique()  # ascending
    if len(above) >= LONGEST and len(below) > 1:
        places = torch.arange(len(above), dtype=torch.float64)
        start = float(np.interp(sigma_start, above, places))
        run = np.interp(np.linspace(start, 0, steps), places, above)
        sigmas = torch.cat([torch.tensor([sigma_start]), torch.from_numpy(run[1:]).float(), torch.zeros(1)])
        if (sigmas.diff() < 0).all():
            return sigmas
    known = f"{len(below)} level" if len(below) == 1 else f"{len(below)} levels"
    raise ValueError(f"steps is {steps}, but scheduler has only {known} below sigma {sigma_start:.4g}, where this "
                     "strength starts. Use no more steps than that, more strength, or another scheduler such as "
                     "karras.")
