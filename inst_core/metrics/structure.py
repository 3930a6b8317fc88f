"""What is where: measures that look at the layout of a picture and little at its colours and textures."""
import torch
from torch import Tensor
from torch.nn import functional as F

SSIM_WINDOW, SSIM_SIGMA = 11, 1.5
SSIM_C3 = 0.03**2 / 2  # for values in [0, 1]
SSIM_SIDE = 256  # the authors' advice: compare at about this short side
FLAT = 1e-4  # edges that are weaker everywhere count as none


def self_similarity(features: Tensor) -> Tensor:
    """Cosine distance between every two positions: (B, C, h, w) -> (B, hw, hw)."""
    unit = F.normalize(features.flatten(2), dim=1)
    return (1 - unit.mT @ unit).clamp_min(0)


def self_similarity_distance(a: Tensor, b: Tensor) -> Tensor:
    """Content loss of Kolkin, Salavon & Shakhnarovich (STROTSS, CVPR 2019), eq. 7, over all positions.

    Columns of the self-distance matrices are normalised to sum 1; here the mean difference is counted in units of the
    mean entry, so that it does not depend on the number of positions.

    Args:
        a, b: (B, C, h, w) features of pictures of one size.

    Returns:
        (B,): 0 for equal layouts. What unrelated pictures have depends on the network: print it beside.
    """
    first, second = (_columns(self_similarity(x)) for x in (a, b))
    return (first - second).abs().mean((1, 2)) * first.shape[1]


def _columns(distances: Tensor) -> Tensor:
    total = distances.sum(1, keepdim=True)
    return distances / total.clamp_min(torch.finfo(total.dtype).eps)


def _blur(x: Tensor) -> Tensor:
    """SSIM's Gaussian window, applied where it fits."""
    offsets = torch.arange(SSIM_WINDOW, dtype=x.dtype, device=x.device) - SSIM_WINDOW // 2
    window = torch.exp(-offsets.square() / (2 * SSIM_SIGMA**2))
    window = window / window.sum()
    return F.conv2d(F.conv2d(x, window.view(1, 1, -1, 1)), window.view(1, 1, 1, -1))


def ssim_structure(a: Tensor, b: Tensor) -> Tensor:
    """Mean of s(x, y), the structure term of SSIM (Wang et al. 2004, eq. 10): local correlation without contrast.

    Args:
        a, b: (B, 1, H, W) luminance in [0, 1]; averaged down to about 256 px first, as the authors advise.

    Returns:
        (B,) in [-1, 1], 1 for equal pictures.
    """
    factor = max(1, round(min(a.shape[2:]) / SSIM_SIDE))
    a, b = F.avg_pool2d(a, factor), F.avg_pool2d(b, factor)
    mean_a, mean_b = _blur(a), _blur(b)
    variance_a, variance_b = (_blur(x * x) - m * m for x, m in ((a, mean_a), (b, mean_b)))
    covariance = _blur(a * b) - mean_a * mean_b
    spread = (variance_a.clamp_min(0) * variance_b.clamp_min(0)).sqrt()
    return ((covariance + SSIM_C3) / (spread + SSIM_C3)).mean((1, 2, 3))


def edges(luminance: Tensor) -> Tensor:
    """Length of the Sobel gradient, (B, 1, H, W) -> (B, 1, H, W)."""
    sobel = luminance.new_tensor([[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]]) / 8
    kernels = torch.stack([sobel, sobel.T])[:, None]
    return F.conv2d(F.pad(luminance, (1, 1, 1, 1), mode="replicate"), kernels).square().sum(1, keepdim=True).sqrt()


def edge_correlation(a: Tensor, b: Tensor) -> Tensor:
    """Pearson correlation of edge strengths of (B, 1, H, W) luminances, (B,) in [-1, 1]; 0 where there are no edges."""
    x, y = (edges(picture).flatten(1) for picture in (a, b))
    x, y = x - x.mean(1, keepdim=True), y - y.mean(1, keepdim=True)
    norms = x.norm(dim=1) * y.norm(dim=1)
    return (x * y).sum(1) / norms.clamp_min(FLAT**2 * x.shape[1])
