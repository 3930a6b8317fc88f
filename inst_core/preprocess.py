"""Pictures on their way in: IMAGE tensors (B, H, W, C) in [0, 1] made ready for CLIP and for the VAE."""
import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2.functional import resize as tv_resize

from .portable import shrink

MULTIPLE = 64  # pixels; the U-Net halves an 8x latent three times
RELEASED_SIZE = 512
LEAST_KEPT = 0.01  # share of a painting that a mask has to leave
SAME_ASPECT = 0.05  # relative difference up to which a mask and a picture have the same proportions
TRIES, CLEAN = 32, 0.999  # windows that are drawn for one crop, and the share of it that is enough


def as_rgb(image: Tensor, name: str = "image") -> Tensor:
    """(B, H, W, 3) in [0, 1] from greyscale, RGB or RGBA (composited over white).

    Raises:
        ValueError: not an IMAGE batch, an unknown channel count, or values that are not finite.
    """
    _check_image(image, name)
    image = image.clone().float().clamp(0, 1)
    if image.shape[-1] == 1:
        return image.expand(-1, -1, -1, 3)
    if image.shape[-1] == 4:
        alpha = image[..., 3:]
        return image[..., :3] * alpha + (1 - alpha)
    return image


def _check_image(image: Tensor, name: str) -> None:
    if image.ndim != 4 or image.shape[-1] not in (1, 3, 4) or image.numel() == 0:
        raise ValueError(f"{name} has shape {tuple(image.shape)}; expected an IMAGE batch (pictures, height, width, "
                         "1, 3 or 4 channels). Connect the output of Load Image.")
    if not torch.isfinite(image).all():
        raise ValueError(f"{name} contains NaN or infinite values. Check the node that made it.")


# ---- what of a painting is learned from ----

def paintings(image: Tensor, style_mask: Tensor | None = None) -> Tensor:
    """The paintings, and how much of every pixel is learned from.

    Args:
        image: IMAGE batch; what is transparent in it is left out.
        style_mask: MASK, 1 = left out: one for all paintings, or one for each.

    Returns:
        (P, H, W, 3) in [0, 1] where all of it counts. Otherwise (P, H, W, 4): cut to the rectangle that holds all that
        counts, with smooth colours in the place of what does not, and in the last channel 1 where a pixel counts and 0
        where it does not.

    Raises:
        ValueError: an unusable image, a mask of other proportions or another number, or one that leaves too little.
    """
    pictures = as_rgb(image)
    kept = torch.ones_like(pictures[..., 0])
    if image.shape[-1] == 4:
        alpha = image[..., 3].float().clamp(0, 1).to(kept)
        pictures = torch.where(alpha[..., None] < 1, image[..., :3].float().clamp(0, 1), pictures)
        kept = kept * alpha
    if style_mask is not None:
        kept = kept * (1 - _fitted(style_mask, pictures).to(kept))
    if bool((kept == 1).all()):
        return pictures
    for number, share in enumerate(kept.mean((1, 2)).tolist(), 1):
        if share < LEAST_KEPT:
            raise ValueError(f"style_mask and what is transparent in image leave {100 * share:.1f} % of painting "
                             f"{number} to learn from; at least {100 * LEAST_KEPT:.0f} % is needed. What is white in "
                             "style_mask is left out; connect Invert Mask before it if it is the other way round.")
    counts = kept.amax(0) > 0
    rows, columns = counts.any(1).nonzero()[:, 0], counts.any(0).nonzero()[:, 0]
    box = slice(None), slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1)
    pictures, kept = pictures[box], kept[box].unsqueeze(-1)
    return torch.cat([_filled(pictures, kept), kept], -1)


