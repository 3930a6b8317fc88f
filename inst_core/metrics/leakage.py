"""An alarm for copied content: parts of the style picture that turn up in the result.

Distances to the style reward a result that shows the painting's own objects.  This measure cuts the style picture into
tiles so large that they hold layout rather than brushwork, and looks for each of them anywhere in the result by
normalised cross-correlation.  What the content picture already has of them does not count.
"""
import torch
from torch import Tensor
from torch.nn import functional as F

from ..portable import shrink

SIDE = 96  # pictures are compared at about this short side
TILE = 32
STRIDE = 16
FLAT = 0.02  # contrast below which a tile shows nothing that could be recognised


def _reduced(luminance: Tensor) -> Tensor:
    scale = SIDE / min(luminance.shape[2:])
    size = [max(TILE, round(side * scale)) for side in luminance.shape[2:]]
    return shrink(luminance, size)


def _tiles(luminance: Tensor) -> Tensor:
    """(1, 1, H, W) -> tiles (n, 1, TILE, TILE) with mean 0 and length 1; flat ones are left out."""
    tiles = luminance.unfold(2, TILE, STRIDE).unfold(3, TILE, STRIDE).reshape(-1, 1, TILE, TILE)
    tiles = tiles - tiles.mean((2, 3), keepdim=True)
    length = tiles.square().sum((2, 3), keepdim=True).sqrt()
    return (tiles / length.clamp_min(1e-12))[(length > FLAT * TILE).flatten()]


def best_matches(luminance: Tensor, tiles: Tensor) -> Tensor:
    """Highest normalised cross-correlation of each tile with any place of the picture.

    Args:
        luminance: (1, 1, H, W).
        tiles: (n, 1, TILE, TILE), mean 0 and length 1.

    Returns:
        (n,) in [-1, 1]; 1 where a tile is found as it is, up to brightness and contrast.
    """
    box = torch.ones_like(tiles[:1])
    area = TILE * TILE
    mean = F.conv2d(luminance, box) / area
    energy = F.conv2d(luminance.square(), box) - area * mean.square()
    length = energy.clamp_min((FLAT * TILE) ** 2).sqrt()
    return (F.conv2d(luminance, tiles) / length).amax((0, 2, 3))


def leakage(content: Tensor, style: Tensor, result: Tensor) -> Tensor:
    """How much better tiles of the style picture are found in the result than in the content, averaged over tiles.

    Args:
        content, style, result: luminances (1, 1, H, W) in [0, 1], of any sizes.

    Returns:
        (1,): 0 when the result shows nothing of the style picture's content; a copy of the style picture has what is
        left to 1 after its chance resemblance to the content, about 0.5.
    """
    tiles = _tiles(_reduced(style))
    if not len(tiles):
        return result.new_zeros(1)
    found, before = (best_matches(_reduced(picture), tiles) for picture in (result, content))
    return (found - before).clamp_min(0).mean(0, keepdim=True)
