"""StyTr2: Image Style Transfer with Transformers (Deng et al., CVPR 2022).

Patches of both pictures become tokens; a transformer encodes each and decodes the content with the style as memory; a
convolutional decoder paints.  Behaviour of the authors' StyTR-2 on squares of equal size, which is all it can do; other
sizes keep the content's token grid.
"""
import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from ..portable import average_pool
from .common import (
    NORMALISED_VGG,
    Features,
    Limits,
    Recipe,
    StyleTransferModel,
    adain_decoder,
    decode,
    in_rows,
    module_part,
)

WIDTH, HEADS, HIDDEN, LAYERS = 512, 8, 2048, 3
PATCH = 8  # pixels
CAPE_GRID = 18


class Attention(nn.Module):
    """Multi-head attention (Vaswani et al. 2017), with the parameter names of torch's own."""

    def __init__(self):
        super().__init__()
        self.in_proj_weight = nn.Parameter(torch.empty(3 * WIDTH, WIDTH))
        self.in_proj_bias = nn.Parameter(torch.empty(3 * WIDTH))
        self.out_proj = nn.Linear(WIDTH, WIDTH)

    def forward(self, query: Tensor, key: Tensor, value: Tensor, limits: Limits) -> Tensor:
        """(B, n, WIDTH), (B, m, WIDTH), (B, m, WIDTH) -> (B, n, WIDTH)."""
        weights, biases = self.in_proj_weight.chunk(3), self.in_proj_bias.chunk(3)

        def heads(x: Tensor, part: int) -> Tensor:
            return rearrange(F.linear(x, weights[part], biases[part]), "b n (h d) -> b h n d", h=HEADS)

        k, v = heads(key, 1), heads(value, 2)

        def attend(rows: Tensor) -> Tensor:
            out = F.scaled_dot_product_attention(heads(rows, 0), k, v)
            return self.out_proj(rearrange(out, "b h n d -> b n (h d)"))

        # Fused kernels keep no attention matrix, so many rows at once cost little.
        return in_rows(attend, HEADS * limits.rows(key.shape[1]), query)


class Layer(nn.Module):
    """What both kinds of layer end with: the feed-forward network."""

    def __init__(self):
        super().__init__()
        self.self_attn = Attention()
        self.linear1, self.linear2 = nn.Linear(WIDTH, HIDDEN), nn.Linear(HIDDEN, WIDTH)
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)

    def feed_forward(self, x: Tensor, limits: Limits) -> Tensor:
        """(B, n, WIDTH) -> (B, n, WIDTH)."""
        return in_rows(lambda rows: self.linear2(torch.relu_(self.linear1(rows))), limits.rows(HIDDEN), x)


class EncoderLayer(Layer):
    def forward(self, x: Tensor, position: Tensor | None, limits: Limits) -> Tensor:
        """Self-attention with positions on queries and keys, post-norm (Eq. 1-2)."""
        query = x if position is None else x + position
        x = self.norm1(x + self.self_attn(query, query, x, limits))
        return self.norm2(x + self.feed_forward(x, limits))


class DecoderLayer(Layer):
    """Two cross-attentions to the style: in the released code the one called ``self_attn`` is one too."""

    def __init__(self):
        super().__init__()
        self.multihead_attn = Attention()
        self.norm3 = nn.LayerNorm(WIDTH)

    def forward(self, x: Tensor, position: Tensor, style: Tensor, limits: Limits) -> Tensor:
        x = self.norm1(x + self.self_attn(x + position, style, style, limits))
        x = self.norm2(x + self.multihead_attn(x + position, style, style, limits))
        return self.norm3(x + self.feed_forward(x, limits))


class Stack(nn.Module):
    def __init__(self, layer: type[Layer]):
        super().__init__()
        self.layers = nn.ModuleList(layer() for _ in range(LAYERS))


class DecoderStack(Stack):
    def __init__(self):
        super().__init__(DecoderLayer)
        self.norm = nn.LayerNorm(WIDTH)


class Transformer(nn.Module):
    """The released transformer file: two encoders, the decoder, and the projection of CAPE."""

    def __init__(self):
        super().__init__()
        self.encoder_c, self.encoder_s = Stack(EncoderLayer), Stack(EncoderLayer)
        self.decoder = DecoderStack()
        self.new_ps = nn.Conv2d(WIDTH, WIDTH, 1)

    def cape(self, tokens: Tensor) -> Tensor:
        """Content-aware positional encoding (section 3.2, Eq. 4): (B, WIDTH, h, w) -> the same shape."""
        pooled = average_pool(tokens, (CAPE_GRID, CAPE_GRID))
        return F.interpolate(self.new_ps(pooled), tokens.shape[2:], mode="bilinear", align_corners=False)


class PatchEmbedding(nn.Module):
    """Tokens of 8x8 pixels; incomplete patches at the right and bottom are dropped."""

    def __init__(self):
        super().__init__()
        self.proj = nn.Conv2d(3, WIDTH, PATCH, stride=PATCH)

    def forward(self, picture: Tensor) -> Tensor:
        return self.proj(picture)


def sequence(tokens: Tensor) -> Tensor:
    """Token map, row by row, as a sequence."""
    return rearrange(tokens, "b c h w -> b (h w) c")


class StyTr2(StyleTransferModel):
    name = "StyTr2"
    minimum_content = 16
    minimum_style = 16
    multiple = PATCH

    def __init__(self, embedding: PatchEmbedding, transformer: Transformer, decoder: nn.Sequential):
        super().__init__()
        self.embedding = embedding
        self.transformer = transformer
        self.decoder = decoder

    def encode_content(self, picture: Tensor, limits: Limits) -> Features:
        tokens = self.embedding(picture)
        x, cape = sequence(tokens), self.transformer.cape(tokens)
        for layer in self.transformer.encoder_c.layers:
            x = layer(x, sequence(cape), limits)
        return x, cape

    def encode_style(self, picture: Tensor, limits: Limits) -> Features:
        x = sequence(self.embedding(picture))
        for layer in self.transformer.encoder_s.layers:
            x = layer(x, None, limits)
        return (x,)

    def transform(self, content: Features, style: Features, limits: Limits) -> Features:
        x, cape = content
        for layer in self.transformer.decoder.layers:
            x = layer(x, sequence(cape), *style, limits)
        x = self.transformer.decoder.norm(x)
        return (rearrange(x, "b (h w) c -> b c h w", h=cape.shape[2]),)

    def decode(self, features: Features, limits: Limits) -> Tensor:
        return decode(self.decoder, features[0], limits)


PARTS = (
    module_part("StyTr2 patch embedding", "embedding_iter_160000.pth", PatchEmbedding),
    module_part("StyTr2 transformer", "transformer_iter_160000.pth", Transformer),
    module_part("StyTr2 decoder", "decoder_iter_160000.pth", adain_decoder),
)

# The released folder also holds the VGG of the training losses.
RECIPES = (Recipe("StyTr2", PARTS, StyTr2, unused=(NORMALISED_VGG,)),)
