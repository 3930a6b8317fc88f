"""HED: Holistically-Nested Edge Detection (Xie & Tu, ICCV 2015), and the contour map that StyleShot makes from it.

Network and keys of ``ControlNetHED.pth`` (lllyasviel/Annotators): the convolutions of VGG-16, a one-channel side output
after each of its five blocks.
"""
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..pictures import check_pictures
from .common import module_part

CHANNELS = (3, 64, 128, 256, 512, 512)
CONVOLUTIONS = (2, 2, 3, 3, 3)
MINIMUM = 16  # pixels; the fifth block sees a sixteenth of the picture
THRESHOLD = 200  # of 255, StyleShot's choice


class Block(nn.Module):
    """Convolutions with ReLU, and the side output of their features."""

    def __init__(self, inputs: int, outputs: int, convolutions: int):
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(outputs if i else inputs, outputs, 3, padding=1)
                                   for i in range(convolutions))
        self.projection = nn.Conv2d(outputs, 1, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        for conv in self.convs:
            x = F.relu(conv(x))
        return x, self.projection(x)


class HED(nn.Module):
    """Edge probabilities at five scales."""

    def __init__(self):
        super().__init__()
        self.norm = nn.Parameter(torch.zeros(1, 3, 1, 1))  # the mean colour, 0..255
        for i, ((inputs, outputs), convolutions) in enumerate(zip(pairwise(CHANNELS), CONVOLUTIONS, strict=True), 1):
            self.add_module(f"block{i}", Block(inputs, outputs, convolutions))

    def forward(self, picture: Tensor) -> list[Tensor]:
        """(B, 3, H, W) RGB, 0..255 -> five side outputs (B, 1, H / 2^i, W / 2^i), before the sigmoid."""
        x, sides = picture - self.norm.to(picture), []
        for i in range(1, len(CHANNELS)):
            x, side = getattr(self, f"block{i}")(x if i == 1 else F.max_pool2d(x, 2))
            sides.append(side)
        return sides


PART = module_part("HED contour detector", "ControlNetHED.pth", HED)


def contours(network: HED, pictures: Tensor, threshold: int = THRESHOLD) -> Tensor:
    """White contours on black, as StyleShot's ``Contour`` annotator draws them.

    Args:
        pictures: (B, 3, H, W) in [0, 1] on the network's device; computed one by one.
        threshold: the mean of the side outputs must be above this, of 255.

    Returns:
        (B, 3, H, W) of 0 and 1.

    Raises:
        ValueError: pictures too small or not finite.
    """
    check_pictures(pictures, "control_image", MINIMUM, "finding contours")
    maps = []
    for picture in pictures.split(1):
        levels = (picture * 255).round()
        sides = [F.interpolate(side, picture.shape[2:], mode="bilinear") for side in network(levels)]
        edges = (torch.stack(sides).mean(0).sigmoid() * 255).floor() > threshold
        dilated = F.max_pool2d(edges.float(), 3, stride=1, padding=1)
        maps.append(dilated.expand(-1, 3, -1, -1))
    return torch.cat(maps)
