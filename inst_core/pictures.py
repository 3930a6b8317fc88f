"""What methods and metrics share: statistics of feature maps, luminance, and checks of pictures (B, 3, H, W)."""
import torch
from torch import Tensor
from torch.nn import functional as F

EPS = 1e-5


def mean_std(features: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (unbiased variance plus 1e-5) of each sample and channel, (B, C, 1, 1)."""
    return features.mean((2, 3), keepdim=True), (features.var((2, 3), keepdim=True) + EPS).sqrt()


def normalise(features: Tensor) -> Tensor:
    """Features with mean 0 and standard deviation 1 in each sample and channel."""
    mean, std = mean_std(features)
    return (features - mean) / std


def gram(features: Tensor) -> Tensor:
    """Gram matrices (Gatys et al. 2016, eq. 3), divided by the number of positions: (B, C, h, w) -> (B, C, C)."""
    flat = features.flatten(2)
    return flat @ flat.mT / flat.shape[2]


def luminance(pictures: Tensor) -> Tensor:
    """Y of YIQ, (B, 1, H, W)."""
    weights = pictures.new_tensor((0.299, 0.587, 0.114)).view(1, 3, 1, 1)
    return (pictures * weights).sum(1, keepdim=True)


def with_luminance(pictures: Tensor, y: Tensor) -> Tensor:
    """The pictures' chroma (I and Q) with another luminance: in YIQ, Y adds equally to R, G and B."""
    return (pictures + y - luminance(pictures)).clamp(0, 1)


def check_pictures(pictures: Tensor, name: str, minimum: int, method: str) -> None:
    """Raises ValueError unless ``pictures`` is a finite (B, 3, H, W) batch with sides of at least ``minimum``."""
    if pictures.ndim != 4 or pictures.shape[1] != 3 or pictures.shape[0] == 0:
        raise ValueError(f"{name} has shape {tuple(pictures.shape)}; expected RGB pictures (B, 3, H, W).")
    height, width = pictures.shape[2:]
    if min(height, width) < minimum:
        raise ValueError(f"{name} is {width} x {height} px; {method} needs at least {minimum} px on each side. Use a "
                         "larger picture, or scale this one up.")
    if not torch.isfinite(pictures).all():
        raise ValueError(f"{name} contains NaN or infinite values. Check the node that made it.")


def check_finite(name: str, latent: Tensor) -> None:
    """Raises ValueError for a latent with NaN or infinite values."""
    if not torch.isfinite(latent).all():
        raise ValueError(f"{name} holds NaN or infinite values; expected finite numbers. Check the node that made it; "
                         "if that is VAE Encode, start ComfyUI with --fp32-vae.")


def check_batches(content: Tensor, style: Tensor) -> None:
    """Raises ValueError unless there is one style picture, or one for each content picture."""
    if style.shape[0] not in (1, content.shape[0]):
        raise ValueError(f"style has {style.shape[0]} pictures, content has {content.shape[0]}. Give one style "
                         "picture, or one for each content picture.")


def padded(picture: Tensor, multiple: int) -> Tensor:
    """Reflected at the right and bottom up to multiples of ``multiple``."""
    height, width = picture.shape[2:]
    return F.pad(picture, (0, -width % multiple, 0, -height % multiple), mode="reflect")
