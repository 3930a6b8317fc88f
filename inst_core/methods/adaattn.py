"""AdaAttN: Revisit Attention Mechanism in Arbitrary Neural Style Transfer (Liu et al., ICCV 2021).

Every content position gets the attention-weighted mean and standard deviation of the style's features.  Behaviour of
the authors' AdaAttN: the image model with or without shallow keys and skip connection, and the cosine video model.
"""
from collections.abc import Sequence
from functools import partial

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from ..pictures import normalise
from . import vgg
from .common import (
    NORMALISED_VGG,
    Features,
    Limits,
    Recipe,
    StyleTransferModel,
    convolution,
    decode,
    in_rows,
    module_part,
    quarter_decoder,
    tiled,
)

CHANNELS = vgg.CHANNELS
SKIP_SAMPLES = 4096  # style positions that adaattn_3 looks at
SAMPLES = 65536  # style positions that the other blocks look at
SAMPLE_SEED = 6666
STRIDE = 16  # of relu5_1
UNTILED = 1024  # px; style pictures up to this size squared are encoded whole, whatever their sides
_HALO = 16  # receptive radius of the first two blocks, in pixels, with room


# ---- features ----

def encode(net: vgg.VGG, picture: Tensor, levels: int, limits: Limits) -> Features:
    """relu1_1 ... relu``levels``_1.

    Where sides are multiples of STRIDE, the first two come thinned to a quarter of the resolution: every later use
    resizes them to that or less by nearest neighbour, which then only skips positions.
    """
    x = net.normalise(picture)

    def two_blocks(x: Tensor, thin: bool) -> Features:
        first, x = net.block(1, x, {"relu1_1"})
        first = first["relu1_1"][:, :, ::4, ::4].contiguous() if thin else first["relu1_1"]
        second, x = net.block(2, net.pool(x), {"relu2_1"})
        second = second["relu2_1"][:, :, ::2, ::2].contiguous() if thin else second["relu2_1"]
        return first, second, net.pool(x)

    if x.shape[2] % STRIDE or x.shape[3] % STRIDE:
        *features, x = two_blocks(x, thin=False)
    else:
        *features, x = tiled(partial(two_blocks, thin=True), x, 1 / 4, limits.tile, _HALO)
    for number in range(3, levels + 1):
        wanted = f"relu{number}_1"
        kept, x = net.block(number, x, {wanted}, until=wanted if number == levels else None)
        features.append(kept[wanted])
        x = net.pool(x)
    return tuple(features)


def whole_strides(picture: Tensor) -> Tensor:
    """Large pictures lose up to 15 px at the right and bottom, so that they can be encoded in tiles."""
    height, width = picture.shape[2:]
    if height * width <= UNTILED**2:
        return picture
    return picture[:, :, :height - height % STRIDE, :width - width % STRIDE]


def key(features: Sequence[Tensor], level: int, shallow: bool) -> Tensor:
    """F^{1:x}: normalised features of a level and of all levels above it, at that level's size.

    Args:
        features: relu1_1 ... of one picture.
        level: 3, 4 or 5.
        shallow: without it only the level itself.
    """
    size = features[level - 1].shape[2:]
    above = features[:level - 1] if shallow else ()
    return torch.cat([*(normalise(F.interpolate(f, size)) for f in above), normalise(features[level - 1])], 1)


def key_channels(level: int, shallow: bool) -> int:
    return sum(CHANNELS[:level]) if shallow else CHANNELS[level - 1]


def sampled(positions: Tensor, count: int) -> Tensor:
    """(B, n, C) -> (B, min(n, count), C), drawn as the released code does, without touching the global generator."""
    n = positions.shape[1]
    if n <= count:
        return positions
    index = torch.randperm(n, generator=torch.Generator().manual_seed(SAMPLE_SEED))[:count]
    return positions[:, index.to(positions.device)]


def positions(features: Tensor) -> Tensor:
    return rearrange(features, "b c h w -> b (h w) c")


def project(convolution: nn.Conv2d, x: Tensor) -> Tensor:
    """A 1x1 convolution on (B, n, C)."""
    return F.linear(x, convolution.weight.flatten(1), convolution.bias)


