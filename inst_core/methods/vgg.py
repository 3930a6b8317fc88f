"""VGG features (Simonyan & Zisserman 2015) from any of the weight files that style transfer uses.

A file is recognised by its keys and shapes, and where two trainings share these, by numbers of its first layer; what it
expects (channel order, means, scale, padding, pooling) belongs to its ``Family``.  Layers are called ``relu1_1`` ...
``relu5_4``.
"""
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

CHANNELS = (64, 128, 256, 512, 512)
DEPTHS = {16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}
INPUT = "input"  # the 1x1 convolution in front of the normalised network
MARK_TOLERANCE = 4e-3  # bfloat16 rounds the marks by up to half of it
SHORTEST = "conv5_1"  # files may end here: no method looks deeper


def convolution_names(depth: int) -> list[str]:
    """``conv1_1`` ... of VGG-16 or VGG-19, in order."""
    return [f"conv{block}_{n}" for block, count in enumerate(DEPTHS[depth], 1) for n in range(1, count + 1)]


@dataclass(frozen=True)
class Family:
    """One kind of VGG weight file.

    Attributes:
        keys: {"conv1_1": prefix of its .weight and .bias}, with ``INPUT`` first where there is one.
        mean, scale: network input = (picture - mean) * scale, in the channel order of the file.
        bgr: channel order.
        reflect: reflection instead of zero padding.
        ceil_mode: pooling keeps the odd last row and column.
        marks: ((key, index, value), ...): numbers of the first layer by which this training is told from others with
            the same keys; empty where the keys are its own.
    """

    name: str
    keys: Mapping[str, str]
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    scale: tuple[float, float, float] = (1.0, 1.0, 1.0)
    bgr: bool = False
    reflect: bool = False
    ceil_mode: bool = False
    marks: tuple[tuple[str, tuple[int, ...], float], ...] = ()

    def is_marked(self, state_dict: Mapping[str, Tensor]) -> bool:
        """Whether the numbers are this training's, in whatever number format they are stored."""
        return all(abs(float(state_dict[key][index]) - value) < MARK_TOLERANCE for key, index, value in self.marks)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """{key: shape} that a file must have to be of this family."""
        shapes = {}
        for name, prefix in self.keys.items():
            inputs, outputs, side = _geometry(name)
            shapes |= {f"{prefix}.weight": (outputs, inputs, side, side), f"{prefix}.bias": (outputs,)}
            if name == SHORTEST:
                break
        return shapes


def _geometry(name: str) -> tuple[int, int, int]:
    """(input channels, output channels, kernel side) of a convolution."""
    if name == INPUT:
        return 3, 3, 1
    block, n = int(name[4]), int(name[6])
    outputs = CHANNELS[block - 1]
    if n > 1:
        return outputs, outputs, 3
    return (CHANNELS[block - 2] if block > 1 else 3), outputs, 3


def _numbered(depth: int, pattern: str, indices: Iterable[int]) -> dict[str, str]:
    return {name: pattern.format(i) for name, i in zip(convolution_names(depth), indices, strict=True)}


def _first_row(values: tuple[float, ...]) -> tuple[tuple[str, tuple[int, ...], float], ...]:
    """Marks: the first row of the first kernel."""
    return tuple(("features.0.weight", (0, 0, 0, i), value) for i, value in enumerate(values))


def _first_biases(biases: tuple[float, ...], first: float, blue: int) -> tuple[tuple[str, tuple[int, ...], float], ...]:
    """Marks: the first biases, which know no channel order, and the first number of the kernel for blue."""
    return (*(("features.0.bias", (i,), value) for i, value in enumerate(biases)),
            ("features.0.weight", (0, blue, 0, 0), first))


# Flat indices of convolutions in torch Sequentials, with and without a padding layer before each.
_PADDED_19 = (2, 5, 9, 12, 16, 19, 22, 25, 29, 32, 35, 38, 42, 45, 48, 51)
_PLAIN_19 = (0, 2, 5, 7, 10, 12, 14, 16, 19, 21, 23, 25, 28, 30, 32, 34)
_PLAIN_16 = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)
_IMAGENET_MEAN, _IMAGENET_SCALE = (0.485, 0.456, 0.406), (1 / 0.229, 1 / 0.224, 1 / 0.225)

