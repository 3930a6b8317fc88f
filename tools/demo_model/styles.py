"""The bank of styles: vectors that the teacher measures in pictures, and how styles to be told are drawn from them.

The paintings that people will bring lie between and beyond what one has: so styles are mixed, stretched about their
mean, and every principal component is stretched by itself.
"""
import argparse
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm
from whole import read_tensors, save_tensors

from . import painterly, pictures
from .sheets import save_sheet
from .teacher import FIXED_STYLES, SEEING, Teacher
from .training import say

NAME = "styles.safetensors"
FIXED, RENDERED, RENDERED_AT_ONCE = 400, 160, 8
KINDS = {"photographs": 0.4, "fixed": 0.4, "painterly": 0.2}  # how often one is drawn of each
MIXED = 0.4  # share of mixtures of two
STRETCH = 0.8, 1.5  # about the mean
COMPONENT_SPREAD = 0.25
MARGIN = (pictures.SIDE - SEEING) // 2
SHEET = 8


class Bank:
    """Style vectors (n, 100) of each of KINDS."""

    def __init__(self, vectors: Mapping[str, Tensor]):
        whole = torch.cat(list(vectors.values())).double()
        self.vectors, self.mean = vectors, whole.mean(0).float()
        self.components = torch.linalg.svd(whole - whole.mean(0), full_matrices=False).Vh.float()

    def drawn(self, generator: torch.Generator) -> Tensor:
        """A style (100,) to be told."""
        def uniform() -> float:
            return torch.rand((), generator=generator).item()

        vector = self._one(generator)
        if uniform() < MIXED:
            share = uniform()
            vector = share * vector + (1 - share) * self._one(generator)
        low, high = STRETCH
        stretch = low + (high - low) * uniform()
        each = 1 + COMPONENT_SPREAD * torch.randn(len(self.components), generator=generator)
        return self.mean + stretch * (each * (self.components @ (vector - self.mean))) @ self.components

    def _one(self, generator: torch.Generator) -> Tensor:
        kind = torch.multinomial(torch.tensor(list(KINDS.values())), 1, generator=generator).item()
        vectors = self.vectors[list(KINDS)[kind]]
        return vectors[torch.randint(len(vectors), (), generator=generator)]


def read(folder: Path) -> Bank:
    """Raises ValueError where the folder has none."""
    return Bank(read_tensors(folder / NAME)[0])


def middle(photographs: Tensor) -> Tensor:
    """(B, 3, SEEING, SEEING) in [0, 1] of bytes."""
    return photographs[..., MARGIN:MARGIN + SEEING, MARGIN:MARGIN + SEEING].float() / 255


def in_fixed_style(teacher: Teacher, photographs: Tensor, i: int) -> Tensor:
    """The i-th picture: a photograph in one of the fixed styles, or in a mixture of two."""
    generator = torch.Generator().manual_seed(i)
    weights = torch.zeros(FIXED_STYLES)
    weights[torch.randint(FIXED_STYLES, (), generator=generator)] += 1
    if i % 2:
        weights[torch.randint(FIXED_STYLES, (), generator=generator)] += torch.rand((), generator=generator)
    photograph = photographs[torch.randint(len(photographs), (1,), generator=generator)]
    return teacher.fixed(middle(photograph), weights)


def rendered(photographs: Tensor, i: int) -> Tensor:
    """The i-th batch of renderings by rule."""
    generator = torch.Generator().manual_seed(i)
    chosen = photographs[torch.randint(len(photographs), (RENDERED_AT_ONCE,), generator=generator)]
    return painterly.render(middle(chosen), i)[0]


def make(options: argparse.Namespace) -> None:
    """The stage: measures photographs and two kinds of paintings made of them. Takes a few minutes, starts anew."""
    photographs, teacher = pictures.read(options.folder).training, Teacher(options.threads or 1)
    stages = (("photographs", len(photographs), lambda i: middle(photographs[i:i + 1])),
              ("fixed", FIXED, lambda i: in_fixed_style(teacher, photographs, i)),
              ("painterly", RENDERED // RENDERED_AT_ONCE, lambda i: rendered(photographs, i)))
    vectors, shown = {}, []
    for kind, count, make_pictures in stages:
        found = []
        for i in tqdm(range(count), desc=f"styles: {kind}"):
            made = make_pictures(i)
            found.append(teacher.measured(made))
            shown += [made] if kind != "photographs" and i * len(made) < 2 * SHEET else []
        vectors[kind] = torch.cat(found)
    save_tensors(options.folder / NAME, vectors)
    save_sheet(options.folder / "styles.jpg", list(torch.cat(shown).split(SHEET)))
    say("styles", f"to look at: {options.folder / 'styles.jpg'}")