# ---- attention ----

class AdaAttN(nn.Module):
    """Adaptive attention normalisation (section 3.2 of the paper) with softmax attention, not scaled."""

    def __init__(self, level: int, shallow: bool, samples: int = SAMPLES):
        super().__init__()
        keys = key_channels(level, shallow)
        self.f, self.g = nn.Conv2d(keys, keys, 1), nn.Conv2d(keys, keys, 1)
        self.h = nn.Conv2d(CHANNELS[level - 1], CHANNELS[level - 1], 1)
        self.level, self.shallow, self.samples = level, shallow, samples

    def style(self, features: Sequence[Tensor]) -> Features:
        """K (B, m, C_key) and V (B, m, C) of the sampled style positions."""
        k = sampled(positions(key(features, self.level, self.shallow)), self.samples)
        v = sampled(positions(features[self.level - 1]), self.samples)
        return project(self.g, k), project(self.h, v)

    def attend(self, query: Tensor, style: Features) -> Features:
        """Q (B, n, C_key) -> A V and A V^2 with A = softmax(Q K^T), (B, n, C) each."""
        k, v = style
        attention = (query @ k.mT).softmax(-1)
        return attention @ v, attention @ v.square()

    def forward(self, content: Features, style: Features, limits: Limits) -> Tensor:
        """S * norm(F_c) + M, where M = A V and S = sqrt(A V^2 - M^2). (B, C, h, w)."""
        def stylised(keys: Tensor, normalised: Tensor) -> Tensor:
            mean, square = self.attend(project(self.f, keys), style)
            return torch.relu(square - mean.square()).sqrt() * normalised + mean

        features = content[self.level - 1]
        out = in_rows(stylised, limits.rows(style[0].shape[1]),
                      positions(key(content, self.level, self.shallow)), positions(normalise(features)))
        return rearrange(out, "b (h w) c -> b c h w", h=features.shape[2])


class CosineAdaAttN(AdaAttN):
    """The video model's attention: weights 1 + cos, divided by their sum.

    The released code takes relu(1 + cos), where the relu never acts.  So the weights are linear in the query, and sums
    over style positions are made once per style instead of once per content position.
    """

    def style(self, features: Sequence[Tensor]) -> Features:
        """(B, C_key + 1, 1 + 2 C): sums over positions of [K / |K|, 1] x [1, V, V^2]."""
        k, v = super().style(features)
        one = torch.ones_like(k[..., :1])
        k = torch.cat([k / (k.norm(dim=-1, keepdim=True) + 1e-5), one], -1)
        return (k.mT @ torch.cat([one, v, v.square()], -1),)

    def attend(self, query: Tensor, style: Features) -> Features:
        query = query / (query.norm(dim=-1, keepdim=True) + 1e-5)
        total, weighted = (query @ style[0][:, :-1] + style[0][:, -1:]).split([1, style[0].shape[2] - 1], -1)
        return (weighted / (total + 1e-5)).chunk(2, -1)


# ---- models ----

class AttentionBlocks(nn.Module):
    """The released transformer file: AdaAttN at relu4_1 and relu5_1, and the convolution that merges them."""

    def __init__(self, shallow: bool):
        super().__init__()
        self.attn_adain_4_1, self.attn_adain_5_1 = AdaAttN(4, shallow), AdaAttN(5, shallow)
        self.merge_conv = nn.Conv2d(CHANNELS[3], CHANNELS[3], 3)

    def merge(self, relu4_1: Tensor, relu5_1: Tensor) -> Tensor:
        """Both blocks' outputs -> (B, 512, H/8, W/8)."""
        return self.merge_conv(F.pad(relu4_1 + F.interpolate(relu5_1, scale_factor=2), (1, 1, 1, 1), mode="reflect"))


class Decoder(nn.Module):
    """The released decoder; with the skip connection, adaattn_3's output joins at a quarter of the resolution."""

    def __init__(self, skip: bool):
        super().__init__()
        self.decoder_layer_1 = nn.Sequential(*convolution(512, 256), nn.Upsample(scale_factor=2))
        self.decoder_layer_2 = quarter_decoder(512 if skip else 256)


