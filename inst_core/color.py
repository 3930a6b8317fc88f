"""Colour statistics moved from one latent to another, in closed form.

Latents are (B, C, ...); statistics are taken over each picture's positions, or over those of a region.  A style batch
of one serves every content; otherwise the batches must have the same length.
"""
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor

from .pictures import check_finite
from .regions import paired_regions, resized_to

EPS = 1e-5
LEAST = 1e-3  # of a picture's positions: a smaller region has no statistics
OF_WHOLE = 0.05  # of the whole picture's covariance, added to a region's own: flat regions have hardly any


def _positions(latent: Tensor) -> Tensor:
    return rearrange(latent, "b c ... -> b c (...)")


def _mean_covariance(x: Tensor) -> tuple[Tensor, Tensor]:
    """(B, C, 1) mean and (B, C, C) unbiased covariance, regularised by EPS on the diagonal."""
    mean = x.mean(-1, keepdim=True)
    centred = x - mean
    covariance = centred @ centred.mT / max(x.shape[-1] - 1, 1)
    return mean, covariance + EPS * torch.eye(x.shape[1], dtype=x.dtype, device=x.device)


def _power(matrix: Tensor, exponent: float) -> Tensor:
    """Power of symmetric positive matrices (B, C, C)."""
    values, vectors = torch.linalg.eigh(matrix)
    return (vectors * values.clamp_min(1e-12).pow(exponent).unsqueeze(-2)) @ vectors.mT


def adain(content: Tensor, style: Tensor) -> Tensor:
    """Channel mean and standard deviation (Huang & Belongie 2017), as the InST notebook applies it to latents.

    Unbiased variance plus 1e-5, like the official code.
    """
    c, s = _positions(content), _positions(style)
    c_std = (c.var(-1, keepdim=True) + EPS).sqrt()
    s_std = (s.var(-1, keepdim=True) + EPS).sqrt()
    out = (c - c.mean(-1, keepdim=True)) / c_std * s_std + s.mean(-1, keepdim=True)
    return out.reshape(content.shape)


def _move(content: Tensor, style: Tensor, transport: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """mean_s + T (content - mean_c) with T from the two covariances, in float64, which Apple's GPUs do not know."""
    c, s = (_positions(x).cpu().double() for x in (content, style))
    (c_mean, c_cov), (s_mean, s_cov) = _mean_covariance(c), _mean_covariance(s)
    return (transport(c_cov, s_cov) @ (c - c_mean) + s_mean).to(content).reshape(content.shape)


def mk_transport(c_cov: Tensor, s_cov: Tensor) -> Tensor:
    """The symmetric matrix that takes one covariance to the other (Pitie & Kokaram 2007): the smallest move."""
    root, inverse_root = _power(c_cov, 0.5), _power(c_cov, -0.5)
    return inverse_root @ _power(root @ s_cov @ root, 0.5) @ inverse_root


def wct_transport(c_cov: Tensor, s_cov: Tensor) -> Tensor:
    """Whitening and colouring (Li et al. 2017)."""
    return _power(s_cov, 0.5) @ _power(c_cov, -0.5)


def adain_transport(c_cov: Tensor, s_cov: Tensor) -> Tensor:
    """Each channel by itself (Huang & Belongie 2017)."""
    return torch.diag_embed((s_cov.diagonal(dim1=-2, dim2=-1) / c_cov.diagonal(dim1=-2, dim2=-1)).sqrt())


def monge_kantorovich(content: Tensor, style: Tensor) -> Tensor:
    """Linear optimal transport between the two Gaussians (Pitie & Kokaram 2007): the smallest move that fits."""
    return _move(content, style, mk_transport)


def whitening_colouring(content: Tensor, style: Tensor) -> Tensor:
    """Whitening and colouring transform (Li et al. 2017): the same covariance, channels may mix more than in MK."""
    return _move(content, style, wct_transport)


METHODS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "adain": adain,
    "mk": monge_kantorovich,
    "wct": whitening_colouring,
}
SEMANTIC = "semantic"  # by regions that ``regions.paired_regions`` finds, each by Monge-Kantorovich
TRANSPORTS = {"adain": adain_transport, "mk": mk_transport, "wct": wct_transport, SEMANTIC: mk_transport}


