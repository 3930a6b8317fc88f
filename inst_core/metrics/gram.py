"""How far textures are apart: Gram matrices of AlexNet features (Gatys, Ecker & Bethge 2015)."""
import torch
from torch import Tensor

from ..pictures import gram
from .alexnet import Features


def gram_distance(a: Features, b: Features) -> Tensor:
    """||G_a - G_b||^2 / (||G_a||^2 + ||G_b||^2), averaged over layers.

    Pictures may have different sizes: a Gram matrix (Gatys et al. 2016, eq. 3, divided by the number of positions)
    does not know where anything is.

    Returns:
        (B,) in [0, 1]: 0 for equal textures, 1 for textures without anything in common.
    """
    return torch.stack([relative_distance(gram(x), gram(y)) for x, y in zip(a, b, strict=True)]).mean(0)


def relative_distance(a: Tensor, b: Tensor) -> Tensor:
    """Squared Frobenius distance of (B, n, m) matrices over the sum of their squared norms, (B,)."""
    total = (a.square() + b.square()).sum((1, 2))
    return (a - b).square().sum((1, 2)) / total.clamp_min(torch.finfo(total.dtype).tiny)
