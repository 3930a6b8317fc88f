"""AlexNet's convolutional part (Krizhevsky et al. 2012, in torchvision's variant): the eyes of several metrics."""
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# torchvision's key: (input channels, output channels, kernel, stride, padding, pooled first)
CONVOLUTIONS = {
    "features.0": (3, 64, 11, 4, 2, False),
    "features.3": (64, 192, 5, 1, 2, True),
    "features.6": (192, 384, 3, 1, 1, True),
    "features.8": (384, 256, 3, 1, 1, False),
    "features.10": (256, 256, 3, 1, 1, False),
}
CHANNELS = tuple(geometry[1] for geometry in CONVOLUTIONS.values())
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

Features = tuple[Tensor, ...]


def shapes() -> dict[str, tuple[int, ...]]:
    """{key: shape} of the tensors that are used."""
    found = {}
    for key, (inputs, outputs, kernel, *_) in CONVOLUTIONS.items():
        found |= {f"{key}.weight": (outputs, inputs, kernel, kernel), f"{key}.bias": (outputs,)}
    return found


class AlexNet(nn.Module):
    """(B, 3, H, W) RGB in [0, 1] -> activations relu1 ... relu5. Weights are frozen float32.

    Raises:
        ValueError: tensors that are missing or have another shape.
    """

    def __init__(self, state_dict: Mapping[str, Tensor]):
        super().__init__()
        weights = {k.removeprefix("module."): v for k, v in state_dict.items()}
        check_tensors(weights, shapes(), "AlexNet", "torchvision's alexnet, or lpips-alex.safetensors")
        for key in shapes():
            self.register_buffer(key.replace(".", "_"), weights[key].detach().float())

    def forward(self, pictures: Tensor) -> Features:
        mean, std = (pictures.new_tensor(values).view(1, 3, 1, 1) for values in (MEAN, STD))
        x, found = (pictures - mean) / std, []
        for key, (*_, stride, padding, pooled) in CONVOLUTIONS.items():
            x = F.max_pool2d(x, 3, 2) if pooled else x
            name = key.replace(".", "_")
            x = F.conv2d(x, getattr(self, f"{name}_weight"), getattr(self, f"{name}_bias"), stride, padding).relu()
            found.append(x)
        return tuple(found)


def check_tensors(state_dict: Mapping[str, Tensor], expected: Mapping[str, tuple[int, ...]], name: str,
                  source: str) -> None:
    """Raises ValueError unless all expected tensors are there, finite and of the expected shapes."""
    lacking = [k for k, shape in expected.items() if k not in state_dict or tuple(state_dict[k].shape) != shape]
    if lacking:
        raise ValueError(f"The file does not hold {name}: {len(lacking)} of {len(expected)} tensors are missing or "
                         f"have another shape ({', '.join(lacking[:4])}). Choose {source}.")
    if broken := [k for k in expected if not torch.isfinite(state_dict[k]).all()]:
        raise ValueError(f"{name} has NaN or infinite weights ({', '.join(broken[:4])}). Fetch {source} again.")