NORMALISED = Family("normalised VGG-19 (vgg_normalised.pth)", {INPUT: "0"} | _numbered(19, "{}", _PADDED_19),
                    reflect=True, ceil_mode=True)
GATYS = Family("Gatys VGG-19 (vgg_conv.pth)", {name: name for name in convolution_names(19)},
               mean=(0.40760392, 0.45795686, 0.48501961), scale=(255.0, 255.0, 255.0), bgr=True)
TORCHVISION_19 = Family("torchvision VGG-19", _numbered(19, "features.{}", _PLAIN_19),
                        mean=_IMAGENET_MEAN, scale=_IMAGENET_SCALE,
                        marks=_first_row((-0.053474, -0.049257, -0.067942)))
TORCHVISION_16 = Family("torchvision VGG-16", _numbered(16, "features.{}", _PLAIN_16),
                        mean=_IMAGENET_MEAN, scale=_IMAGENET_SCALE, marks=_first_row((-0.5537, 0.1427, 0.5290)))
# Simonyan & Zisserman's own weights under torchvision's keys, for pictures in 0..255 less the mean colour: as
# jcjohnson/pytorch-vgg converted them (vgg19-d01eb7cb.pth, vgg16-00b39a1b.pth; BGR), and as torchvision distributes
# them (VGG16_Weights.IMAGENET1K_FEATURES; RGB).
_CAFFE_MEAN, _CAFFE_SCALE = (103.939 / 255, 116.779 / 255, 123.68 / 255), (255.0, 255.0, 255.0)
_CAFFE_19 = (0.7301776, 0.06493629, 0.03428847, 0.8260386), 0.341195
_CAFFE_16 = (0.73429835, 0.093403675, 0.06775674, 0.8862966), 0.42947057
CAFFE_19 = Family("Caffe VGG-19", _numbered(19, "features.{}", _PLAIN_19), mean=_CAFFE_MEAN, scale=_CAFFE_SCALE,
                  bgr=True, marks=_first_biases(*_CAFFE_19, blue=0))
CAFFE_16 = Family("Caffe VGG-16", _numbered(16, "features.{}", _PLAIN_16), mean=_CAFFE_MEAN, scale=_CAFFE_SCALE,
                  bgr=True, marks=_first_biases(*_CAFFE_16, blue=0))
CAFFE_16_RGB = Family("Caffe VGG-16 in RGB", _numbered(16, "features.{}", _PLAIN_16), mean=_CAFFE_MEAN[::-1],
                      scale=_CAFFE_SCALE, marks=_first_biases(*_CAFFE_16, blue=2))
FAMILIES = (NORMALISED, GATYS, TORCHVISION_19, TORCHVISION_16, CAFFE_19, CAFFE_16, CAFFE_16_RGB)