def _fitted(mask: Tensor, pictures: Tensor) -> Tensor:
    """A MASK at the size and number of pictures (P, H, W, 3): (P, H, W) in [0, 1]."""
    count, (height, width) = len(pictures), pictures.shape[1:3]
    mask = mask.float().reshape(-1, *mask.shape[-2:]) if mask.ndim in (2, 3, 4) else mask
    if mask.ndim != 3 or mask.numel() == 0 or len(mask) not in (1, count):
        raise ValueError(f"style_mask has shape {tuple(mask.shape)}; expected a MASK (masks, height, width), one mask "
                         f"for all paintings or one for each of the {count} in image.")
    if not torch.isfinite(mask).all():
        bad = int((~torch.isfinite(mask)).sum())
        raise ValueError(f"style_mask has {bad} values that are NaN or infinite; expected numbers from 0 to 1. Check "
                         "the node that made it.")
    mask = mask.clamp(0, 1)
    if bool((mask == mask[:, :1, :1]).all()):  # Load Image's for a picture without transparency is 64 x 64 zeros
        return mask[:, :1, :1].expand(count, height, width)
    if abs(mask.shape[1] * width / (mask.shape[2] * height) - 1) > SAME_ASPECT:
        raise ValueError(f"style_mask is {mask.shape[2]} x {mask.shape[1]} pixels and image {width} x {height}; "
                         "expected a mask of the same proportions. Make it from the same picture.")
    if mask.shape[1:] != (height, width):
        mask = shrink(mask.unsqueeze(1), (height, width))[:, 0].clamp(0, 1)
    return mask.expand(count, -1, -1)


def _filled(pictures: Tensor, kept: Tensor) -> Tensor:
    """Pictures (P, H, W, C) with smooth colours, those of what lies around, where ``kept`` (P, H, W, 1) is 0.

    Pull-push (Gortler et al. 1996, "The Lumigraph", section 3.4): means of what counts at ever coarser sizes, then
    from coarse to fine whatever is missing.
    """
    levels = [rearrange(torch.cat([pictures * kept, kept], -1), "p h w c -> p c h w")]
    while max(levels[-1].shape[2:]) > 1:
        levels.append(F.avg_pool2d(levels[-1], 2, ceil_mode=True, count_include_pad=False))
    known = levels[-1][:, :-1] / levels[-1][:, -1:].clamp_min(1e-12)
    for level in reversed(levels[:-1]):
        weight = level[:, -1:]
        own = level[:, :-1] / weight.clamp_min(1e-12)
        share = weight if level is levels[0] else (4 * weight).clamp_max(1)
        known = torch.lerp(F.interpolate(known, level.shape[2:], mode="bilinear"), own, share)
    return rearrange(known, "p c h w -> p h w c").clamp(0, 1)


def latent_weights(kept: Tensor, latent: Tensor) -> Tensor:
    """How much each place of latents (P, C, ..., h, w) counts: (P, 1, ..., h, w) in [0, 1], no more than the least of
    the pixels that it stands for.

    Args:
        kept: (P, H, W, 1), 1 where a pixel counts.
    """
    least = -F.adaptive_max_pool2d(-rearrange(kept, "p h w 1 -> p 1 h w"), latent.shape[-2:])
    return least.reshape(len(kept), *[1] * (latent.ndim - 3), *latent.shape[-2:])


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
        image: (P, H, W, 3); the crops go round the pictures in turn. With a fourth channel as ``paintings`` gives it,
            crops lie where all of it counts, as far as such places are found.
        count: how many crops, or one of each picture where there are more.

    Returns:
        (max(count, P), resolution, resolution, 3 or 4) in [0, 1].
    """
    crops = []
    for i in range(max(count, len(image))):
        crop = _random_crop(image[i % len(image)], generator)
        for _ in range(TRIES - 1 if image.shape[-1] == 4 else 0):
            if crop[..., 3].mean() >= CLEAN:
                break
            crop = max(crop, _random_crop(image[i % len(image)], generator), key=lambda c: float(c[..., 3].mean()))
        crops.append(resize(crop, resolution, resolution))
    return torch.cat(crops)


def _random_crop(picture: Tensor, generator: torch.Generator) -> Tensor:
    """(1, side, side, C) of a picture (H, W, C)."""
    height, width = picture.shape[:2]
    u, v, w, flip = torch.rand(4, generator=generator).tolist()
    side = max(1, round(min(height, width) * (0.5 + 0.5 * u)))
    top, left = round(v * (height - side)), round(w * (width - side))
    crop = picture[None, top:top + side, left:left + side]
    return crop.flip(2) if flip < 0.5 else crop


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
