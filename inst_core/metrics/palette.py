"""Which colours there are, wherever they are."""
import math

import torch
from torch import Tensor

from ..color import monge_kantorovich

PIXELS = 2**13  # looked at in each picture, at most
DIRECTIONS = 64
LEVELS = 8  # of each channel in the histogram
# sRGB (IEC 61966-2-1) to XYZ, divided by the white point D65
_XYZ = ((0.4124564 / 0.95047, 0.3575761 / 0.95047, 0.1804375 / 0.95047),
        (0.2126729, 0.7151522, 0.0721750),
        (0.0193339 / 1.08883, 0.1191920 / 1.08883, 0.9503041 / 1.08883))


def lab(pictures: Tensor) -> Tensor:
    """CIE L*a*b* (D65) of sRGB (B, 3, H, W) in [0, 1]: L in [0, 100], a and b about [-110, 110]."""
    linear = torch.where(pictures > 0.04045, ((pictures.clamp_min(0) + 0.055) / 1.055) ** 2.4, pictures / 12.92)
    xyz = torch.einsum("ij,bjhw->bihw", pictures.new_tensor(_XYZ), linear)
    cubic = torch.where(xyz > (6 / 29) ** 3, xyz.clamp_min(0) ** (1 / 3), xyz / (3 * (6 / 29) ** 2) + 4 / 29)
    x, y, z = cubic.unbind(1)
    return torch.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], 1)


def directions(count: int = DIRECTIONS) -> Tensor:
    """Unit vectors spread evenly over the sphere on a Fibonacci spiral, (count, 3)."""
    k = torch.arange(count, dtype=torch.float64) + 0.5
    z, angle = 1 - 2 * k / count, math.pi * (1 + math.sqrt(5)) * k
    radius = (1 - z.square()).sqrt()
    return torch.stack([radius * angle.cos(), radius * angle.sin(), z], 1).float()


def _sampled(pictures: Tensor, count: int) -> Tensor:
    """``count`` pixels of each picture, drawn by a fixed seed: (B, 3, H, W) -> (B, 3, count)."""
    flat = pictures.flatten(2)
    chosen = torch.randint(flat.shape[2], (count,), generator=torch.Generator().manual_seed(0))
    return flat[:, :, chosen.to(flat.device)]


def sliced_wasserstein(a: Tensor, b: Tensor) -> Tensor:
    """Sliced 1-Wasserstein distance (Bonneel et al. 2015) of two colour clouds (B, 3, n), (B,) in the clouds' unit.

    A cloud that is only moved by d has distance |d| / 2: the mean over all directions.
    """
    rays = directions().to(a)
    first, second = ((rays @ cloud).sort(-1).values for cloud in (a, b))
    return (first - second).abs().mean((1, 2))


def lab_distance(a: Tensor, b: Tensor) -> Tensor:
    """``sliced_wasserstein`` of the L*a*b* colours of pictures (B, 3, H, W) of any size, (B,) in Delta E."""
    count = min(PIXELS, max(a[0, 0].numel(), b[0, 0].numel()))
    return sliced_wasserstein(_sampled(lab(a), count), _sampled(lab(b), count))


def histogram(pictures: Tensor) -> Tensor:
    """Share of each of 8 x 8 x 8 RGB cells: (B, 3, H, W) in [0, 1] -> (B, 512)."""
    level = (pictures * LEVELS).long().clamp(0, LEVELS - 1).flatten(2)
    cell = (level[:, 0] * LEVELS + level[:, 1]) * LEVELS + level[:, 2]
    return torch.stack([torch.bincount(row, minlength=LEVELS**3) for row in cell]) / cell.shape[1]


def hellinger(a: Tensor, b: Tensor) -> Tensor:
    """Hellinger distance of the RGB histograms of pictures (B, 3, H, W) of any size, (B,) in [0, 1]."""
    overlap = (histogram(a) * histogram(b)).sqrt().sum(1)
    return (1 - overlap).clamp_min(0).sqrt()


def color_transfer(content: Tensor, style: Tensor) -> Tensor:
    """The content with the style's mean colour and covariance, nothing else changed (Pitie & Kokaram 2007).

    (B, 3, H, W) and (1 or B, 3, h, w) in [0, 1] -> (B, 3, H, W) in [0, 1].
    """
    return monge_kantorovich(content, style).clamp(0, 1)
