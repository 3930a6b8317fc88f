"""Repainting with the narrow network, for pictures to look at while it is trained: InST in few lines."""
import torch
from torch import Tensor, nn

from .networks import noise_levels, predicted_noise

START, STEPS, GUIDANCE = 600, 15, 1.5


@torch.no_grad()
def repainted(unet: nn.Module, photograph: Tensor, noise: Tensor, styled: Tensor, empty: Tensor, invert: bool,
              bfloat16: bool) -> Tensor:
    """Latents (B, 4, h, w) of the photographs (latents) repainted: DDIM from timestep START down.

    Args:
        noise: Gaussian of the photographs' shape.
        styled, empty: contexts (B, 77, 768).
        invert: start at the noise that the model sees in the noised photograph (InST, section 3.3).
    """
    sigmas = noise_levels().to(photograph.device)
    timesteps = torch.linspace(START, 0, STEPS + 1, device=photograph.device).round().long()
    sigma, at = sigmas[timesteps], timesteps[:, None].expand(-1, len(photograph)).contiguous()
    if invert:
        noise = predicted_noise(unet, photograph + sigma[0] * noise, at[0], styled, bfloat16)
    x = photograph + sigma[0] * noise
    for i in range(STEPS):
        with_style, without = (predicted_noise(unet, x, at[i], context, bfloat16) for context in (styled, empty))
        direction = without + GUIDANCE * (with_style - without)
        x = x + (sigma[i + 1] - sigma[i]) * direction
    return x - sigma[-1] * direction
