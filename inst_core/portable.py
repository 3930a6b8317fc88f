"""Operations that not every GPU has, done on the CPU, where they are quick enough.

Apple's GPUs pool to divisors of a size only (pytorch/pytorch issue 96056), and resize with antialiasing only from
torch 2.8 on (issue 141287). They know no float64 either: what needs it goes to the CPU where it stands.
"""
from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional as F


def shrink(pictures: Tensor, size: Sequence[int], mode: str = "bilinear") -> Tensor:
    """(B, C, H, W) resized to (height, width) with antialiasing, "bilinear" or "bicubic", on its own device."""
    return F.interpolate(pictures.cpu(), tuple(size), mode=mode, antialias=True).to(pictures.device)


def average_pool(features: Tensor, size: Sequence[int]) -> Tensor:
    """(B, C, H, W) averaged over (height, width) areas of nearly the same size, on its own device."""
    return F.adaptive_avg_pool2d(features.cpu(), tuple(size)).to(features.device)
