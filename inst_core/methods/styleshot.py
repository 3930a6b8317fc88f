"""StyleShot: A Snapshot on Any Style (Gao et al., 2024) for Stable Diffusion 1.5.

A *style-aware encoder* sees a picture as patches of three sizes, with one network for each size, and makes six style
tokens of it.  Each cross-attention of the U-Net attends to the tokens beside the text, as in IP-Adapter (Ye et al.
2023).  A *content-fusion encoder*, which is a ControlNet with the tokens in place of the text, brings in the content.

Behaviour and keys of the authors' release (open-mmlab/StyleShot).  Sizes are read from the files, so that smaller
networks of the same build load too.  Pictures are (B, 3, H, W) RGB in [0, 1].
"""
import re
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2.functional import center_crop, pil_to_tensor, resize, to_pil_image

from ..pictures import check_pictures

StateDict = Mapping[str, Tensor]

SIDE = 512  # pixels; the encoder sees the central square
LEVELS = ("high", "middle", "low")  # patches of 128, 64 and 32 px
PATCHES = (8, 16, 32)  # of each level
HEADS = 16  # of the encoder's transformer; in ViT-H 80 channels each
_LONGEST = 4  # sides; what is farther from the centre never reaches the square

# ---- the style picture as patches ----


def style_square(pictures: Tensor) -> Tensor:
    """Short side to 512 px (Pillow's bilinear filter on 8-bit levels), centre crop. (B, 3, 512, 512) on the CPU."""
    short = min(pictures.shape[2:])
    central = center_crop(pictures, [min(side, _LONGEST * short) for side in pictures.shape[2:]])
    resized = (resize(to_pil_image((picture * 255).round().byte().cpu()), [SIDE], InterpolationMode.BILINEAR)
               for picture in central)
    return torch.stack([pil_to_tensor(center_crop(picture, [SIDE, SIDE])) for picture in resized]).float() / 255


def quarters(pieces: Tensor) -> Tensor:
    """(B, n, 3, s, s) -> (B, n, 4, 3, s/2, s/2): top left, bottom left, top right, bottom right."""
    return rearrange(pieces, "b n c (i h) (j w) -> b n (j i) c h w", i=2, j=2)


