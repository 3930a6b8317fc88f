"""CLIP vision and VAE of the host."""
import torch
from torch import Tensor

from .. import preprocess
from ..encoders import PictureFeatures

NO_VISION = ("This encoder looks at the painting through CLIP: connect a CLIP vision model (Load CLIP Vision, "
             "clip-vit-large-patch14), or choose quality 'good' or encoder 'direct', which need none.")


def check_vision(connected: bool) -> None:
    """Raises ValueError, saying what to connect, where CLIP vision is needed and none is connected."""
    if not connected:
        raise ValueError(NO_VISION)


def picture_features(clip_vision, pictures: Tensor, released: bool = False) -> PictureFeatures:
    """What CLIP ViT-L/14 sees in style pictures.

    Equals ``transformers``' ``CLIPModel`` ``image_embeds`` (L2-normalised, after ``CLIPImageProcessor``).

    Args:
        pictures: (P, H, W, 3) in [0, 1].
        released: feed the released code's squashed, nearly black cast instead.

    Raises:
        ValueError: no CLIP vision, or one of another size.
    """
    check_vision(clip_vision is not None)
    if released:
        pictures = preprocess.released_cast(preprocess.released_square(pictures))
    seen = clip_vision.encode_image(preprocess.clip_square(pictures, clip_vision.image_size))
    embed, patches = seen["image_embeds"], seen["penultimate_hidden_states"]
    if embed.ndim != 2 or embed.shape[-1] != 768 or patches.shape[-1] != 1024:
        raise ValueError(f"The connected CLIP vision model gives embeddings {tuple(embed.shape[1:])} over patches of "
                         f"width {patches.shape[-1]}; InST needs CLIP ViT-L/14 (768 over 1024). Load "
                         "clip-vit-large-patch14.")
    embed = embed.float() / embed.float().norm(dim=-1, keepdim=True)
    return PictureFeatures(embed.cpu().clone(), patches.float().cpu().clone())


def encode_latent(vae, model, pictures: Tensor) -> Tensor:
    """(P, H, W, 3) in [0, 1] -> (P, C, h, w) float32 in model space (``process_latent_in`` applied).

    Families whose latents have a time axis get one frame each: (P, C, 1, h, w).

    Raises:
        ValueError: the VAE does not belong to the model.
    """
    latent_format = model.get_model_object("latent_format")
    timed = latent_format.latent_dimensions == 3
    # A VAE with a time axis takes a batch for the frames of one video.
    latent = torch.cat([vae.encode(picture) for picture in pictures.split(1)]) if timed else vae.encode(pictures)
    channels, latent = latent_format.latent_channels, latent.float()
    if latent.ndim != (5 if timed else 4) or latent.shape[1] != channels:
        raise ValueError(f"The connected VAE makes latents {tuple(latent.shape)}; the model takes {channels} channels "
                         f"of {'one frame, ' if timed else ''}height and width. Use the VAE of the same checkpoint.")
    if not torch.isfinite(latent).all():
        raise ValueError("The VAE gave NaN for the style picture. Try --fp32-vae or another VAE.")
    return model.model.process_latent_in(latent)
