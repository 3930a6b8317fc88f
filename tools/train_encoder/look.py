"""The frozen networks that look at pictures, by the names that encoder files know them by."""
import argparse
from collections.abc import Callable

from torch import Tensor

from inst_core import guessing
from inst_core.metrics.alexnet import AlexNet
from inst_core.state_dicts import read_weights


def looking(options: argparse.Namespace) -> Callable[[Tensor], Tensor]:
    """(P, H, W, 3) in [0, 1] -> (P, F).

    Raises:
        ValueError: unknown features, or a network that they need is missing.
    """
    if options.features == guessing.ALEXNET:
        alexnet = AlexNet(read_weights(options.alexnet))
        return lambda image: guessing.alexnet_features(alexnet, image, options.side)
    if options.features != guessing.CLIP_VISION or options.clip_vision is None:
        raise ValueError(f"--features is {options.features!r}; there are alexnet, and clip_vit_l14 with --clip-vision "
                         "FILE.")
    import comfy.clip_vision

    from inst_core import host

    vision = comfy.clip_vision.load(str(options.clip_vision))
    return lambda image: guessing.clip_features(host.vision.picture_features(vision, image))