def multi_scale_patches(square: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Section 3.2: patches of three sizes that together tile the picture once.

    Of the quarters of every piece two become patches of that size; the other two are divided further.

    Args:
        square: (B, 3, 512, 512).

    Returns:
        High (B, 8, 3, 128, 128), middle (B, 16, 3, 64, 64) and low (B, 32, 3, 32, 32).
    """
    rest = rearrange(quarters(square.unsqueeze(1)), "b n k c h w -> b (n k) c h w")
    levels = []
    for _ in LEVELS:
        pieces = quarters(rest)
        levels.append(pieces[:, :, (0, 3)].flatten(1, 2))
        rest = pieces[:, :, (1, 2)].flatten(1, 2)
    high, middle, low = levels
    return high, middle, low


def shuffled_order(seed: int) -> tuple[Tensor, ...]:
    """A random order of the patches of each level; the draws of the released code after ``torch.manual_seed(seed)``."""
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randperm(count, generator=generator) for count in PATCHES)


# ---- style-aware encoder ----

# Residual blocks of each level: (channels as multiples of the first convolution's, halves the picture).
_BLOCKS = (
    ((1, False), (2, False), (2, True), (2, True), (4, True), (4, False)),
    ((1, False), (2, False), (2, True), (4, True), (4, False)),
    ((1, False), (2, False), (4, True), (4, False)),
)
_UNSHUFFLE = 8


class ResidualBlock(nn.Module):
    """y = x + conv1x1(ReLU(conv3x3(x))), after a change of resolution and channels."""

    def __init__(self, inputs: int, outputs: int, halve: bool, ops: ModuleType):
        super().__init__()
        self.halve = halve
        self.in_conv = ops.Conv2d(inputs, outputs, 1) if inputs != outputs else None
        self.block1 = ops.Conv2d(outputs, outputs, 3, padding=1)
        self.block2 = ops.Conv2d(outputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        if self.halve:
            x = F.avg_pool2d(x, 2)
        if self.in_conv is not None:
            x = self.in_conv(x)
        return x + self.block2(F.relu(self.block1(x)))


class PatchEncoder(nn.Module):
    """One vector for each patch of one size. (N, 3, s, s) in [-1, 1] -> (N, width)."""

    def __init__(self, width: int, blocks: Sequence[tuple[int, bool]], ops: ModuleType):
        super().__init__()
        base = width // 4
        self.conv_in = ops.Conv2d(3 * _UNSHUFFLE**2, base, 3, padding=1)
        inputs = [base, *(base * multiple for multiple, _ in blocks)]
        self.body = nn.ModuleList(ResidualBlock(inputs[i], base * multiple, halve, ops)
                                  for i, (multiple, halve) in enumerate(blocks))
        self.adapter = ops.Linear(width, width)

    def forward(self, patches: Tensor) -> Tensor:
        x = self.conv_in(F.pixel_unshuffle(patches, _UNSHUFFLE))
        for block in self.body:
            x = block(x)
        return self.adapter(F.avg_pool2d(x, 2).flatten(1))


class SelfAttention(nn.Module):
    def __init__(self, width: int, ops: ModuleType):
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (ops.Linear(width, width) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        return self.out_proj(attention(self.q_proj(x), self.k_proj(x), self.v_proj(x), HEADS))


class FeedForward(nn.Module):
    def __init__(self, width: int, hidden: int, ops: ModuleType):
        super().__init__()
        self.fc1, self.fc2 = ops.Linear(width, hidden), ops.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class TransformerLayer(nn.Module):
    """A layer of CLIP's vision transformer, norms first."""

    def __init__(self, width: int, hidden: int, ops: ModuleType):
        super().__init__()
        self.layer_norm1, self.layer_norm2 = ops.LayerNorm(width), ops.LayerNorm(width)
        self.self_attn, self.mlp = SelfAttention(width, ops), FeedForward(width, hidden, ops)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.self_attn(self.layer_norm1(x))
        return x + self.mlp(self.layer_norm2(x))


def attention(query: Tensor, key: Tensor, value: Tensor, heads: int) -> Tensor:
    """Multi-head attention. (B, n, heads * d), (B, m, heads * d) twice -> (B, n, heads * d)."""
    split = (rearrange(x, "b n (h d) -> b h n d", h=heads) for x in (query, key, value))
    return rearrange(F.scaled_dot_product_attention(*split), "b h n d -> b n (h d)")


def _count(weights: StateDict, prefix: str) -> int:
    """Number of modules in a list, by the highest index after ``prefix``."""
    numbers = (re.match(r"(\d+)\.", key[len(prefix):]) for key in weights if key.startswith(prefix))
    return max((int(number[1]) + 1 for number in numbers if number), default=0)


class EncoderSizes(NamedTuple):
    """Sizes of a style-aware encoder; the defaults are the released ones (CLIP ViT-H/14)."""

    width: int = 1280
    layers: int = 32
    hidden: int = 5120
    embed: int = 1024

    @classmethod
    def of(cls, weights: StateDict) -> "EncoderSizes":
        """Read from a file. A missing tensor means the released size, so that it is missed and not adapted to."""
        def size(key: str, axis: int, otherwise: int) -> int:
            return weights[key].shape[axis] if key in weights and weights[key].ndim == 2 else otherwise

        released, layer = cls(), "image_encoder.vision_model.encoder.layers."
        width = size("position_embedding.weight", 1, released.width)
        hidden = size(f"{layer}0.mlp.fc1.weight", 0, released.hidden)
        embed = size("image_encoder.visual_projection.weight", 0, released.embed)
        of_released_size = (width, hidden) == (released.width, released.hidden)
        return cls(width, released.layers if of_released_size else _count(weights, layer), hidden, embed)


class StyleAwareEncoder(nn.Module):
    """Section 3.2: picture -> one style embedding for each patch size.

    Args:
        ops: where the layers come from: ``torch.nn``, or a host's own that move and cast their weights themselves.
    """

    def __init__(self, sizes: EncoderSizes, ops: ModuleType = nn):
        super().__init__()
        width, layers, hidden, embed = sizes
        self.cnn = nn.ModuleList(PatchEncoder(width, blocks, ops) for blocks in _BLOCKS)
        self.style_embeddings = nn.ParameterList(torch.zeros(width) for _ in LEVELS)
        self.position_embedding = ops.Embedding(len(LEVELS) + sum(PATCHES), width)
        # CLIP ViT-H/14 without its own patch, class and position embeddings, which StyleShot does not use.
        self.image_encoder = nn.ModuleDict({
            "vision_model": nn.ModuleDict({
                "pre_layrnorm": ops.LayerNorm(width),
                "encoder": nn.ModuleDict({"layers": nn.ModuleList(TransformerLayer(width, hidden, ops)
                                                                  for _ in range(layers))}),
                "post_layernorm": ops.LayerNorm(width),
            }),
            "visual_projection": ops.Linear(width, embed, bias=False),
        })

    def encode_patches(self, patches: Sequence[Tensor]) -> list[Tensor]:
        """Patches of each level (B, n, 3, s, s) in [0, 1] -> their vectors (B, n, width)."""
        return [rearrange(cnn(rearrange(level * 2 - 1, "b n c h w -> (b n) c h w")), "(b n) d -> b n d", b=len(level))
                for cnn, level in zip(self.cnn, patches, strict=True)]

    def forward(self, square: Tensor, order: Sequence[Tensor] | None = None) -> Tensor:
        """Style pictures -> embeddings, high, middle, low.

        Args:
            square: (B, 3, 512, 512) in [0, 1].
            order: of the patches in each level; positions are counted after it. None = as they come.

        Returns:
            (B, 3, embed).
        """
        patches = multi_scale_patches(square)
        if order is not None:
            patches = [level[:, places] for level, places in zip(patches, order, strict=True)]
        sequence, first = [], []
        for embedding, vectors in zip(self.style_embeddings, self.encode_patches(patches), strict=True):
            first.append(sum(part.shape[1] for part in sequence))
            sequence += [embedding.to(vectors).expand(len(vectors), 1, -1), vectors]
        x = torch.cat(sequence, 1)
        x = x + self.position_embedding(torch.arange(x.shape[1], device=x.device)).to(x)
        clip = self.image_encoder["vision_model"]
        x = clip["pre_layrnorm"](x)
        for layer in clip["encoder"]["layers"]:
            x = layer(x)
        return self.image_encoder["visual_projection"](clip["post_layernorm"](x[:, first]))


# ---- style tokens and their attention ----

# Width of the cross-attentions of SD 1.5, encoder, decoder, middle.
SD15_WIDTHS = (320, 320, 640, 640, 1280, 1280, 1280, 1280, 1280, 640, 640, 640, 320, 320, 320, 1280)


class AdapterSizes(NamedTuple):
    """Sizes of the projections, and the width of each cross-attention in order; the defaults are the released ones."""

    embed: int = 1024
    tokens: int = 2
    context: int = 768
    widths: tuple[int, ...] = SD15_WIDTHS

    @classmethod
    def of(cls, weights: StateDict) -> "AdapterSizes":
        """Read from a file, as ``EncoderSizes.of``."""
        def size(key: str, axis: int = 0) -> int:
            return weights[key].shape[axis] if key in weights else 0

        released, projection = cls(), "style_image_proj_modules.0"
        context = size(f"{projection}.norm.weight") or released.context
        tokens = size(f"{projection}.proj.weight") // context or released.tokens
        embed = size(f"{projection}.proj.weight", -1) or released.embed
        adapters = [f"adapter_modules.{i}.to_" for i in range(1, _count(weights, "adapter_modules."), 2)]
        widths = tuple(size(f"{name}k_ip.weight") or size(f"{name}v_ip.weight") for name in adapters)
        of_released_size = not any(widths) or max(SD15_WIDTHS) in widths
        return cls(embed, tokens, context, released.widths if of_released_size else widths)


class Projection(nn.Module):
    """A style embedding of one level -> its tokens. (B, embed) -> (B, tokens, context)."""

    def __init__(self, sizes: AdapterSizes, ops: ModuleType):
        super().__init__()
        self.proj = ops.Linear(sizes.embed, sizes.tokens * sizes.context)
        self.norm = ops.LayerNorm(sizes.context)
        self.tokens = sizes.tokens

    def forward(self, embed: Tensor) -> Tensor:
        return self.norm(rearrange(self.proj(embed), "b (n c) -> b n c", n=self.tokens))


class StyleAttentionProjections(nn.Module):
    """Keys and values of the style tokens for one cross-attention."""

    def __init__(self, context: int, width: int, ops: ModuleType):
        super().__init__()
        self.to_k_ip, self.to_v_ip = (ops.Linear(context, width, bias=False) for _ in range(2))


class KeyValue(NamedTuple):
    """Keys and values (B, tokens, width) of one cross-attention."""

    key: Tensor
    value: Tensor


class StyleTokens(NamedTuple):
    """Tokens (B, 6, 768) of the style, and (1, 6, 768) of no style for the other half of classifier-free guidance."""

    style: Tensor
    none: Tensor


class StyleAdapter(nn.Module):
    """What ``ip.bin`` holds beside the ControlNet: projections to tokens, and the tokens' keys and values.

    ``adapter_modules`` are numbered as diffusers counts the attentions of a U-Net: encoder, decoder, middle, where odd
    ones are cross-attentions.
    """

    def __init__(self, sizes: AdapterSizes, ops: ModuleType = nn):
        super().__init__()
        self.sizes = sizes
        self.style_image_proj_modules = nn.ModuleList(Projection(sizes, ops) for _ in LEVELS)
        self.adapter_modules = nn.ModuleDict({str(2 * i + 1): StyleAttentionProjections(sizes.context, width, ops)
                                              for i, width in enumerate(sizes.widths)})

    def project(self, embeds: Tensor) -> Tensor:
        """Embeddings (B, 3, embed) -> tokens (B, 6, context), order high, middle, low."""
        return torch.cat([proj(embed) for proj, embed in
                          zip(self.style_image_proj_modules, embeds.unbind(1), strict=True)], 1)

    def forward(self, embeds: Tensor) -> StyleTokens:
        """Style embeddings (B, 3, embed) -> tokens. Without a style the embeddings are zero, the tokens are not."""
        return StyleTokens(self.project(embeds), self.project(torch.zeros_like(embeds[:1])))

    def keys_values(self, tokens: Tensor) -> list[KeyValue]:
        """Keys and values of the tokens (B, n, context) for each cross-attention, in order."""
        return [KeyValue(adapter.to_k_ip(tokens), adapter.to_v_ip(tokens)) for adapter in self.adapter_modules.values()]


def with_style(text: Tensor, query: Tensor, style: KeyValue, heads: int, weight: float) -> Tensor:
    """IP-Adapter's decoupled cross-attention, before the output projection: Attn(text) + weight * Attn(style).

    Args:
        text: (B, n, C), what the attention to the text gave.
        query: (B, n, C), the same query.
        style: (B, 6, C).
    """
    return text + weight * attention(query, style.key, style.value, heads)


def check_style(picture: Tensor) -> None:
    """Raises ValueError unless ``picture`` is a finite RGB batch; any size will do."""
    check_pictures(picture, "style", 1, "StyleShot")
