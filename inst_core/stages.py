"""A style with words of its own for every stage of the noise (DreamStyler, Ahn et al. 2024, section 3.1).

Layout is decided under much noise and brushwork under little, so a style may say different things there.  The stages
are equally long in training time and share nothing, so each is learned like a style of its own.
"""
from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor

MOST = 6  # stages that a style has


class Stage(NamedTuple):
    """Pseudo-words for one part of the noise schedule.

    Attributes:
        start: where it begins, in shares of the schedule as in ``strength.Course``: 0 = pure noise. It ends where the
            next one begins.
        vectors: {text encoder key: (n, width)}.
    """

    start: float
    vectors: Mapping[str, Tensor]


def middle(count: int) -> int:
    """The stage that stands for all where a reader knows only one."""
    return count // 2


def times(count: int, strongest: float = 1.0) -> list[tuple[float, float]]:
    """[(lowest, highest)] training times of the stages, from much noise to little, up to ``strongest``."""
    edges = [strongest * (count - i) / count for i in range(count + 1)]
    return list(zip(edges[1:], edges, strict=False))
