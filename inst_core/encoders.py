"""Style encoders: from a painting to pseudo-words, vectors in the place of a prompt's tokens.

InST (Zhang et al., CVPR 2023) section 3.2.  All variants share one interface, ``StyleEncoder``: a module whose
``forward(features, generator)`` returns ``{text encoder key: (n, width)}``.
"""
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor, nn

Vectors = dict[str, Tensor]

PAPER_WIDTH = 768
PAPER_DROPOUT = 0.05
CLIP_L_RMS = 0.0144  # of the numbers in CLIP ViT-L/14's vocabulary, for which learning rates of words are meant
ADAM_EPS = 1e-8


@dataclass(frozen=True)
class PictureFeatures:
    """What CLIP ViT-L/14 says of the style pictures.

    Attributes:
        image_embed: (P, 768) projected, L2-normalised image embeddings, one per picture.
        patches: (P, 257, 1024) hidden states of the last layer but one, class token first.
    """

    image_embed: Tensor
    patches: Tensor

    def clone(self) -> "PictureFeatures":
        return PictureFeatures(self.image_embed.clone(), self.patches.clone())


class Dropout(nn.Module):
    """Dropout that is active exactly when it is given a generator, so that the global one is never used."""

    def forward(self, x: Tensor, generator: torch.Generator | None) -> Tensor:
        if generator is None:
            return x
        keep = torch.rand(x.shape, generator=generator) >= PAPER_DROPOUT
        return x * keep.to(x) / (1 - PAPER_DROPOUT)