class Regions(NamedTuple):
    """Regions of a content and of its style: row k of one takes the colours of row k of the other.

    Attributes:
        content, style: (K, H, W) weights in [0, 1] at the latents' sizes.
    """

    content: Tensor
    style: Tensor

    def left(self) -> "Regions":
        """What is in no region, as one; all of a style that is in regions completely."""
        content, style = (1 - x.sum(0, keepdim=True).clamp_max(1) for x in self)
        return Regions(content, style if style.mean() >= LEAST else torch.ones_like(style))


def masked_regions(content: Tensor, style: Tensor, content_mask: Tensor | None, style_mask: Tensor | None) -> Regions:
    """The regions of two masks (K, h, w) in [0, 1], at the sizes of the latents. Where masks overlap they share.

    Raises:
        ValueError: one mask without the other, other numbers of regions, or a region to which the style has no place.
    """
    if (content_mask is None) != (style_mask is None):
        given, other = ("content_mask", "style_mask") if style_mask is None else ("style_mask", "content_mask")
        raise ValueError(f"{given} is connected and {other} is not. They belong together: what is white in "
                         "content_mask takes the colours of what is white in style_mask. Connect both, or neither.")
    if content_mask is None:
        return Regions(content.new_zeros(0, *content.shape[-2:]), style.new_zeros(0, *style.shape[-2:]))
    masks = []
    for name, mask, latent in (("content_mask", content_mask, content), ("style_mask", style_mask, style)):
        mask = mask.reshape(-1, *mask.shape[-2:])
        if not torch.isfinite(mask).all():
            raise ValueError(f"{name} has values that are not numbers. Expected 0 (black) to 1 (white).")
        mask = resized_to(mask.cpu().clamp(0, 1), latent)
        masks.append(mask / mask.sum(0, keepdim=True).clamp_min(1))
    if len(masks[0]) != len(masks[1]):
        raise ValueError(f"content_mask holds {len(masks[0])} regions and style_mask {len(masks[1])}. Expected as many "
                         "in both: region k of one takes the colours of region k of the other.")
    for k, (asked, found) in enumerate(zip(*masks, strict=True)):
        if asked.mean() >= LEAST > found.mean():
            raise ValueError(f"region {k + 1} of style_mask is empty, so there are no colours for region {k + 1} of "
                             "content_mask. Expected: white where the painting has the colours that are wanted.")
    return Regions(*masks)


def semantic_regions(content: Tensor, style: Tensor, masks: Regions, left: Regions,
                     features: tuple[Tensor, Tensor]) -> Regions:
    """``masks``, and in what is ``left`` of them the regions that the features (C, h, w) of both pictures show."""
    found = paired_regions(content, style, features)
    return Regions(*(torch.cat([given, free * more.to(free)])
                     for given, free, more in zip(masks, left, found, strict=True)))


def move_by_regions(content: Tensor, style: Tensor, regions: Regions, left: Regions, transport: Callable) -> Tensor:
    """Each region's mean and covariance become those of its partner; what is in none follows ``left``.

    Args:
        content, style: one picture each, (C, ...).
        left: one region that gives the transport of all places in no region.
    """
    c, s = (rearrange(x.cpu().double(), "c ... -> c (...)") for x in (content, style))
    pairs = [_weights(Regions(*(x[k:k + 1] for x in regions)), content, style) for k in range(len(regions.content))]
    whole = _weights(left, content, style)
    shares = [pair[0] for pair in pairs]
    rest = (1 - sum(shares, torch.zeros_like(whole[0]))).clamp_min(0)
    spread = [OF_WHOLE * _weighted(x, torch.ones_like(x[0]))[1] for x in (c, s)]
    moved = torch.zeros_like(c)
    for share, (in_content, in_style) in zip([rest, *shares], [whole, *pairs], strict=True):
        if in_content.mean() < LEAST or in_style.mean() < LEAST:
            in_content, in_style = whole
        (c_mean, c_cov), (s_mean, s_cov) = _weighted(c, in_content), _weighted(s, in_style)
        matrix = transport(c_cov + spread[0], s_cov + spread[1])
        moved += share * (matrix @ (c - c_mean) + s_mean)
    return moved.to(content).reshape(content.shape)


