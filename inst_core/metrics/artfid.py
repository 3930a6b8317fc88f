"""ArtFID (Wright & Ommer, GCPR 2022): how close a set of results is to a set of styles, and each to its content."""
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn
from torchvision.models import inception_v3

from .alexnet import check_tensors

MINIMUM_SIDE = 75  # px; below, Inception has no position left
_COUNTER = "num_batches_tracked"


def load_inception(state_dict: Mapping[str, Tensor]) -> nn.Module:
    """Inception-v3 without its classifier, frozen float32: (B, 3, H, W) in [0, 1] -> (B, 2048).

    Raises:
        ValueError: tensors that are missing or have another shape.
    """
    weights = {k.removeprefix("module."): v for k, v in state_dict.items()}
    with torch.device("meta"):
        network = inception_v3(weights=None, aux_logits=False, transform_input=False, init_weights=False)
    network.fc = nn.Identity()
    expected = {k: tuple(v.shape) for k, v in network.state_dict().items() if not k.endswith(_COUNTER)}
    check_tensors(weights, expected, "Inception-v3", "art_inception.pth of ArtFID")
    counters = {k: torch.zeros((), dtype=torch.long) for k in network.state_dict() if k.endswith(_COUNTER)}
    network.load_state_dict({k: weights[k].float() for k in expected} | counters, assign=True)
    return network.eval().requires_grad_(False)


def mean_covariance(features: Tensor) -> tuple[Tensor, Tensor]:
    """(n, D) with n >= 2 -> mean (D,) and unbiased covariance (D, D), float64."""
    features = features.cpu().double()
    mean = features.mean(0)
    centred = features - mean
    return mean, centred.mT @ centred / (len(features) - 1)


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """FID (Heusel et al. 2017, eq. 6): squared Wasserstein-2 distance of two Gaussians fitted to (n, D) and (m, D).

    The trace of (C_a C_b)^(1/2) is the sum of the singular values of A B^T, where A^T A = C_a and B^T B = C_b: exact
    however few samples there are, and no square root of a singular matrix is needed.

    Raises:
        ValueError: a set of fewer than two.
    """
    if min(len(a), len(b)) < 2:
        raise ValueError(f"FID compares sets: it needs at least 2 results and 2 styles, got {len(a)} and {len(b)}.")
    (mean_a, _), (mean_b, _) = mean_covariance(a), mean_covariance(b)
    roots = [(x.cpu().double() - m) / (len(x) - 1) ** 0.5 for x, m in ((a, mean_a), (b, mean_b))]
    cross = torch.linalg.svdvals(roots[0] @ roots[1].mT).sum()
    total = sum(root.square().sum() for root in roots)
    return float((mean_a - mean_b).square().sum() + total - 2 * cross)


def check_sets(styles: Tensor, results: Tensor) -> None:
    """Raises ValueError unless FID can be taken of these sets (B, 3, H, W): at least two each, none too small."""
    if min(len(styles), len(results)) < 2:
        raise ValueError(f"FID compares sets: it needs at least 2 results and 2 styles, got {len(results)} and "
                         f"{len(styles)}. Connect batches of them, or set art_inception to none.")
    for name, pictures in (("style", styles), ("result", results)):
        height, width = pictures.shape[2:]
        if min(height, width) < MINIMUM_SIDE:
            raise ValueError(f"{name} is {width} x {height} px; FID needs at least {MINIMUM_SIDE} px on each side. "
                             "Scale it up, or set art_inception to none.")


def artfid(lpips: float, fid: float) -> float:
    """Eq. 7: (1 + d_content) (1 + d_style) with d_content the mean LPIPS to the contents and d_style the FID."""
    return (1 + lpips) * (1 + fid)


@torch.no_grad()
def of_sets(inception: nn.Module, styles: Iterable[Tensor], results: Iterable[Tensor],
            lpips: float) -> dict[str, float]:
    """FID of results to styles and ArtFID, from pictures (1, 3, H, W) of any sizes, one at a time.

    Args:
        inception: from ``load_inception``.
        lpips: mean over the results.

    Raises:
        ValueError: a set of fewer than two, or a picture under MINIMUM_SIDE.
    """
    device = next(inception.parameters()).device

    def features(pictures: Iterable[Tensor]) -> Tensor:
        return torch.cat([inception(_large_enough(p).to(device, torch.float32)) for p in pictures])

    fid = frechet_distance(features(results), features(styles))
    return {"FID": fid, "ArtFID": artfid(lpips, fid)}


def _large_enough(picture: Tensor) -> Tensor:
    height, width = picture.shape[2:]
    if min(height, width) < MINIMUM_SIDE:
        raise ValueError(f"A picture is {width} x {height} px; FID needs at least {MINIMUM_SIDE} px on each side.")
    return picture
