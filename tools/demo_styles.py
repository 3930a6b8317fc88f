"""How a style is said to the demo model: measured on a picture, written as pseudo-words, encoded with a sentence.

``style_features`` measures, ``StyleSpace`` makes tokens of it, ``Prompts`` knows the sentences of the training as token
ids, and ``Text`` turns both into the context, with the host's transformer and the weights of ``demo_model.py``.
"""
import argparse
import math
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

sys.path.append(str(Path(__file__).resolve().parents[1]))

import demo_model
import painterly

from inst_core.methods.gatys import gram
from inst_core.metrics.alexnet import AlexNet

# What is said around the style. Things mean nothing to the model: it learns to read past them.
THINGS = ("a house", "a woman", "a man", "a village at night", "a tree", "mountains", "a river", "a street", "a dog",
          "a boat at sea", "flowers", "a still life", "a city", "a portrait", "animals", "a garden", "a church")
SENTENCES = ("*", "*", "in the style of *", "painting in the style of *", "a picture in the style of *", "art, *",
             "{} in the style of *", "a painting of {} in the style of *", "a photo of {}, *", "*, {}")
PHOTOGRAPH, MIX = "photograph", "painting"
WORDS = (*painterly.TECHNIQUES, MIX, PHOTOGRAPH)
TOKENS = 4  # a style fills four pseudo-words, or one
STYLE_REACH = 1.5  # length of what sets a style apart, beside 1 for what all have in common
KEPT = (48, 64, 96, 128)  # principal components of colour, relu1, relu2, relu3


# ---- the host ----

def host(options: argparse.Namespace) -> None:
    """Makes ComfyUI's modules importable; the text encoder and both networks are the host's own code."""
    if "comfy" not in sys.modules:
        sys.path.insert(0, str(options.comfyui))
        from comfy.cli_args import args

        args.cpu, args.use_pytorch_cross_attention = options.device.type == "cpu", True


def autocast(device: torch.device):
    return torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda")


# ---- styles ----

@torch.no_grad()
def style_features(pictures: Tensor, alexnet: AlexNet) -> list[Tensor]:
    """What a style is measured by, (B, n) each: colour (means, covariances, histogram), the Gram matrix of AlexNet's
    relu1, means and deviations of relu2 and relu3. Deeper layers would tell what is painted."""
    relu1, relu2, relu3, *_ = alexnet(pictures)
    pixels = pictures.flatten(2)
    mean = pixels.mean(2)
    covariance = (pixels - mean[..., None]) @ (pixels - mean[..., None]).mT / pixels.shape[2]
    bins = (pictures * 3.999).long()
    number = (bins[:, 0] * 16 + bins[:, 1] * 4 + bins[:, 2]).flatten(1)
    histogram = torch.zeros(len(pictures), 64, device=pictures.device).scatter_add_(
        1, number, torch.full(number.shape, 1 / number.shape[1], device=pictures.device))
    upper = torch.triu_indices(64, 64, device=pictures.device)
    return [torch.cat([mean, covariance.flatten(1).sign() * covariance.flatten(1).abs().sqrt(), histogram.sqrt()], 1),
            gram(relu1)[:, upper[0], upper[1]].clamp_min(0).sqrt(),
            *(torch.cat([x.mean((2, 3)), x.std((2, 3))], 1) for x in (relu2, relu3))]


@dataclass
class StyleSpace:
    """From measured styles to pseudo-words.

    Each kind of feature keeps its principal components, at a scale between as they vary and all alike, and has a
    subspace of the token space to itself, at right angles to the direction that all styles share.  So a style can be
    read from four tokens with a part each, or from one with all of them.
    """

    mean: list[Tensor]
    maps: list[Tensor]  # (features, 768) each
    neutral: Tensor  # (768,)

    @classmethod
    def of(cls, features: list[Tensor]) -> "StyleSpace":
        neutral = demo_model.neutral_style()
        directions = torch.cat([neutral[None], demo_model.drawn("style space", (sum(KEPT), demo_model.WIDTH), 1.0)])
        directions = torch.linalg.qr(directions.mT).Q.mT[1:]  # rows: unit vectors at right angles to each other
        means, maps = [], []
        for x, part in zip(features, directions.split(KEPT), strict=True):
            x = x.double().cpu()
            mean, spread = x.mean(0), x.std(0) + 1e-4
            values, vectors = torch.linalg.eigh(((x - mean) / spread).mT.cov())
            kept = min(len(part), len(x) - 1)
            values, vectors = values[-kept:].flip(0).clamp_min(1e-6), vectors[:, -kept:].flip(1)
            whitened = vectors * values ** -0.25
            whitened *= STYLE_REACH / values.sqrt().sum().sqrt()  # so that the mean square length is STYLE_REACH^2
            maps.append((whitened / spread[:, None]).float() @ part[:kept])
            means.append(mean.float())
        return cls(means, maps, neutral)

    def to(self, device: torch.device) -> "StyleSpace":
        return StyleSpace([m.to(device) for m in self.mean], [m.to(device) for m in self.maps], self.neutral.to(device))

    def parts(self, features: list[Tensor]) -> Tensor:
        """(B, TOKENS, 768): what each kind of feature adds to the direction that all share."""
        return torch.stack([(x - m) @ w for x, m, w in zip(features, self.mean, self.maps, strict=True)], 1)

    def tokens(self, parts: Tensor, count: Tensor) -> Tensor:
        """Style tokens (B, TOKENS, 768) of the vocabulary's length; where count is 1, the first holds everything."""
        together = F.pad(parts.sum(1, keepdim=True) / math.sqrt(TOKENS), (0, 0, 0, TOKENS - 1))
        chosen = torch.where((count == 1)[:, None, None], together, parts)
        return demo_model.TOKEN_NORM * F.normalize(self.neutral + chosen, dim=-1)


