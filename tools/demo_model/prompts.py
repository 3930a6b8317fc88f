"""How a style is said to the demo model: 100 numbers, as pseudo-words in a sentence, as a context."""
import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from . import text

TOKENS = 4  # a style fills four pseudo-words that are alike, or one
KEPT = 48  # principal components of the style vectors
REACH = 1.5  # mean length of what sets a style apart, beside 1 for what all styles have in common
# What is said around the style. Things mean nothing to the model: it learns to read past them.
THINGS = ("a house", "a woman", "a man", "a village at night", "a tree", "mountains", "a river", "a street", "a dog",
          "a boat at sea", "flowers", "a still life", "a city", "a portrait", "animals", "a garden", "a church")
SENTENCES = ("*", "*", "*", "in the style of *", "painting in the style of *", "a picture in the style of *", "art, *",
             "{} in the style of *", "a painting of {} in the style of *", "a photo of {}, *", "*, {}")
EMPTY_SHARE, STYLELESS_SHARE, SINGLE_SHARE = 0.10, 0.05, 0.30


@dataclass(frozen=True)
class StyleSpace:
    """From the teacher's style vectors to pseudo-words.

    Principal components, at a scale between as they vary and all alike, in fixed directions of the token space at right
    angles to the one that all styles share.

    Attributes:
        mean: (100,) style vector that becomes the neutral word.
        map: (100, 768).
    """

    mean: Tensor
    map: Tensor

    @classmethod
    def of(cls, vectors: Tensor) -> "StyleSpace":
        """The space of a bank of style vectors (n, 100)."""
        vectors = vectors.double()
        mean = vectors.mean(0)
        variances, components = torch.linalg.eigh((vectors - mean).T.cov())
        variances, components = variances[-KEPT:].flip(0).clamp_min(1e-9), components[:, -KEPT:].flip(1)
        directions = torch.cat([text.neutral_style()[None], text.drawn("style space", (KEPT, text.WIDTH), 1.0)])
        directions = torch.linalg.qr(directions.mT).Q.mT[1:]  # rows: unit vectors at right angles to each other
        half_whitened = components * variances**-0.25
        half_whitened *= REACH / variances.sqrt().sum().sqrt()  # so that the mean square length is REACH^2
        return cls(mean.float(), half_whitened.float() @ directions)

    @classmethod
    def read(cls, tensors: Mapping[str, Tensor]) -> "StyleSpace":
        return cls(tensors["mean"].float(), tensors["map"].float())

    def words(self, vectors: Tensor, noise: Tensor | float = 0.0) -> Tensor:
        """Pseudo-words (B, 768) of style vectors (B, 100), of the length of all tokens.

        Args:
            noise: (B, 768) beside what sets the style apart.
        """
        apart = (vectors - self.mean) @ self.map + noise
        return text.TOKEN_NORM * F.normalize(text.neutral_style() + apart, dim=-1)

    def told(self, vectors: Tensor) -> Tensor:
        """Pseudo-words (TOKENS, 768) of one style vector (1, 100), all tokens alike."""
        return self.words(vectors).expand(TOKENS, -1).contiguous()

    @staticmethod
    def neutral_word() -> Tensor:
        """(768,) what all styles have in common, and learning starts from."""
        return text.TOKEN_NORM * text.neutral_style()


