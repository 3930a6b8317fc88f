"""Samples of the loss: a clean latent, its noise and a noise level, drawn once and met again and again.

A noise level is named by its training time in [0, 1], 1 = pure noise.
"""
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .recipes import Recipe

TRAIN_TIMESTEPS = 1000
HELD_OUT_SEED = 0x1257
HELD_OUT_LEVELS = 8


@dataclass(frozen=True)
class Batch:
    """Samples of the loss.

    Attributes:
        latent, noise: clean latents and their noise, (B, C, h, w).
        time: (B,) training times in [0, 1].
        prepared: what the denoiser computed of them once and for all, (B, ...) each; see ``Denoiser.prepare``.
        weight: (B, 1, h, w) how much each place of a latent counts; None = all alike.
    """

    latent: Tensor
    noise: Tensor
    time: Tensor
    prepared: tuple[Tensor, ...] = ()
    weight: Tensor | None = None

    def __len__(self) -> int:
        return len(self.time)

    @property
    def prepared_bytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.prepared)

    def take(self, index: Tensor) -> "Batch":
        """The samples at ``index`` (n,)."""
        return Batch(self.latent[index], self.noise[index], self.time[index],
                     tuple(tensor[index.to(tensor.device)] for tensor in self.prepared),
                     None if self.weight is None else self.weight[index])

    def split(self, size: int) -> Iterator["Batch"]:
        """Parts of at most ``size`` samples."""
        return map(self.take, torch.arange(len(self)).split(size))


def draw_fresh(views: Tensor, recipe: Recipe, generator: torch.Generator,
               weights: Tensor | None = None, weakest: float = 0.0) -> Iterator[Batch]:
    """For ever batches of random views with fresh noise, at times uniform over the 1000 discrete ones; the released
    recipe.

    Args:
        weights: of the views' places, as in ``Batch``.
        weakest: lowest time.
    """
    while True:
        chosen = torch.randint(len(views), (recipe.batch,), generator=generator)
        noise = torch.randn((recipe.batch, *views.shape[1:]), generator=generator)
        time = torch.randint(TRAIN_TIMESTEPS, (recipe.batch,), generator=generator) / (TRAIN_TIMESTEPS - 1)
        yield Batch(views[chosen], noise, _between(weakest, recipe.strongest, time),
                    weight=None if weights is None else weights[chosen])


def draw_bank(views: Tensor, recipe: Recipe, generator: torch.Generator, weights: Tensor | None = None,
              weakest: float = 0.0) -> Batch:
    """``recipe.bank`` samples with stratified times (Kingma et al. 2021, appendix I.1), ordered by time.

    There are no more than the run can meet, and no fewer than a batch.

    Args:
        weights: of the views' places, as in ``Batch``.
        weakest: lowest time.
    """
    count = max(recipe.batch, min(recipe.bank, recipe.batch * recipe.steps))
    time = (torch.arange(count) + torch.rand(count, generator=generator)) / count
    time = _between(weakest, recipe.strongest, time)
    noise = torch.randn((count, *views.shape[1:]), generator=generator)
    order = torch.randperm(count, generator=generator)
    chosen = order % len(views)
    return Batch(views[chosen], noise, time, weight=None if weights is None else weights[chosen])


def rounds(bank: Batch, count: int, generator: torch.Generator) -> Iterator[Batch]:
    """For ever batches of ``count`` samples of the bank, each spread over all levels; about every sample once before
    any comes again."""
    while True:
        # Row i: a stratum of neighbouring levels in random order; column j: what the j-th batch takes.
        rows = [part[torch.randperm(len(part), generator=generator)]
                for part in torch.arange(len(bank)).tensor_split(count)]
        for j in range(max(len(row) for row in rows)):
            yield bank.take(torch.stack([row[j % len(row)] for row in rows]))


def held_out_bank(whole: Tensor, strongest: float = 1.0, weights: Tensor | None = None, weakest: float = 0.0) -> Batch:
    """Samples that are never trained on: the same noise in every run, at evenly spaced levels of those that are
    learned.

    Only on a fixed bank is the loss comparable between steps (Voronov et al. 2023, "Is This Loss Informative?").

    Args:
        weights: of the places of ``whole``, as in ``Batch``.
        strongest, weakest: highest and lowest time.
    """
    generator = torch.Generator().manual_seed(HELD_OUT_SEED)
    chosen = torch.arange(HELD_OUT_LEVELS) % len(whole)
    latent = whole[chosen]
    noise = torch.randn(latent.shape, generator=generator)
    time = _between(weakest, strongest, (torch.arange(HELD_OUT_LEVELS) + 0.5) / HELD_OUT_LEVELS)
    return Batch(latent, noise, time, weight=None if weights is None else weights[chosen])


def _between(weakest: float, strongest: float, share: Tensor) -> Tensor:
    """Times from the one to the other at shares in [0, 1] of the way."""
    return weakest + share * (strongest - weakest)


def prepare(denoiser, bank: Batch, size: int, device: torch.device, report: Callable[[int], object]) -> Batch:
    """The bank with what the denoiser computes of it once and for all, ``size`` samples at a time.

    Args:
        device: where the results are kept.
        report: called with the number of samples that are done, where there is anything to do; raises to stop.
    """
    parts = []
    for part in bank.split(size):
        computed = denoiser.prepare(part)
        if not computed:
            return bank
        parts.append([tensor.to(device) for tensor in computed])
        report(min(len(bank), len(parts) * size))
    return replace(bank, prepared=tuple(torch.cat(tensors) for tensors in zip(*parts, strict=True)))
