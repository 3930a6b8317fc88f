"""What learning minimises: which noise levels it looks at, and the loss there.

The loss is the eps-prediction error of latent diffusion (Rombach et al. 2022, eq. 2; InST eq. 4), mean over all
elements, on the painting itself.
"""
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

TRAIN_TIMESTEPS = 1000
HELD_OUT_SEED = 0x1257
HELD_OUT_LEVELS = 8

Timesteps = Callable[[int, torch.Generator], Tensor]


def uniform_timesteps(count: int, generator: torch.Generator) -> Tensor:
    """(count,) training times in [0, 1], uniform over the 1000 discrete ones; the released recipe."""
    return torch.randint(TRAIN_TIMESTEPS, (count,), generator=generator) / (TRAIN_TIMESTEPS - 1)


def stratified_timesteps(count: int, generator: torch.Generator) -> Tensor:
    """(count,) times in [0, 1], one from each of ``count`` equal strata (Kingma et al. 2021, appendix I.1)."""
    offset = torch.rand((), generator=generator)
    return (torch.arange(count) + offset) / count


def converged(held_out: Sequence[float], patience: int = 3, tolerance: float = 2e-3) -> bool:
    """Whether the last ``patience`` held-out losses brought less than ``tolerance`` of the first one.

    The stop rule of Voronov et al. 2023 (DVAR) in its simplest form: on a fixed bank a flat curve means convergence.
    """
    if len(held_out) <= patience:
        return False
    return min(held_out[:-patience]) - min(held_out[-patience:]) < tolerance * held_out[0]


@dataclass(frozen=True)
class Batch:
    """One step's samples: clean latents and noise (B, C, h, w), training times (B,) in [0, 1]."""

    latent: Tensor
    noise: Tensor
    time: Tensor


def draw_batch(views: Tensor, count: int, timesteps: Timesteps, generator: torch.Generator) -> Batch:
    """``count`` random views (V, C, h, w) of the painting with fresh noise and levels."""
    chosen = torch.randint(len(views), (count,), generator=generator)
    noise = torch.randn((count, *views.shape[1:]), generator=generator)
    return Batch(views[chosen], noise, timesteps(count, generator))


def held_out_batches(views: Tensor, size: int) -> Iterator[Batch]:
    """A fixed bank that is never trained on: the same noise and evenly spaced levels in every run.

    Only on a fixed bank is the loss comparable between steps (Voronov et al. 2023, "Is This Loss Informative?").
    """
    generator = torch.Generator().manual_seed(HELD_OUT_SEED)
    latent = views[torch.arange(HELD_OUT_LEVELS) % len(views)]
    noise = torch.randn(latent.shape, generator=generator)
    time = (torch.arange(HELD_OUT_LEVELS) + 0.5) / HELD_OUT_LEVELS
    for part in torch.arange(HELD_OUT_LEVELS).split(size):
        yield Batch(latent[part], noise[part], time[part])


def noise_error(denoiser, batch: Batch, conditioning, device: torch.device) -> tuple[Tensor, Tensor]:
    """(squared error of the noise prediction, denoised prediction), both (B, C, h, w) float32."""
    latent, noise = batch.latent.to(device), batch.noise.to(device)
    sigma = denoiser.level(batch.time).to(device)
    x = denoiser.noised(latent, noise, sigma)
    denoised = denoiser.denoised(x, sigma, conditioning)
    return (denoiser.predicted_noise(x, sigma, denoised) - noise).square(), denoised