class VideoDecoder(nn.Module):
    """``decoder.*``, the keys of the released video file."""

    def __init__(self):
        super().__init__()
        self.decoder = quarter_decoder(256)


class AdaAttNImage(StyleTransferModel):
    """Content sides must be multiples of 16, which is what ``stylize`` pads to."""

    name = "AdaAttN"
    minimum_content = 32
    minimum_style = 17
    multiple = STRIDE

    def __init__(self, encoder: vgg.VGG, transformer: AttentionBlocks, decoder: Decoder, skip: AdaAttN | None = None):
        super().__init__()
        self.encoder, self.transformer, self.decoder, self.skip = encoder, transformer, decoder, skip

    def encode_content(self, picture: Tensor, limits: Limits) -> Features:
        return encode(self.encoder, picture, 5, limits)

    def encode_style(self, picture: Tensor, limits: Limits) -> Features:
        features = encode(self.encoder, whole_strides(picture), 5, limits)
        blocks = (self.transformer.attn_adain_4_1, self.transformer.attn_adain_5_1, *filter(None, (self.skip,)))
        return tuple(tensor for block in blocks for tensor in block.style(features))

    def transform(self, content: Features, style: Features, limits: Limits) -> Features:
        blocks = self.transformer
        merged = blocks.merge(blocks.attn_adain_4_1(content, style[0:2], limits),
                              blocks.attn_adain_5_1(content, style[2:4], limits))
        return (merged,) if self.skip is None else (merged, self.skip(content, style[4:6], limits))

    def decode(self, features: Features, limits: Limits) -> Tensor:
        merged, *skipped = features
        x = torch.cat([self.decoder.decoder_layer_1(merged), *skipped], 1)
        return decode(self.decoder.decoder_layer_2, x, limits)


class AdaAttNVideo(StyleTransferModel):
    """One block at relu3_1; steady from frame to frame."""

    name = "AdaAttN video"
    minimum_content = 16
    minimum_style = 16
    multiple = STRIDE

    def __init__(self, encoder: vgg.VGG, block: CosineAdaAttN, decoder: VideoDecoder):
        super().__init__()
        self.encoder, self.block, self.decoder = encoder, block, decoder.decoder

    def encode_content(self, picture: Tensor, limits: Limits) -> Features:
        return encode(self.encoder, picture, 3, limits)

    def encode_style(self, picture: Tensor, limits: Limits) -> Features:
        return self.block.style(encode(self.encoder, whole_strides(picture), 3, limits))

    def transform(self, content: Features, style: Features, limits: Limits) -> Features:
        return (self.block(content, style, limits),)

    def decode(self, features: Features, limits: Limits) -> Tensor:
        return decode(self.decoder, features[0], limits)


# ---- released files ----

def _image_recipe(skip: bool, shallow: bool) -> Recipe:
    keys = "shallow" if shallow else "plain"
    parts = (
        NORMALISED_VGG,
        module_part(f"AdaAttN transformer, {keys} keys", "latest_net_transformer.pth",
                    partial(AttentionBlocks, shallow)),
        module_part(f"AdaAttN decoder, {'with' if skip else 'no'} skip connection", "latest_net_decoder.pth",
                    partial(Decoder, skip)),
        module_part(f"AdaAttN block 3, {keys} keys", "latest_net_adaattn_3.pth",
                    partial(AdaAttN, 3, shallow, SKIP_SAMPLES)),
    )
    return Recipe("AdaAttN", parts if skip else parts[:-1], AdaAttNImage)


_VIDEO_PARTS = (
    NORMALISED_VGG,
    module_part("AdaAttN video transformer", "attn_adain_video/latest_net_transformer.pth",
                partial(CosineAdaAttN, 3, True)),
    module_part("AdaAttN video decoder", "attn_adain_video/latest_net_decoder.pth", VideoDecoder),
)

# The released configuration first: messages about missing files speak of the first that is close.
RECIPES = (
    *(_image_recipe(skip, shallow) for skip in (True, False) for shallow in (True, False)),
    Recipe("AdaAttN video", _VIDEO_PARTS, AdaAttNVideo),
)
