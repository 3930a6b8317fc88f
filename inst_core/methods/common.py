"""What the feed-forward methods share: the AdaIN decoder, memory limits, files, and the loop over pictures.

Pictures are (B, 3, H, W) RGB in [0, 1], float32: all of these networks normalise variances, which half precision cannot
do.  Results do not depend on ``Limits``, only memory does.
"""
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache, partial

import torch
from torch import Tensor, nn

from ..memory import WithinMemory
from ..pictures import check_batches, check_pictures, padded
from . import vgg

Features = tuple[Tensor, ...]
Progress = Callable[[int, Tensor | None], None]


# ---- memory ----

@dataclass(frozen=True)
class Limits:
    """How much is computed at once.

    Attributes:
        entries: numbers in one attention matrix (content positions x style positions, per head).
        tile: side in pixels of the tiles in which full-resolution convolutions run; a multiple of 16.
    """

    entries: int = 2**23
    tile: int = 512

    def rows(self, columns: int) -> int:
        """Content positions to attend from at once, for ``columns`` style positions."""
        return max(1, self.entries // columns)

    def halved(self) -> "Limits | None":
        """Smaller limits, or None when it would no longer help."""
        if self.entries <= 2**14:
            return None
        return replace(self, entries=self.entries // 4, tile=max(64, self.tile // 2))


def in_rows(function: Callable[..., Tensor], rows: int, *inputs: Tensor) -> Tensor:
    """A position-wise function of (B, n, C) tensors, applied to ``rows`` positions at a time. (B, n, C_out)."""
    batch, n = inputs[0].shape[:2]
    if n <= rows:
        return function(*inputs)
    first = function(*(x[:, :rows] for x in inputs))
    output = first.new_empty(batch, n, first.shape[2])
    output[:, :rows] = first
    del first
    for start in range(rows, n, rows):
        output[:, start:start + rows] = function(*(x[:, start:start + rows] for x in inputs))
    return output


def tiled(function: Callable[[Tensor], Features], x: Tensor, scale: float, tile: int, halo: int) -> Features:
    """``function(x)`` computed tile by tile.

    Exact for convolutional functions: each tile sees ``halo`` more cells on every side than it fills, so padding acts
    only at the picture's own border.

    Args:
        function: (B, C, H, W) -> maps of size ceil(H * scale), ceil(W * scale).
        scale: output cells per input cell, a power of two.
        tile: side of a tile in input cells; like ``halo`` a multiple of 1/scale.
        halo: at least the receptive radius of ``function``.
    """
    height, width = x.shape[2:]
    if height <= tile and width <= tile:
        return function(x)

    def cells(start: int, stop: int, origin: int = 0) -> slice:
        return slice(math.ceil((start - origin) * scale), math.ceil((stop - origin) * scale))

    outputs: Features = ()
    for top in range(0, height, tile):
        for left in range(0, width, tile):
            bottom, right = min(top + tile, height), min(left + tile, width)
            y, x0 = max(0, top - halo), max(0, left - halo)
            maps = function(x[:, :, y:bottom + halo, x0:right + halo])
            if not outputs:
                size = math.ceil(height * scale), math.ceil(width * scale)
                outputs = tuple(m.new_empty(*m.shape[:2], *size) for m in maps)
            for whole, part in zip(outputs, maps, strict=True):
                whole[:, :, cells(top, bottom), cells(left, right)] = \
                    part[:, :, cells(top, bottom, y), cells(left, right, x0)]
    return outputs


# ---- decoder ----

# Layers of a decoder from a quarter of the resolution on: up, two convolutions, up, two convolutions.
_TAIL = 13
_TAIL_HALO = 2  # cells at a quarter of the resolution


def convolution(inputs: int, outputs: int) -> list[nn.Module]:
    """Reflection padding, 3x3 convolution, ReLU: three layers, as the released files count them."""
    return [nn.ReflectionPad2d(1), nn.Conv2d(inputs, outputs, 3), nn.ReLU(inplace=True)]


def quarter_decoder(inputs: int) -> nn.Sequential:
    """AdaIN's decoder (Huang & Belongie 2017) from features at a quarter of the resolution to RGB, not clamped."""
    up = nn.Upsample(scale_factor=2)
    return nn.Sequential(*convolution(inputs, 256), *convolution(256, 256), *convolution(256, 256),
                         *convolution(256, 128), up, *convolution(128, 128), *convolution(128, 64), up,
                         *convolution(64, 64), *convolution(64, 3)[:2])


def adain_decoder() -> nn.Sequential:
    """The whole decoder, from relu4_1 (512 channels, an eighth of the resolution) to RGB, not clamped."""
    return nn.Sequential(*convolution(512, 256), nn.Upsample(scale_factor=2), *quarter_decoder(256))


def decode(decoder: nn.Sequential, features: Tensor, limits: Limits) -> Tensor:
    """Runs one of the decoders above, its high-resolution end in tiles."""
    features = decoder[:-_TAIL](features)
    return tiled(lambda x: (decoder[-_TAIL:](x),), features, 4, limits.tile // 4, _TAIL_HALO)[0]


# ---- files ----

@dataclass(frozen=True)
class Part:
    """One file of a released model.

    Attributes:
        title: what it is, for messages.
        file: its official name.
        shapes: {key: shape} that make a file this part.
        load: state dict -> frozen float32 module.
        named: False for file names of another part with the same keys and shapes.
    """

    title: str
    file: str
    shapes: Callable[[], Mapping[str, tuple[int, ...]]]
    load: Callable[[Mapping[str, Tensor]], nn.Module]
    named: Callable[[str], bool] = lambda name: True

    def fits(self, name: str, state_dict: Mapping[str, Tensor]) -> bool:
        return self.named(name) and not self.lacking(state_dict)

    def lacking(self, state_dict: Mapping[str, Tensor]) -> list[str]:
        """Keys that are missing or have another shape."""
        return [k for k, s in self.shapes().items() if k not in state_dict or tuple(state_dict[k].shape) != s]


def module_part(title: str, file: str, build: Callable[[], nn.Module],
                named: Callable[[str], bool] = lambda name: True) -> Part:
    """A part whose module has the official keys."""
    def empty() -> nn.Module:
        with torch.device("meta"):
            return build()

    @cache
    def shapes() -> dict[str, tuple[int, ...]]:
        return {k: tuple(v.shape) for k, v in empty().state_dict().items()}

    def load(state_dict: Mapping[str, Tensor]) -> nn.Module:
        module = empty()
        module.load_state_dict({k: state_dict[k].float() for k in module.state_dict()}, assign=True)
        return module.eval().requires_grad_(False)

    return Part(title, file, shapes, load, named)


NORMALISED_VGG = Part("normalised VGG-19", "vgg_normalised.pth", vgg.NORMALISED.shapes,
                      partial(vgg.VGG, vgg.NORMALISED))


@dataclass(frozen=True)
class Recipe:
    """Parts that form a model; ``build`` takes their modules in order. ``unused`` parts may lie beside them."""

    name: str
    parts: tuple[Part, ...]
    build: Callable[..., "StyleTransferModel"]
    unused: tuple[Part, ...] = ()


# ---- the loop over pictures ----

class StyleTransferModel(nn.Module, ABC):
    """A feed-forward method: content and style features, their transformation, a decoder.

    Attributes:
        name: the method.
        minimum_content, minimum_style: smallest side in pixels.
        multiple: the network wants content sides to be a multiple of this; ``stylize`` pads and crops.
    """

    name: str
    minimum_content: int
    minimum_style: int
    multiple: int = 1

    @abstractmethod
    def encode_content(self, picture: Tensor, limits: Limits) -> Features:
        """(1, 3, H, W) -> what ``transform`` takes as content."""

    @abstractmethod
    def encode_style(self, picture: Tensor, limits: Limits) -> Features:
        """(1, 3, h, w) -> what ``transform`` takes as style."""

    @abstractmethod
    def transform(self, content: Features, style: Features, limits: Limits) -> Features:
        """The method's idea: content features in the style's manner."""

    @abstractmethod
    def decode(self, features: Features, limits: Limits) -> Tensor:
        """Transformed features -> (1, 3, H, W) RGB, nominally in [0, 1], not clamped."""

    def forward(self, content: Tensor, style: Tensor, alpha: float = 1.0, limits: Limits = Limits()) -> Tensor:
        """One pair, sizes as the network wants them: (1, 3, H, W) and (1, 3, h, w) -> (1, 3, H, W), not clamped."""
        return self.paint(content, self.encode_style(style, limits), alpha, limits)

    def paint(self, content: Tensor, style: Features, alpha: float, limits: Limits) -> Tensor:
        """``forward`` with style features made before."""
        return self.decode(self._transformed(content, style, alpha, limits), limits)

    def _transformed(self, content: Tensor, style: Features, alpha: float, limits: Limits) -> Features:
        features = self.encode_content(content, limits)
        transformed = self.transform(features, style, limits)
        if alpha == 1:
            return transformed
        own = self.transform(features, self.encode_style(content, limits), limits)
        return tuple(torch.lerp(a, b, alpha) for a, b in zip(own, transformed, strict=True))

    @torch.no_grad()
    def stylize(self, content: Tensor, style: Tensor, *, alpha: float = 1.0, limits: Limits = Limits(),
                progress: Progress = lambda done, picture: None) -> Tensor:
        """Content pictures in the manner of style pictures.

        Args:
            content: (B, 3, H, W) in [0, 1].
            style: (1 or B, 3, h, w) in [0, 1], any size.
            alpha: 1 = the method; 0 = the content used as its own style; features blend in between (Huang & Belongie
                2017, eq. 14; Park & Lee 2019).
            limits: what to start with; made smaller when memory runs out.
            progress: called with (pictures done, the last one (1, 3, H, W)); an exception from it ends the run.

        Returns:
            (B, 3, H, W) in [0, 1], on the content's device.

        Raises:
            ValueError: pictures too small or not finite, batches that do not fit, alpha outside [0, 1].
        """
        check_pictures(content, "content", self.minimum_content, self.name)
        check_pictures(style, "style", self.minimum_style, self.name)
        check_batches(content, style)
        if not 0 <= alpha <= 1:
            raise ValueError(f"alpha is {alpha}; expected a number from 0 to 1.")
        device, (height, width) = next(self.parameters()).device, content.shape[2:]
        within_memory, features, results = WithinMemory(limits), (), []
        for i, picture in enumerate(content.split(1)):
            if i < style.shape[0]:
                reference = style[i:i + 1].to(device, torch.float32)
                features = within_memory(partial(self.encode_style, reference))
            whole = padded(picture.to(device, torch.float32), self.multiple)
            painted = within_memory(partial(self.paint, whole, features, alpha))
            results.append(painted[:, :, :height, :width].clamp(0, 1).to(content.device))
            progress(i + 1, results[-1])
        return torch.cat(results)
