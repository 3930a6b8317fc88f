"""What a denoiser's own features say about a picture."""
import torch
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from torch import Tensor

from ..inversion import fresh_noise
from .families import context_width
from .parts import check_parts
from .sampling import level_of, predict_noise
from .style_layers import first_late_block

STRENGTH = 0.6  # of the noise under which pictures are looked at
POOLED = 1280  # width of the pooled text of SDXL; other U-Nets take none
COLOR = "Match Latent Color"


def check_features(model) -> None:
    """Raises ValueError, in one sentence, unless a MODEL's features can be read."""
    if model is None:
        raise ValueError("method is 'semantic', which finds regions with the model's own features, and model is not "
                         "connected. Connect the checkpoint, or choose 'mk' and connect masks.")
    if not isinstance(model.model.diffusion_model, UNetModel):
        raise ValueError("method is 'semantic', which needs a U-Net (SD 1.x, SD 2.x, SDXL); the connected model is a "
                         f"{type(model.model.diffusion_model).__name__}. Choose 'mk' and connect masks, or connect a "
                         "U-Net whose latents are the same.")


def denoiser_features(model, samples: Tensor) -> Tensor:
    """Features (B, C, h, w) of latents (B, C, H, W) at half their resolution, in one forward pass without a prompt.

    They are what enters the first late block of a U-Net's decoder, as in DIFT (Tang et al. 2023).

    Raises:
        ValueError: no U-Net, or latents of another model.
    """
    check_features(model)
    check_parts(model, COLOR, latent=samples)
    late, found = first_late_block(model.model.diffusion_model), []

    def note(hidden: Tensor, skip: Tensor, options: dict) -> tuple[Tensor, Tensor]:
        if options["block"][1] == late:
            found.append(hidden.detach().float().cpu())
        return hidden, skip

    looking = model.clone()
    looking.set_model_output_block_patch(note)
    nothing = [[torch.zeros(1, 77, context_width(model)), {"pooled_output": torch.zeros(1, POOLED)}]]
    predict_noise(looking, nothing, fresh_noise(samples.shape, 0), samples, level_of(model, STRENGTH), 0)
    return found[-1]