class Prompts:
    """Every sentence of the training as token ids, with room for its style.

    Attributes:
        ids: (rows, 77) tokens; what stands at the places of the style does not matter.
        place, count: (rows,) where the style begins, and how many tokens it has.
        styled: rows of sentences with a style of TOKENS tokens, and of one; (2, SENTENCES, THINGS).
        styleless: rows of sentences without a style.
        empty, star: the rows of nothing, and of the style alone.
        own_places: how many places at the beginning differ between any two prompts.
    """

    def __init__(self):
        from comfy.sd1_clip import SDTokenizer

        self._tokenizer = SDTokenizer()
        self._star = self.tokens_of("*")[1]
        self._rows: dict[tuple[str, int], tuple[int, list[int], int, int]] = {}
        self.styled = torch.tensor([[[self.row(s.format(thing), count) for thing in THINGS] for s in SENTENCES]
                                    for count in (TOKENS, 1)])
        self.styleless = torch.tensor([self.row(thing, 0) for thing in THINGS])
        self.empty, self.star = self.row("", 0), self.row("*", TOKENS)
        _, *columns = zip(*self._rows.values(), strict=True)
        self.ids, self.place, self.count = map(torch.tensor, columns)
        same = (self.ids == self.ids[self.empty]).flip(1).long().cumprod(1).sum(1)
        self.own_places = self.ids.shape[1] - same.min().item()

    def tokens_of(self, sentence: str) -> list[int]:
        """(77,) ids of a sentence, with those of beginning, end and padding."""
        return [i for i, _ in self._tokenizer.tokenize_with_weights(sentence)[0]]

    def row(self, sentence: str, count: int) -> int:
        """The number of a sentence with a style of ``count`` tokens."""
        if (sentence, count) not in self._rows:
            ids, place = self.tokens_of(sentence.replace("*", " * ")), 0
            if count:
                place = ids.index(self._star)
                ids = (ids[:place] + [self._star] * count + ids[place + 1:])[:len(ids)]
            self._rows[sentence, count] = len(self._rows), ids, place, count
        return self._rows[sentence, count][0]

    def drawn(self, many: int, generator: torch.Generator) -> Tensor:
        """Rows for ``many`` samples: some empty (for classifier-free guidance), some without a style, some with the
        style in one token, the others with the style in TOKENS."""
        kind, single = torch.rand(2, many, generator=generator)
        sentence, thing = (torch.randint(len(of), (many,), generator=generator) for of in (SENTENCES, THINGS))
        rows = self.styled[(single < SINGLE_SHARE).long(), sentence, thing]
        rows = torch.where(kind < EMPTY_SHARE + STYLELESS_SHARE, self.styleless[thing], rows)
        return torch.where(kind < EMPTY_SHARE, torch.full_like(rows, self.empty), rows)


class Reader:
    """Prompts and pseudo-words -> what the denoiser reads; equal to the host's text encoder with branches of zero."""

    def __init__(self, space: StyleSpace):
        self.space, self.prompts, tables = space, Prompts(), text.embeddings()
        self.tokens, self.places = tables[text.TOKENS], tables[text.PLACES]

    def told(self, vectors: Tensor) -> Tensor:
        """Contexts of "*" with these style vectors (B, 100)."""
        return self.of_rows(torch.full((len(vectors),), self.prompts.star), self.space.words(vectors))

    def empty(self, many: int) -> Tensor:
        return self.of_rows(torch.full((many,), self.prompts.empty), torch.zeros(many, text.WIDTH))

    def of_rows(self, rows: Tensor, words: Tensor) -> Tensor:
        """Contexts (B, 77, 768) of prompts (B,) with words (B, 768), or (B, TOKENS, 768) where its tokens differ."""
        words = words[:, None].expand(-1, TOKENS, -1) if words.ndim == 2 else words
        embeddings = self.tokens[self.prompts.ids[rows]]
        sample, slot = (torch.arange(TOKENS) < self.prompts.count[rows, None]).nonzero(as_tuple=True)
        embeddings[sample, self.prompts.place[rows][sample] + slot] = words[sample, slot]
        return F.layer_norm(embeddings + self.places, (text.WIDTH,))


def word_noise(many: int, size: float, generator: torch.Generator) -> Tensor:
    """(many, 768) Gaussian directions whose lengths are drawn evenly from 0 to ``size``."""
    lengths = size * torch.rand(many, 1, generator=generator)
    return lengths * torch.randn((many, text.WIDTH), generator=generator) / math.sqrt(text.WIDTH)
