"""What learning minimises, and when it is done.

The loss is the model's own training loss on the painting itself, mean over all elements: the squared error of what its
network predicts, be that noise (Ho et al. 2020, eq. 14; InST eq. 4), velocity (Salimans & Ho 2022, appendix D) or flow
(Lipman et al. 2023, eq. 9).
"""
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from .bank import Batch

PATIENCE, TOLERANCE = 3, 0.05


class ModelSampling(Protocol):
    """The part of the host's ``model_sampling`` used here."""

    def calculate_denoised(self, sigma: Tensor, model_output: Tensor, model_input: Tensor) -> Tensor:
        """D from the network's output at levels ``sigma`` (B,); affine in the output."""


class Denoiser(Protocol):
    """A frozen denoiser. Latents and noise are (B, C, h, w), levels (B,).

    Attributes:
        model_sampling: of the host.
        recompute: activations are computed again for backward instead of being kept.
    """

    model_sampling: ModelSampling
    recompute: bool

    def level(self, time: Tensor) -> Tensor:
        """Noise levels of training times in [0, 1]."""

    def noised(self, latent: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
        """x at levels ``sigma``."""

    def denoised(self, x: Tensor, sigma: Tensor, conditioning, prepared: Sequence[Tensor] = ()) -> Tensor:
        """D(x, sigma, c), (B, C, h, w)."""

    def prepare(self, batch: Batch) -> Sequence[Tensor]:
        """What is the same for a sample whatever the style is, (B, ...) each; to be passed to ``denoised``."""


def output_error(model_sampling: ModelSampling, sigma: Tensor, denoised: Tensor, clean: Tensor) -> Tensor:
    """How far the network's output is from the one that gives the clean latent, in the model's own parametrisation.

    D is affine in the output, D = a + b * output, so the error of the output is the error of D divided by b, which
    ``model_sampling`` is asked for: b is -sigma for eps and flow, -sigma / sqrt(sigma^2 + 1) for v.

    Args:
        sigma: (B,) noise levels. Where the output does not reach D at all (consistency models at their last level),
            the error is 0.
        denoised: D, (B, C, ...).
        clean: the latent that was noised.
    """
    one = denoised.new_ones(len(denoised), *[1] * (denoised.ndim - 1))
    nothing = torch.zeros_like(one)
    slope = (model_sampling.calculate_denoised(sigma, one, nothing)
             - model_sampling.calculate_denoised(sigma, nothing, nothing))
    return (denoised - clean) * torch.where(slope == 0, 0.0, 1 / slope)


def squared_error(denoiser: Denoiser, batch: Batch, conditioning, device: torch.device) -> tuple[Tensor, Tensor]:
    """(squared error of the network's output, denoised prediction), both (B, C, ...) float32.

    Where places of a sample count differently, its error is weighted: the mean is that of what counts.
    """
    latent, noise = batch.latent.to(device), batch.noise.to(device)
    sigma = denoiser.level(batch.time).to(device)
    x = denoiser.noised(latent, noise, sigma)
    denoised = denoiser.denoised(x, sigma, conditioning, tuple(tensor.to(device) for tensor in batch.prepared))
    error = output_error(denoiser.model_sampling, sigma, denoised, latent).square()
    if batch.weight is not None:
        weight = batch.weight.to(device)
        error = error * (weight / weight.flatten(1).mean(1).view(-1, *[1] * (weight.ndim - 1)))
    return error, denoised


def converged(held_out: Sequence[float], patience: int = PATIENCE, tolerance: float = TOLERANCE) -> bool:
    """Whether the last ``patience`` held-out losses brought less than ``tolerance`` of all that was gained.

    The stop rule of Voronov et al. 2023 (DVAR) in its simplest form: on a fixed bank a flat curve means convergence.
    Where nothing was gained yet, nothing has converged.
    """
    if len(held_out) <= patience:
        return False
    before, now = min(held_out[:-patience]), min(held_out)
    return now < held_out[0] and before - now <= tolerance * (held_out[0] - now)