def _weights(regions: Regions, *latents: Tensor) -> tuple[Tensor, ...]:
    """Of the positions of latents (C, ..., H, W): one region's weights, for every frame of a clip."""
    return tuple(region[0].cpu().double().expand(latent.shape[1:]).flatten()
                 for region, latent in zip(regions, latents, strict=True))


def _weighted(x: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """(C, 1) mean and (C, C) covariance of (C, n) positions with weights (n,), regularised by EPS on the diagonal."""
    weights = weights / weights.sum().clamp_min(EPS)
    mean = (x * weights).sum(-1, keepdim=True)
    centred = x - mean
    return mean, (centred * weights) @ centred.mT + EPS * torch.eye(len(x), dtype=x.dtype)


def match_color(content: Tensor, style: Tensor, method: str = "adain", amount: float = 1.0, mask: Tensor | None = None,
                content_mask: Tensor | None = None, style_mask: Tensor | None = None,
                features: Callable[[Tensor], Tensor] | None = None) -> Tensor:
    """Content latent with the style latent's colour statistics.

    Args:
        content: (B, C, ...).
        style: (1 or B, C, ...), any spatial size.
        method: "adain" (per channel), "mk" or "wct" (with the covariance of channels), or "semantic": "mk" for each of
            the regions that ``features`` show.
        amount: 0 = unchanged, 1 = full statistics; values between blend linearly.
        mask: shape of the content, or one that broadcasts to it: 1 where colours change, 0 where they stay bit-equal.
        content_mask, style_mask: (K, h, w), regions of every content and of every style that belong together. They come
            before what ``method`` finds, which does the rest.
        features: of latents (B, C, ...): (B, C', h, w), for "semantic".

    Raises:
        ValueError: an unknown method, channels, batch lengths or masks that do not fit, or values that are not finite.
    """
    if content.shape[1] != style.shape[1]:
        raise ValueError(f"content latent has {content.shape[1]} channels, style latent has {style.shape[1]}. "
                         "Encode both pictures with the same VAE.")
    if style.shape[0] not in (1, content.shape[0]):
        raise ValueError(f"style latent batch is {style.shape[0]}, content batch is {content.shape[0]}. "
                         "Give one style latent, or one for each content.")
    if method not in TRANSPORTS:
        raise ValueError(f"method is {method!r}; expected one of {', '.join(TRANSPORTS)}.")
    for name, latent in (("content latent", content), ("style latent", style)):
        check_finite(name, latent)
    if amount == 0:
        return content
    masks = masked_regions(content, style, content_mask, style_mask)
    if method in METHODS and not len(masks.content):
        matched = METHODS[method](content, style)
    else:
        matched = _by_regions(content, style, method, masks, features)
    return content.lerp(matched, amount) if mask is None else content.lerp(matched, amount * mask.to(content))


def _by_regions(content: Tensor, style: Tensor, method: str, masks: Regions,
                features: Callable[[Tensor], Tensor] | None) -> Tensor:
    seen: Sequence = [features(x) for x in (content, style)] if method == SEMANTIC else ()
    left, moved = masks.left(), []
    for i, picture in enumerate(content):
        painting, regions = style[i % len(style)], masks
        if seen:
            regions = semantic_regions(picture, painting, masks, left, (seen[0][i], seen[1][i % len(style)]))
        found = move_by_regions(picture, painting, regions, left, TRANSPORTS[method])
        moved.append(to_whole_palette(found, painting, masks, left) if seen else found)
    return torch.stack(moved)


def to_whole_palette(moved: Tensor, style: Tensor, masks: Regions, left: Regions) -> Tensor:
    """What regions that were found got wrong together: all that is ``left`` of the masks takes the mean and covariance
    that are left in the style, with the smallest move. In the masks (C, ..., H, W) stays as it is."""
    nothing = Regions(masks.content[:0], masks.style[:0])
    whole = move_by_regions(moved, style, nothing, left, mk_transport)
    return moved.lerp(whole, left.content.to(moved))
