"""Pictures on their way in: IMAGE tensors (B, H, W, C) in [0, 1] made ready for CLIP and for the VAE."""
import torch
from einops import rearrange
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2.functional import resize as tv_resize

from .portable import shrink

MULTIPLE = 64  # pixels; the U-Net halves an 8x latent three times
RELEASED_SIZE = 512


def as_rgb(image: Tensor, name: str = "image") -> Tensor:
    """(B, H, W, 3) in [0, 1] from greyscale, RGB or RGBA (composited over white).

    Raises:
        ValueError: not an IMAGE batch, an unknown channel count, or values that are not finite.
    """
    if image.ndim != 4 or image.shape[-1] not in (1, 3, 4) or image.numel() == 0:
        raise ValueError(f"{name} has shape {tuple(image.shape)}; expected an IMAGE batch (pictures, height, width, "
                         "1, 3 or 4 channels). Connect the output of Load Image.")
    if not torch.isfinite(image).all():
        raise ValueError(f"{name} contains NaN or infinite values. Check the node that made it.")
    image = image.clone().float().clamp(0, 1)
    if image.shape[-1] == 1:
        return image.expand(-1, -1, -1, 3)
    if image.shape[-1] == 4:
        alpha = image[..., 3:]
        return image[..., :3] * alpha + (1 - alpha)
    return image


def resize(image: Tensor, height: int, width: int) -> Tensor:
    """Antialiased bicubic resize of (B, H, W, C), clamped to [0, 1]."""
    if image.shape[1:3] == (height, width):
        return image
    x = shrink(rearrange(image, "b h w c -> b c h w"), (height, width), "bicubic")
    return rearrange(x, "b c h w -> b h w c").clamp(0, 1)


def fit_area(image: Tensor, resolution: int, multiple: int = MULTIPLE) -> Tensor:
    """The picture at about ``resolution``^2 pixels, sides multiples of ``multiple``, without distortion.

    Scaled so that both target sides are covered, then centre-cropped by less than one multiple.
    """
    height, width = image.shape[1:3]
    scale = resolution / (height * width) ** 0.5
    target_h = max(multiple, round(height * scale / multiple) * multiple)
    target_w = max(multiple, round(width * scale / multiple) * multiple)
    cover = max(target_h / height, target_w / width)
    image = resize(image, max(target_h, round(height * cover)), max(target_w, round(width * cover)))
    top, left = (image.shape[1] - target_h) // 2, (image.shape[2] - target_w) // 2
    return image[:, top:top + target_h, left:left + target_w]


def random_crops(image: Tensor, resolution: int, count: int, generator: torch.Generator) -> Tensor:
    """Square crops of the pictures at random places, scales and reflections: what they share is texture, not layout.

    The side of a crop is drawn between half and the whole of the picture's short side.

    Args:
        image: (P, H, W, 3); the crops go round the pictures in turn.
        count: how many crops, or one of each picture where there are more.

    Returns:
        (max(count, P), resolution, resolution, 3) in [0, 1].
    """
    height, width = image.shape[1:3]
    crops = []
    for i in range(max(count, len(image))):
        u, v, w, flip = torch.rand(4, generator=generator).tolist()
        side = max(1, round(min(height, width) * (0.5 + 0.5 * u)))
        top, left = round(v * (height - side)), round(w * (width - side))
        crop = image[i % len(image)][None, top:top + side, left:left + side]
        crops.append(resize(crop.flip(2) if flip < 0.5 else crop, resolution, resolution))
    return torch.cat(crops)


def released_square(image: Tensor) -> Tensor:
    """512 x 512 whatever the aspect, as the released data loader squashes pictures."""
    return resize(image, RELEASED_SIZE, RELEASED_SIZE)


def released_cast(image: Tensor) -> Tensor:
    """What CLIP sees in the released code: the [-1, 1] picture cast to uint8, which is nearly black.

    Official ``FrozenCLIPEmbedder.forward``: values inside (-1, 1) become 0, exactly 1 becomes 1, and exactly -1 wraps
    to 255.  (B, H, W, 3) in [0, 1] -> the same shape, k/255.
    """
    levels = torch.zeros_like(image)
    levels[image >= 1] = 1 / 255
    levels[image <= 0] = 1.0
    return levels


def clip_square(image: Tensor, size: int = 224) -> Tensor:
    """Short side to ``size`` and centre crop on 8-bit levels, exactly as ``transformers``' ``CLIPImageProcessor``.

    Done here so that the host, which rounds sides and levels differently, only has to normalise.
    (B, H, W, 3) -> (B, size, size, 3), k/255.
    """
    height, width = image.shape[1:3]
    other = int(size * max(height, width) / min(height, width))
    target = [size, other] if height <= width else [other, size]
    levels = rearrange((image * 255).round().byte().cpu(), "b h w c -> b c h w")
    levels = tv_resize(levels, target, interpolation=InterpolationMode.BICUBIC, antialias=True)
    top, left = (target[0] - size) // 2, (target[1] - size) // 2
    return rearrange(levels[..., top:top + size, left:left + size], "b c h w -> b h w c").float() / 255
