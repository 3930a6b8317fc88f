"""Regions of two pictures that show the same kind of thing.

Each picture is divided into regions by its latent and by features of a denoiser; regions of the two are paired by the
features alone, which tell what a place shows (Tang et al. 2023, DIFT).  Dividing both pictures together, by features
alone, put places of one colour together rather than places of one kind.
"""
import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F

COUNT = 6
FLOOR = 0.0  # cosine of two regions' mean features, below which they are not of a kind
SHARPNESS = 8.0  # of the soft masks: exponent per unit of squared distance
ROUNDS = 25


def paired_regions(content: Tensor, style: Tensor, features: tuple[Tensor, Tensor], count: int = COUNT,
                   floor: float = FLOOR) -> tuple[Tensor, Tensor]:
    """Soft masks of regions of one picture, and of their partners in another.

    Args:
        content, style: latents (C, ..., H, W) and (C, ..., H', W').
        features: of both, (C', h, w), of the same network at the same noise level.
        count: regions of each picture, at the most.
        floor: least cosine between mean features of partners.

    Returns:
        (K, H, W) and (K, H', W') in [0, 1], K up to ``count``: row k of one belongs to row k of the other. Places of
        regions without a partner are in no row.
    """
    (in_content, first), (in_style, second) = (divide(z, f, count)
                                               for z, f in zip((content, style), features, strict=True))
    means = [F.normalize(weights.T @ x, dim=-1) for weights, x in ((in_content, first), (in_style, second))]
    best, partner = (means[0] @ means[1].T).max(1)
    kept = best >= floor
    return (rearrange(in_content[:, kept], "(h w) k -> k h w", h=content.shape[-2]),
            rearrange(in_style[:, partner[kept]], "(h w) k -> k h w", h=style.shape[-2]))


def divide(latent: Tensor, features: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Regions of one picture: (n, K) shares of its places, sum 1, and the directions (n, C') of its features.

    Features count without their mean, which tells what the whole picture has in common.
    """
    flat = latent.float().cpu().reshape(latent.shape[0], -1, *latent.shape[-2:]).mean(1)  # frames together
    colours = rearrange(F.avg_pool2d(F.pad(flat.unsqueeze(0), (1,) * 4, mode="replicate"), 3, 1)[0], "c h w -> (h w) c")
    colours = (colours - colours.mean(0)) / colours.std().clamp_min(1e-6)
    places = F.interpolate(features.float().cpu().unsqueeze(0), flat.shape[-2:], mode="bilinear")[0]
    places = rearrange(places, "c h w -> (h w) c")
    directions = F.normalize(places - places.mean(0), dim=-1)
    points = torch.cat([directions, colours], 1)
    distances = torch.cdist(points, k_means(points, count))
    return (-SHARPNESS * distances.square()).softmax(-1), directions


def k_means(points: Tensor, count: int) -> Tensor:
    """Centres (K, C) of points (n, C), K up to ``count``.

    It begins with the point nearest to the mean, then each time with the one farthest from all before: always the same.
    """
    chosen = [points[(points - points.mean(0)).square().sum(1).argmin()]]
    while len(chosen) < min(count, len(points)):
        chosen.append(points[torch.cdist(points, torch.stack(chosen)).amin(1).argmax()])
    centres = torch.stack(chosen)
    for _ in range(ROUNDS):
        nearest = F.one_hot(torch.cdist(points, centres).argmin(1), len(centres)).to(points)
        nearest = nearest[:, nearest.any(0)]
        centres = (nearest.T @ points) / nearest.sum(0)[:, None]
    return centres


def resized_to(regions: Tensor, like: Tensor) -> Tensor:
    """Masks (K, h, w) at the height and width of a latent (..., H, W)."""
    size = tuple(like.shape[-2:])
    return F.interpolate(regions.float().unsqueeze(0), size, mode="bilinear", antialias=True, align_corners=False)[0]
