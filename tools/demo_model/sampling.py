"""Repainting with the narrow network, for pictures to look at while it is trained: InST in few lines."""
import torch
from torch import Tensor, nn

from .networks import noise_levels, predicted_noise


@torch.no_grad()
def repainted(unet: nn.Module, photograph: Tensor, noise: Tensor, styled: Tensor, empty: Tensor, start: int = 600,
              steps: int = 15, guidance: float = 1.5, invert: bool = False, bfloat16: bool = False) -> Tensor:
    """Latents (B, 4, h, w) of the photographs (latents) repainted: DDIM from timestep ``start`` down.

    Args:
        noise: Gaussian of the photographs' shape.
        styled, empty: contexts (B, 77, 768).
        guidance: 1 is none.
        invert: start at the noise that the model sees in the noised photograph (InST, section 3.3).
    """

    def eps(x: Tensor, timestep: Tensor) -> Tensor:
        both = predicted_noise(unet, torch.cat([x, x]), timestep.expand(2 * len(x)).contiguous(),
                               torch.cat([styled, empty]), bfloat16)
        with_style, without = both.chunk(2)
        return without + guidance * (with_style - without)

    sigmas = noise_levels().to(photograph.device)
    timesteps = torch.linspace(start, 0, steps + 1, device=photograph.device).round().long()
    sigma = sigmas[timesteps[0]]
    if invert:
        at = timesteps[0].expand(len(noise)).contiguous()
        noise = predicted_noise(unet, photograph + sigma * noise, at, styled, bfloat16)
    x = photograph + sigma * noise
    for now, then in zip(timesteps[:-1], timesteps[1:], strict=True):
        direction = eps(x, now)
        x = x + (sigmas[then] - sigmas[now]) * direction
    return x - sigmas[timesteps[-1]] * direction