class VGG(nn.Module):
    """The convolutional part of VGG-16 or VGG-19, as far as the file has it. Weights are frozen float32."""

    def __init__(self, family: Family, state_dict: Mapping[str, Tensor]):
        super().__init__()
        self.family = family
        self.layers: tuple[str, ...] = ()
        self.convolutions = nn.ModuleDict()
        mode = "reflect" if family.reflect else "zeros"
        for name, prefix in family.keys.items():
            if f"{prefix}.weight" not in state_dict:
                break
            inputs, outputs, side = _geometry(name)
            convolution = nn.Conv2d(inputs, outputs, side, padding=side // 2, padding_mode=mode, device="meta")
            parameters = {k: state_dict[f"{prefix}.{k}"].float() for k in ("weight", "bias")}
            convolution.load_state_dict(parameters, assign=True)
            self.convolutions[name] = convolution
            if name != INPUT:
                self.layers += (name.replace("conv", "relu"),)
        self.eval().requires_grad_(False)

    def normalise(self, picture: Tensor) -> Tensor:
        """RGB (B, 3, H, W) in [0, 1] -> network input."""
        x = picture.flip(1) if self.family.bgr else picture
        return (x - self._channels(self.family.mean, x)) * self._channels(self.family.scale, x)

    def denormalise(self, x: Tensor) -> Tensor:
        """Network input -> RGB (B, 3, H, W), not clamped."""
        picture = x / self._channels(self.family.scale, x) + self._channels(self.family.mean, x)
        return picture.flip(1) if self.family.bgr else picture

    @staticmethod
    def _channels(values: tuple[float, ...], like: Tensor) -> Tensor:
        return like.new_tensor(values).view(1, 3, 1, 1)

    def pool(self, x: Tensor, kind: str = "max") -> Tensor:
        """2x2 pooling, ``max`` or ``avg``."""
        pooling = F.max_pool2d if kind == "max" else F.avg_pool2d
        return pooling(x, 2, ceil_mode=self.family.ceil_mode)

    def block(self, number: int, x: Tensor, keep: Collection[str] = (),
              until: str | None = None) -> tuple[dict[str, Tensor], Tensor]:
        """Block 1..5; block 1 takes network input, the others what ``pool`` makes of the block before.

        Returns:
            The activations named in ``keep``, and the last one: that of ``until``, or of the whole block.
        """
        if number == 1 and INPUT in self.convolutions:
            x = self.convolutions[INPUT](x)
        kept = {}
        for name in (layer for layer in self.layers if layer.startswith(f"relu{number}_")):
            x = torch.relu_(self.convolutions[name.replace("relu", "conv")](x))
            if name in keep:
                kept[name] = x
            if name == until:
                break
        return kept, x

    def forward(self, x: Tensor, layers: Iterable[str], pooling: str = "max",
                recompute: bool = False) -> dict[str, Tensor]:
        """Activations of the named layers.

        Args:
            x: (B, 3, H, W) network input, see ``normalise``.
            layers: such as ``relu4_2``.
            pooling: "max" or "avg".
            recompute: activations inside a block are computed again for the backward pass instead of kept.

        Raises:
            ValueError: a layer that this network does not have.
        """
        wanted = set(layers)
        if unknown := wanted - set(self.layers):
            raise ValueError(f"layers {', '.join(sorted(unknown))} are not in {self.family.name}. Use some of "
                             f"{', '.join(self.layers)}.")
        found, deepest = {}, max(wanted, key=self.layers.index)
        for number in range(1, int(deepest[4]) + 1):
            run = partial(self._pooled_block, number, keep=wanted, until=deepest, pooling=pooling)
            kept, x = checkpoint(run, x, use_reentrant=False, preserve_rng_state=False) if recompute else run(x)
            found |= kept
        return found

    def _pooled_block(self, number: int, x: Tensor, keep: Collection[str], until: str,
                      pooling: str) -> tuple[dict[str, Tensor], Tensor]:
        return self.block(number, x if number == 1 else self.pool(x, pooling), keep, until)


def recognise(state_dict: Mapping[str, Tensor]) -> Family:
    """The family of a weight file, by keys and shapes, and by numbers of the first layer.

    Raises:
        ValueError: none fits; says which is closest and what it lacks, or that it is of an unknown training.
    """
    def lacking(family: Family) -> list[str]:
        return [k for k, shape in family.shapes().items() if k not in state_dict or state_dict[k].shape != shape]

    fewest = min(len(lacking(family)) for family in FAMILIES)
    closest = [family for family in FAMILIES if len(lacking(family)) == fewest]
    if fewest == 0:
        if found := next((family for family in closest if family.is_marked(state_dict)), None):
            return found
        trainings = ", ".join(family.name for family in closest)
        raise ValueError(f"The file has the layers of {trainings}, but other numbers in them: it is of another "
                         "training, and which colours and scale it takes is not known. Choose one of these files.")
    known, missing = ", ".join(family.name for family in FAMILIES), lacking(closest[0])
    if fewest == len(closest[0].shapes()):
        raise ValueError("The file is not a VGG network (it starts with "
                         f"{', '.join(list(state_dict)[:3]) or 'nothing'}). Expected one of: {known}.")
    raise ValueError(f"The file looks like {closest[0].name}, but {fewest} tensors are missing or have another "
                     f"shape: {', '.join(missing[:4])}. Expected one of: {known}, without batch normalisation.")


def load(state_dict: Mapping[str, Tensor]) -> VGG:
    """A VGG from any known weight file; ``module.`` prefixes are accepted. Raises ValueError like ``recognise``."""
    state_dict = {k.removeprefix("module."): v for k, v in state_dict.items()}
    return VGG(recognise(state_dict), state_dict)
