"""Colour statistics moved from one latent to another, in closed form.

Latents are (B, C, ...); statistics are taken over each picture's positions.  A style batch of one serves every
content; otherwise the batches must have the same length.
"""
from collections.abc import Callable

import torch
from einops import rearrange
from torch import Tensor

EPS = 1e-5


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


def monge_kantorovich(content: Tensor, style: Tensor) -> Tensor:
    """Linear optimal transport between the two Gaussians (Pitie & Kokaram 2007): the smallest move that fits."""
    def transport(c_cov: Tensor, s_cov: Tensor) -> Tensor:
        root, inverse_root = _power(c_cov, 0.5), _power(c_cov, -0.5)
        return inverse_root @ _power(root @ s_cov @ root, 0.5) @ inverse_root
    return _move(content, style, transport)


def whitening_colouring(content: Tensor, style: Tensor) -> Tensor:
    """Whitening and colouring transform (Li et al. 2017): the same covariance, channels may mix more than in MK."""
    return _move(content, style, lambda c_cov, s_cov: _power(s_cov, 0.5) @ _power(c_cov, -0.5))


METHODS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "adain": adain,
    "mk": monge_kantorovich,
    "wct": whitening_colouring,
}


def match_color(content: Tensor, style: Tensor, method: str = "adain", amount: float = 1.0,
                mask: Tensor | None = None) -> Tensor:
    """Content latent with the style latent's colour statistics.

    Args:
        content: (B, C, ...).
        style: (1 or B, C, ...), any spatial size.
        method: "adain" (per channel), "mk" or "wct" (with the covariance of channels).
        amount: 0 = unchanged, 1 = full statistics; values between blend linearly.
        mask: shape of the content, or one that broadcasts to it: 1 where colours change, 0 where they stay bit-equal.

    Raises:
        ValueError: channels or batch lengths that do not fit.
    """
    if content.shape[1] != style.shape[1]:
        raise ValueError(f"content latent has {content.shape[1]} channels, style latent has {style.shape[1]}. "
                         "Encode both pictures with the same VAE.")
    if style.shape[0] not in (1, content.shape[0]):
        raise ValueError(f"style latent batch is {style.shape[0]}, content batch is {content.shape[0]}. "
                         "Give one style latent, or one for each content.")
    if amount == 0:
        return content
    matched = METHODS[method](content, style)
    return content.lerp(matched, amount) if mask is None else content.lerp(matched, amount * mask.to(content))
