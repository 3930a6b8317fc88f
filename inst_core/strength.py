"""The strength of a style over the steps of sampling."""
from collections.abc import Sequence
from typing import NamedTuple

SHAPES = "constant", "ease in", "ease out"
PIECES = 8  # that a rising or falling strength is made of
BORDER = 1e-4


class Course(NamedTuple):
    """How a style's strength goes over the sampling.

    Attributes:
        start, end: in shares of the whole noise schedule, 0 = pure noise, 1 = clean, as in the host's Conditioning
            (Set Timestep Range); outside of them the strength is 0.
        shape: one of ``SHAPES``: between them the strength stays, rises to its full height, or falls from it.
    """

    start: float = 0.0
    end: float = 1.0
    shape: str = SHAPES[0]

    def pieces(self, strength: float) -> list[tuple[float, float, float]]:
        """[(start, end, strength)] that cover 0 to 1 without gaps.

        Both ends belong to the style; the borders lie a shade beside the round numbers where steps lie, since the host
        counts a step on a border to both sides of it.

        Raises:
            ValueError: ``start`` is not below ``end``.
        """
        if not 0 <= self.start < self.end <= 1:
            raise ValueError(f"start_percent is {self.start} and end_percent {self.end}; the start must lie below the "
                             "end, both between 0 and 1. 0 and 1 let the style act in all steps.")
        if strength == 0:
            return [(0.0, 1.0, 0.0)]
        count = 1 if self.shape == SHAPES[0] else PIECES
        rising = [t * t * (3 - 2 * t) for t in ((i + 1) / count for i in range(count))]
        heights = [strength * share for share in (rising[::-1] if self.shape == SHAPES[2] else rising)]
        borders = [self.start - BORDER,
                   *(self.start + (self.end - self.start) * i / count + BORDER for i in range(1, count + 1))]
        edges = [0.0, *(min(max(border, 0.0), 1.0) for border in borders), 1.0]
        pieces = zip(edges, edges[1:], [0.0, *heights, 0.0], strict=False)
        return [piece for piece in pieces if piece[0] < piece[1]]


def split_at(pieces: Sequence[tuple[float, float, float]],
             starts: Sequence[float]) -> list[tuple[float, float, float, int]]:
    """[(start, end, strength, stage)]: the pieces of a course, cut where the stages of a style begin.

    Args:
        pieces: of ``Course.pieces``.
        starts: of the stages, the first 0. A step on the border of two belongs to the one with more noise.
    """
    edges = [0.0, *(start + BORDER for start in starts[1:]), 1.0]
    found = []
    for begin, end, height in pieces:
        for stage, (low, high) in enumerate(zip(edges, edges[1:], strict=False)):
            if max(begin, low) < min(end, high):
                found.append((max(begin, low), min(end, high), height, stage))
    return found


ALWAYS = Course()
