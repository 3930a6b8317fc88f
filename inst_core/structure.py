"""A photograph's coarse layout, held while it is repainted: ILVR (Choi et al., ICCV 2021), on latents.

ILVR conditions every step on the low frequencies of a reference (eq. 8, its low-pass filter phi shrinks by a factor and
enlarges again).  What it does to the noisy picture is done here to the denoised one, so that every sampler follows.
"""
import math

from torch import Tensor
from torch.nn import functional as F

from .portable import shrink

FACTOR = 2  # of phi, in places of the latent: what is finer than 16 pixels of most models is the painting's


def coarse(latent: Tensor, factor: int = FACTOR) -> Tensor:
    """phi: the low frequencies of (B, C, ..., h, w), in the same shape."""
    pictures = latent.reshape(latent.shape[0], -1, *latent.shape[-2:])
    size = [math.ceil(n / factor) for n in pictures.shape[-2:]]
    return F.interpolate(shrink(pictures, size), pictures.shape[-2:], mode="bilinear").reshape(latent.shape)


def with_coarse_layout(denoised: Tensor, photograph: Tensor) -> Tensor:
    """phi(photograph) + (1 - phi)(denoised), both (B, C, ..., h, w): ILVR, eq. 8."""
    return denoised + coarse(photograph - denoised)


def steps_held(keep: float, steps: int) -> int:
    """How many of a run's first steps hold the layout: the share ``keep`` of them, rounded up."""
    return math.ceil(round(keep * steps, 6))
