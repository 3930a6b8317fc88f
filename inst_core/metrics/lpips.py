"""LPIPS 0.1 (Zhang et al., The Unreasonable Effectiveness of Deep Features as a Perceptual Metric, CVPR 2018)."""
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ..pictures import luminance
from .alexnet import CHANNELS, Features, check_tensors

HEADS = {f"lin{i}.model.1.weight": (1, channels, 1, 1) for i, channels in enumerate(CHANNELS)}


def load_heads(state_dict: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
    """The learned channel weights w_l, (1, C_l, 1, 1) each.

    Raises:
        ValueError: not the AlexNet heads.
    """
    weights = {k.removeprefix("module."): v for k, v in state_dict.items()}
    check_tensors(weights, HEADS, "LPIPS heads for AlexNet", "alex.pth of the lpips package, or lpips-alex.safetensors")
    return tuple(weights[key].detach().float() for key in HEADS)


def unit_channels(features: Tensor) -> Tensor:
    """Each position's channel vector brought to length 1, as the reference code does it."""
    return features / (features.square().sum(1, keepdim=True).sqrt() + 1e-10)


def lpips(a: Features, b: Features, heads: Sequence[Tensor]) -> Tensor:
    """Eq. 1: the weighted squared difference of unit channel vectors, averaged over space, summed over layers.

    Args:
        a, b: AlexNet activations of pictures of one size.
        heads: from ``load_heads``.

    Returns:
        (B,), 0 for equal pictures.
    """
    distances = [(w.to(x) * (unit_channels(x) - unit_channels(y)).square()).sum(1).mean((1, 2))
                 for x, y, w in zip(a, b, heads, strict=True)]
    return torch.stack(distances).sum(0)


def grey(pictures: Tensor) -> Tensor:
    """What LPIPS-grey compares: luminance in all three channels, (B, 3, H, W)."""
    return luminance(pictures).expand(-1, 3, -1, -1)