class CrossAttention(nn.Module):
    """Multi-head cross-attention with the official key names (``ldm/modules/attention.py::CrossAttention``)."""

    def __init__(self, query_width: int, context_width: int | None = None, heads: int = 8, head_width: int = 64):
        super().__init__()
        inner = heads * head_width
        self.heads = heads
        self.to_q = nn.Linear(query_width, inner, bias=False)
        self.to_k = nn.Linear(context_width or query_width, inner, bias=False)
        self.to_v = nn.Linear(context_width or query_width, inner, bias=False)
        self.to_out = nn.ModuleList([nn.Linear(inner, query_width), Dropout()])

    def forward(self, x: Tensor, context: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """(B, N, query_width) attends to (B, M, context_width)."""
        split = "b n (h d) -> b h n d"
        q, k, v = (rearrange(t, split, h=self.heads) for t in (self.to_q(x), self.to_k(context), self.to_v(context)))
        out = nn.functional.scaled_dot_product_attention(q, k, v)
        linear, dropout = self.to_out
        return dropout(linear(rearrange(out, "b h n d -> b n (h d)")), generator)


class Attentions(nn.Module):
    """The paper's multi-layer cross-attention (official ``embedding_manager.py::Attentions``, dim 768, 8 x 64).

    Called with a single token its softmax is over one key, so attn1 and every to_q and to_k are inert and the output
    is affine in the input.  The parameters are kept all the same: official files hold them.
    """

    def __init__(self, width: int = PAPER_WIDTH):
        super().__init__()
        self.attn1 = CrossAttention(width)
        self.attn2 = CrossAttention(width)
        self.net = nn.ModuleList([Dropout(), nn.Linear(width, width)])

    def forward(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """(B, N, 768) -> (B, N, 768)."""
        queries = self.attn1(x, x, generator)
        dropout, linear = self.net
        return linear(dropout(self.attn2(queries, x, generator), generator))


def word_group(words: nn.Parameter, rate: float) -> dict:
    """AdamW's options for pseudo-words (n, width): in every step they move by the same share of their length, whatever
    the scale of the vocabulary.  Vocabularies differ: T5's numbers are far larger than CLIP's.

    Args:
        rate: for words of CLIP-L's scale.
    """
    scale = float(words.detach().square().mean().sqrt()) / CLIP_L_RMS or 1.0
    return {"params": [words], "lr": rate * scale, "eps": ADAM_EPS / scale, "weight_decay": 0.0}


class StyleEncoder(nn.Module):
    """Base of all encoders.

    Attributes:
        needs_picture: whether ``features`` are used; without it no CLIP vision model is needed.
        dropout_when_applied: dropout stays on after learning.
    """

    needs_picture = True
    dropout_when_applied = False

    def forward(self, features: PictureFeatures | None, generator: torch.Generator | None = None) -> Vectors:
        """Pseudo-words.

        Args:
            features: of the style pictures; None for encoders that need no picture.
            generator: given while learning; dropout (where the encoder has any) draws from it.

        Returns:
            {text encoder key, such as ``clip_l``: (n, width) float32}.
        """
        raise TypeError(f"{type(self).__name__} is abstract")

    def parameter_groups(self, rate: float) -> list[dict]:
        """What AdamW moves, and how fast."""
        return [{"params": list(self.parameters()), "lr": rate}]

    def attached(self, session) -> AbstractContextManager:
        """In which the denoiser of a ``learning.Session`` has what is learned of it: nothing, with words alone."""
        return nullcontext()


class PaperEncoder(StyleEncoder):
    """``paper``: the paper's module, with CLIP seeing the picture. One vector of width 768."""

    def __init__(self, key: str):
        super().__init__()
        self.key = key
        self.attention = Attentions()

    def forward(self, features: PictureFeatures | None, generator: torch.Generator | None = None) -> Vectors:
        # Like the official code one token is embedded; several pictures of one style share their mean embedding.
        token = features.image_embed.mean(0).view(1, 1, -1)
        return {self.key: self.attention(token, generator)[0]}


class ReleasedEncoder(PaperEncoder):
    """``released``: the same module with the released code's quirks.

    CLIP is fed the nearly black picture (``preprocess.released_cast``), the first picture only, and dropout stays on
    when the style is applied (``embedding_manager.load`` replaces the module after ``model.eval()``).
    """

    dropout_when_applied = True

    def forward(self, features: PictureFeatures | None, generator: torch.Generator | None = None) -> Vectors:
        token = features.image_embed[0].view(1, 1, -1)
        return {self.key: self.attention(token, generator)[0]}


class AttentionEncoder(StyleEncoder):
    """``attention``: multi-layer cross-attention as it was meant.

    n learned queries attend twice to CLIP's patch tokens, where keys really compete.  The output is added to a
    starting word, through a projection that begins at zero: learning starts from a prompt the model understands.
    """

    def __init__(self, start: Mapping[str, Tensor], tokens: int, generator: torch.Generator,
                 patch_width: int = 1024, width: int = PAPER_WIDTH):
        super().__init__()
        self.queries = nn.Parameter(torch.randn(tokens, width, generator=generator) / width**0.5)
        self.norm = nn.LayerNorm(patch_width)
        self.attn1 = CrossAttention(width, patch_width)
        self.attn2 = CrossAttention(width, patch_width)
        self.words = nn.ParameterDict({k: nn.Parameter(v.expand(tokens, -1).clone()) for k, v in start.items()})
        self.heads = nn.ModuleDict({k: nn.Linear(width, v.shape[-1]) for k, v in start.items()})
        for head in self.heads.values():
            nn.init.zeros_(head.weight)
            nn.init.zeros_(head.bias)

    def forward(self, features: PictureFeatures | None, generator: torch.Generator | None = None) -> Vectors:
        patches = self.norm(rearrange(features.patches, "p n c -> 1 (p n) c"))
        x = self.queries.unsqueeze(0)
        x = x + self.attn1(x, patches)
        x = x + self.attn2(x, patches)
        return {k: self.words[k] + head(x[0]) * self.words[k].norm(dim=-1, keepdim=True).detach()
                for k, head in self.heads.items()}

    def parameter_groups(self, rate: float) -> list[dict]:
        words = list(self.words.values())
        network = [p for p in self.parameters() if all(p is not word for word in words)]
        return [{"params": network, "lr": rate}, *(word_group(word, rate) for word in words)]


class DirectEncoder(StyleEncoder):
    """``direct``: n free vectors. Needs no CLIP vision and fits every text encoder."""

    needs_picture = False

    def __init__(self, start: Mapping[str, Tensor], tokens: int):
        super().__init__()
        self.vectors = nn.ParameterDict({k: nn.Parameter(v.expand(tokens, -1).clone()) for k, v in start.items()})

    def forward(self, features: PictureFeatures | None = None, generator: torch.Generator | None = None) -> Vectors:
        return dict(self.vectors.items())

    def parameter_groups(self, rate: float) -> list[dict]:
        return [word_group(vectors, rate) for vectors in self.vectors.values()]


ENCODERS = {"direct": DirectEncoder, "attention": AttentionEncoder, "paper": PaperEncoder, "released": ReleasedEncoder}


def build_encoder(name: str, start: Mapping[str, Tensor], tokens: int, generator: torch.Generator) -> StyleEncoder:
    """A fresh encoder for the text encoders named in ``start``.

    Args:
        name: one of ``ENCODERS``.
        start: {text encoder key: (1 or tokens, width)} vectors of the word learning starts from.
        tokens: how many pseudo-words; ``paper`` and ``released`` have one.
        generator: weights are drawn from it; the global generator is left as it was.

    Raises:
        ValueError: unknown name, or ``paper``/``released`` on text encoders other than a single CLIP-L.
    """
    if name not in ENCODERS:
        raise ValueError(f"encoder is {name!r}; expected one of {', '.join(ENCODERS)}.")
    # torch's layer initialisers only draw from the global generator: run them on a forked one.
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(int(torch.randint(2**62, (), generator=generator)))
        if name == "direct":
            return DirectEncoder(start, tokens)
        if name == "attention":
            return AttentionEncoder(start, tokens, generator)
        widths = {k: v.shape[-1] for k, v in start.items()}
        if list(widths.values()) != [PAPER_WIDTH]:
            raise ValueError(
                f"encoder is {name!r}, which makes one vector of width {PAPER_WIDTH} for SD1.x; this CLIP takes "
                f"{widths}. Use encoder 'direct' or 'attention' with this model.")
        (key,) = widths
        return ReleasedEncoder(key) if name == "released" else PaperEncoder(key)


def resume(encoder: StyleEncoder, style) -> None:
    """Puts a saved style's weights into a fresh encoder of the same kind, to go on learning.

    Args:
        style: with ``encoder``, ``vectors`` and ``encoder_weights`` (see ``style.Style``). A plain embedding without
            encoder weights can be continued by ``direct``.

    Raises:
        ValueError: the style was made by another encoder, or with another number of tokens.
    """
    weights = dict(style.encoder_weights)
    if isinstance(encoder, DirectEncoder) and all(k.startswith("vectors.") for k in weights):
        weights = {f"vectors.{k}": v for k, v in style.vectors.items()}  # as kept, without what content words named
    expected = {k: tuple(v.shape) for k, v in encoder.state_dict().items()}
    found = {k: tuple(v.shape) for k, v in weights.items()}
    if found != expected:
        raise ValueError(f"continue_from is a style of {style.describe()}; it cannot be continued by "
                         f"{type(encoder).__name__} with these tokens. Choose the same encoder and number of tokens.")
    encoder.load_state_dict({k: v.clone() for k, v in weights.items()})
