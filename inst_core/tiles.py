"""Large latents in overlapping tiles: every tile is computed by itself, and overlaps are blended.

Done in every sampling step, as MultiDiffusion does (Bar-Tal et al., ICML 2023), so that tiles agree while the picture
takes shape and no seams appear.
"""
from collections.abc import Callable

import torch
from torch import Tensor

ONE_TILE = 1.2  # a latent of up to this many times a tile's area is computed whole

Place = tuple[slice, slice]


def starts(length: int, tile: int, overlap: int) -> list[int]:
    """Where tiles begin along a side, evenly spaced, neighbours sharing ``overlap`` cells or more."""
    if length <= tile:
        return [0]
    count = -(-(length - overlap) // (tile - overlap))
    return [round(i * (length - tile) / (count - 1)) for i in range(count)]


def places(height: int, width: int, tile: int, overlap: int) -> list[Place]:
    """Tiles of ``tile`` x ``tile`` cells that cover height x width; one place where that is little more than a tile.

    Raises:
        ValueError: an overlap that leaves nothing of a tile.
    """
    if not 0 <= overlap < tile:
        raise ValueError(f"overlap is {overlap} and the tile {tile}; the overlap must be at least 0 and smaller than "
                         "the tile. A quarter of it is usual.")
    if height * width <= ONE_TILE * tile**2:
        return [(slice(0, height), slice(0, width))]
    return [(slice(y, min(y + tile, height)), slice(x, min(x + tile, width)))
            for y in starts(height, tile, overlap) for x in starts(width, tile, overlap)]


def window(height: int, width: int, overlap: int) -> Tensor:
    """(height, width) weights of a tile: 1 in the middle, falling evenly to its edges over ``overlap`` cells."""
    def ramp(length: int) -> Tensor:
        edge = torch.arange(1, length + 1).clamp(max=overlap + 1) / (overlap + 1)
        return torch.minimum(edge, edge.flip(0))

    return ramp(height)[:, None] * ramp(width)


def blend(x: Tensor, tile: int, overlap: int, compute: Callable[[Tensor, Place], Tensor]) -> Tensor:
    """``compute(tile, place)`` over all tiles of x (..., H, W), each as large as what it is given, blended.

    Memory beyond ``x`` and two of its size is that of one tile.
    """
    found = places(*x.shape[-2:], tile, overlap)
    if len(found) == 1:
        return compute(x, found[0])
    total, weights = torch.zeros_like(x, dtype=torch.float32), x.new_zeros(x.shape[-2:], dtype=torch.float32)
    for place in found:
        computed = compute(x[(..., *place)], place)
        weight = window(*computed.shape[-2:], overlap).to(total)
        total[(..., *place)] += computed * weight
        weights[place] += weight
    return (total / weights).to(x)


def crop(value, place: Place, height: int, width: int):
    """What belongs to a tile of a latent of height x width in tensors, lists and dictionaries that go with it.

    Tensors are cut where they have the latent's shape, at its resolution or a whole number of times below it; all else
    stays as it is.
    """
    match value:
        case Tensor() if value.ndim >= 4 and (scale := _scale(value, height, width)):
            return value[(..., *(slice(round(s.start / scale), round(s.stop / scale)) for s in place))]
        case dict():
            return {key: crop(item, place, height, width) for key, item in value.items()}
        case list() | tuple():
            return type(value)(crop(item, place, height, width) for item in value)
    return value


def _scale(value: Tensor, height: int, width: int) -> int | None:
    """How many times smaller than the latent a tensor is, or None if it is not a smaller copy of its shape."""
    scale = round(height / value.shape[-2])
    alike = scale >= 1 and -(-height // scale) == value.shape[-2] and -(-width // scale) == value.shape[-1]
    return scale if alike else None