# ---- sentences ----

class Text(nn.Module):
    """The demo's text encoder: token ids and style tokens -> context. The host's transformer, without gradient."""

    def __init__(self, options: argparse.Namespace):
        super().__init__()
        host(options)
        import comfy.ops
        from comfy.clip_model import CLIPTextModel_

        config = {"num_hidden_layers": demo_model.LAYERS, "hidden_size": demo_model.WIDTH, "num_attention_heads": 12,
                  "intermediate_size": demo_model.HIDDEN, "hidden_act": "quick_gelu", "eos_token_id": 49407,
                  "max_position_embeddings": demo_model.POSITIONS}
        self.transformer = CLIPTextModel_(config, torch.float32, "cpu", comfy.ops.disable_weight_init)
        self.transformer.load_state_dict({k: v.float() for k, v in demo_model.text_encoder().items()})
        self.to(options.device).requires_grad_(False)

    @torch.no_grad()
    def forward(self, ids: Tensor, place: Tensor, count: Tensor, vectors: Tensor) -> Tensor:
        """
        Args:
            ids: (B, 77) tokens; what stands at the places of style tokens does not matter.
            place, count: (B,) where the style begins and how many tokens it has.
            vectors: (B, TOKENS, 768).

        Returns:
            (B, 77, 768)
        """
        embeds = self.transformer.embeddings.token_embedding.weight[ids]
        slots = torch.arange(TOKENS, device=ids.device)
        row, slot = (slots < count[:, None]).nonzero(as_tuple=True)
        embeds[row, place[row] + slot] = vectors[row, slot].to(embeds.dtype)
        with autocast(ids.device):
            return self.transformer(embeds=embeds, num_tokens=[1] * len(ids))[0]


class Prompts:
    """Every sentence of the training as tokens, with room for its style.

    Attributes:
        ids: (rows, 77); place, count: (rows,).
        generic: rows of sentences that fit every picture, for 4 tokens and for 1; (2, sentences).
        named: rows of "WORD in the style of *", (2, words); bare: rows of "a WORD", (words,).
        empty: the row of the prompt without anything.
    """

    def __init__(self, options: argparse.Namespace):
        host(options)
        from comfy.sd1_clip import SDTokenizer

        tokenizer = SDTokenizer()
        star = tokenizer.tokenize_with_weights("*")[0][1][0]
        rows: list[tuple[list[int], int, int]] = []

        def add(sentence: str, count: int) -> int:
            ids = [i for i, _ in tokenizer.tokenize_with_weights(sentence.replace("*", " * "))[0]]
            place = ids.index(star) if "*" in sentence else 0
            if "*" in sentence:
                ids = (ids[:place] + [star] * count + ids[place + 1:])[:len(ids)]
            rows.append((ids, place, count if "*" in sentence else 0))
            return len(rows) - 1

        sentences = [s for s in SENTENCES if "{}" not in s]
        sentences += [s.format(thing) for s in SENTENCES if "{}" in s for thing in THINGS]
        counts = (TOKENS, 1)
        device = options.device
        self.generic = torch.tensor([[add(s, n) for s in sentences] for n in counts], device=device)
        self.named = torch.tensor([[add(f"{w} in the style of *", n) for w in WORDS] for n in counts], device=device)
        self.bare = torch.tensor([add(f"a {w}", 0) for w in WORDS], device=device)
        self.empty = add("", 0)
        self.star = add("*", TOKENS)
        self.ids = torch.tensor([ids for ids, _, _ in rows], device=device)
        self.place = torch.tensor([place for _, place, _ in rows], device=device)
        self.count = torch.tensor([count for _, _, count in rows], device=device)

    def drawn(self, words: Tensor, generator: torch.Generator) -> Tensor:
        """A row for each picture, from its word (B,): 10 % nothing (for CFG), 5 % the word alone, 20 % word and style,
        the rest any sentence with the style; 30 % of the styles in one token."""
        size, device = words.shape, words.device
        kind = torch.rand(size, generator=generator, device=device)
        single = (torch.rand(size, generator=generator, device=device) < 0.3).long()
        which = torch.randint(self.generic.shape[1], size, generator=generator, device=device)
        rows = torch.where(kind < 0.35, self.named[single, words], self.generic[single, which])
        rows = torch.where(kind < 0.15, self.bare[words], rows)
        return torch.where(kind < 0.1, torch.full_like(rows, self.empty), rows)
