"""CFSD, content feature structural distance (Chung, Hyun & Heo, Style Injection in Diffusion, CVPR 2024)."""
import torch
from torch import Tensor
from torch.nn import functional as F

LAYER = "relu3_1"
ROWS = 2**22  # entries of the similarity matrix at once


def cfsd(content: Tensor, result: Tensor) -> Tensor:
    """KL(S_content || S_result), summed over the rows of the patch similarities S = softmax(F F^T / C^2).

    As in the authors' evaluation code, which divides the features by their number of channels C before they are
    multiplied with each other.

    Args:
        content, result: (B, C, h, w) relu3_1 of VGG-19, of pictures of one size.

    Returns:
        (B,) on the CPU, 0 for equal structure. Grows with the number of positions: compare at one picture size only.
    """
    first, second = (x.flatten(2).mT / x.shape[1] for x in (content, result))  # (B, hw, C)
    step = max(1, ROWS // first.shape[1])
    total = torch.zeros(len(first), dtype=torch.float64)  # on the CPU: Apple's GPUs know no float64
    for start in range(0, first.shape[1], step):
        p, q = (F.log_softmax(x[:, start:start + step] @ x.mT, -1) for x in (first, second))
        total += (p.exp() * (p - q)).sum((1, 2)).cpu()
    return total.float()
