"""Stochastic inversion: keep the content by starting synthesis from the noise that the model itself predicts.

InST (Zhang et al., CVPR 2023), section 3.3; official ``ldm/models/diffusion/ddim.py::stochastic_encode`` and the
inference notebook.  Noise a latent to the level of ``strength``, predict its noise once (style conditioning, no
guidance), and noise the latent again with the predicted noise.

Everything is written in the host's own terms: a ``model_sampling`` object whose ``noise_scaling(sigma, n, z)`` is
affine in ``n`` and ``z``.  That holds for eps, v and flow parametrisations alike, so none of them is named here.
"""
import hashlib
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

Timing = Literal["matched", "released"]
TIMINGS: tuple[Timing, ...] = ("matched", "released")

# The released code counts its noise levels in thousandths and decodes with this many DDIM steps.
TRAIN_TIMESTEPS = 1000
RELEASED_STEPS = 50


class ModelSampling(Protocol):
    """The part of the host's ``model_sampling`` used here."""

    def noise_scaling(self, sigma: Tensor, noise: Tensor, latent_image: Tensor, max_denoise: bool = False) -> Tensor:
        """x at level ``sigma`` from noise and clean latent."""

    def sigma(self, timestep: Tensor) -> Tensor:
        """Noise level of a (fractional) training timestep."""


def noise_between(model_sampling: ModelSampling, sigma: Tensor, x: Tensor, z: Tensor,
                  max_denoise: bool = False) -> Tensor:
    """The noise n with ``noise_scaling(sigma, n, z) == x``: eps (x - z)/sigma, flow (x - (1 - sigma) z)/sigma.

    With ``z`` the denoised prediction D this is the noise the model predicts; with ``z`` the clean latent it is the
    noise to hand to a sampler that must start at ``x``.

    Args:
        sigma: scalar noise level, > 0.
        x, z: (B, C, ...) in model space.
        max_denoise: what the sampler will pass (the host scales noise differently at its highest level).
    """
    nothing = torch.zeros_like(z)
    per_noise = model_sampling.noise_scaling(sigma, torch.ones_like(z), nothing, max_denoise)
    return (x - model_sampling.noise_scaling(sigma, nothing, z, max_denoise)) / per_noise


def indices_of(latent: dict) -> list[int] | None:
    """``batch_index`` of a LATENT: the place that each picture has in the batch it comes from, or None.

    Raises:
        ValueError: not one index, 0 or more, for each picture.
    """
    index, count = latent.get("batch_index"), len(latent["samples"])
    if index is None:
        return None
    index = [int(i) for i in index]
    if len(index) != count or any(i < 0 for i in index):
        raise ValueError(f"latent holds {count} pictures, its batch_index is {_listed(index)}; expected one index, 0 "
                         "or more, for each picture. Send it through Latent Batch Seed Behavior, set to random, which "
                         "numbers the pictures anew.")
    return index


def _listed(index: Sequence[int]) -> str:
    shown = [str(i) for i in index[:8]]
    return f"[{', '.join(shown + ['...'] * (len(index) > 8))}]"


def fresh_noise(shape: Sequence[int], seed: int, batch_index: Sequence[int] | None = None) -> Tensor:
    """One Gaussian picture per latent, drawn one after the other from ``seed``.

    Item i of a batch always gets the i-th draw (or the one that ``batch_index`` names), so a batch split in two
    sees the same noise.  Returns (B, C, ...) float32 on the CPU; the global generator is not touched.
    """
    index = range(shape[0]) if batch_index is None else batch_index
    generator = torch.Generator().manual_seed(seed)
    draws, wanted = {}, set(index)
    for i in range(max(wanted) + 1):
        draw = torch.randn(tuple(shape[1:]), generator=generator)
        if i in wanted:
            draws[i] = draw
    return torch.stack([draws[i] for i in index])


def stochastic_inversion(model_sampling: ModelSampling, denoise: Callable[[Tensor, Tensor], Tensor],
                         z0: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
    """The noise that the model sees in ``z0`` at level ``sigma`` (InST section 3.3).

    Args:
        denoise: D(x, sigma) under the style conditioning, without guidance.
        z0: clean content latent (B, C, ...) in model space.
        noise: fresh Gaussian of the same shape.
        sigma: scalar level of the chosen strength.

    Returns:
        Predicted noise (B, C, ...).
    """
    x = model_sampling.noise_scaling(sigma, noise, z0)
    return noise_between(model_sampling, sigma, x, denoise(x, sigma))


def released_timesteps(strength: float, steps: int = RELEASED_STEPS) -> tuple[int, list[int]]:
    """The two levels of the released code: where it adds noise, and the DDIM timesteps it then decodes, descending.

    ``t = int(1000 s)`` and DDIM index ``int(s N)`` are computed apart and differ (700 against 681 for s = 0.7 and
    N = 50).  Official: notebook cell "stochastic inversion" and ``make_ddim_timesteps('uniform')``.

    Raises:
        ValueError: strength outside (0, 1), steps beyond the training's, or none left.
    """
    if not 1 <= steps <= TRAIN_TIMESTEPS:
        raise ValueError(f"steps is {steps}: released timing divides {TRAIN_TIMESTEPS} training steps by it. Use 1 to "
                         f"{TRAIN_TIMESTEPS}, or timing 'matched'.")
    t_noise, count = int(strength * TRAIN_TIMESTEPS), int(strength * steps)
    least = math.ceil(1000 / max(steps, 2)) / 1000
    if not (0.0 < strength < 1.0) or count < 1:
        raise ValueError(
            f"strength is {strength}: released timing with {steps} steps runs int(strength * steps) = {count} of them "
            f"and reads level int(1000 * strength) of 0..999. Use at least 2 steps and {least:g} <= "
            "strength < 1, or timing 'matched'.")
    ddim = range(1, TRAIN_TIMESTEPS + 1, TRAIN_TIMESTEPS // steps)[:count]
    return t_noise, list(reversed(ddim))


def released_start(model_sampling: ModelSampling, x_noised: Tensor, sigma_noise: Tensor, sigma_start: Tensor) -> Tensor:
    """Hands a latent noised at one level to a sampler that starts at another, as the released code does.

    The released code works on variance-preserving latents and does not rescale them between its two levels, so what
    stays the same is x / sqrt(sigma^2 + 1).
    """
    return x_noised * ((sigma_start**2 + 1) / (sigma_noise**2 + 1)).sqrt()


def fingerprints(samples: Tensor) -> tuple[str, ...]:
    """What each latent of (B, C, ...) holds, as a short text: equal for equal latents."""
    return tuple(hashlib.sha256(x.detach().float().cpu().contiguous().numpy().tobytes()).hexdigest() for x in samples)


@dataclass(frozen=True)
class InversionNoise:
    """A NOISE socket value: the noise that puts a sampler exactly on the inverted start.

    The noise of one photograph makes another one shine through, so each row remembers whose it is.

    Attributes:
        seed: what the sampler uses for its own stochastic steps.
        noise: (B, C, ...) float32 on the CPU, in model space.
        sigma: the level it was made for; a sampler should start there.
        batch_index: of the latents that were inverted; None counts them from 0.
        contents: their fingerprints.
    """

    seed: int
    noise: Tensor
    sigma: float
    batch_index: tuple[int, ...] | None = None
    contents: tuple[str, ...] = ()

    def generate_noise(self, latent: dict) -> Tensor:
        """Noise for ``latent["samples"]``: to each latent its own, whatever part of the batch came in which order.

        Raises:
            ValueError: the latent has another size than the one that was inverted, or was not inverted at all.
        """
        samples = latent["samples"]
        if samples.shape[1:] != self.noise.shape[1:]:
            raise ValueError(
                f"The inversion noise was made for latents of size {tuple(self.noise.shape[1:])}, but the sampler got "
                f"{tuple(samples.shape[1:])}. Connect the same LATENT to Stochastic Invert Latent and to the sampler.")
        return self.noise[self._rows(fingerprints(samples), indices_of(latent))]

    def _rows(self, contents: Sequence[str], index: list[int] | None) -> list[int]:
        """Which row belongs to each latent.

        What a latent holds tells whose it is.  Several rows made for the same content (a repeated still) are told
        apart by ``batch_index``, and so are latents that were changed since.  Where nothing tells them apart, they
        come in order, all of them, once or repeated.
        """
        known = list(self.batch_index or range(len(self.noise)))
        same_seed = index is not None and len(index) == len(known) and len(set(index)) == 1
        in_order = index is None or index == known or same_seed
        distinct = index is not None and len(set(index)) == len(index) and len(set(known)) == len(known)
        fixed = index is not None and len(set(index)) == 1 < len(set(contents))  # Latent Batch Seed Behavior
        met: Counter[str] = Counter()
        by_index: dict[str, int] = {}
        rows = []
        for place, content in enumerate(contents):
            made_for_it = [row for row, made_for in enumerate(self.contents) if made_for == content]
            if made_for_it and (in_order or not distinct or len(made_for_it) == 1):
                row = made_for_it[met[content] % len(made_for_it)]
            elif len(contents) % len(known) if in_order else fixed and not made_for_it:
                raise ValueError(f"The connected NOISE was inverted from {len(known)} latents; the sampler got "
                                 f"{len(contents)}, which were changed since, and nothing says which they are. Connect "
                                 "the LATENT that you sample to Stochastic Invert Latent, too, or leave noise of InST "
                                 "Sample open: it then inverts its own latent.")
            elif in_order:
                row = place % len(known)
            elif content in by_index and self.contents.count(self.contents[by_index[content]]) == 1:
                row = by_index[content]  # a picture repeated: its places count on, though they are others' places
            else:
                row = by_index[content] = self._row_of(index[place], made_for_it or range(len(known)), known)
            met[content] += 1
            rows.append(row)
        return rows

    def _row_of(self, index: int, among: Sequence[int], known: Sequence[int]) -> int:
        """The row of ``among`` that was made for the latent of that ``batch_index``."""
        rows = [row for row in among if known[row] == index]
        if len(rows) != 1:
            found = "none of them" if not rows else f"{len(rows)} of them"
            raise ValueError(
                f"The connected NOISE was inverted from latents {_listed(known)} of a batch; the sampler asks for "
                f"latent {index}, which is {found}. Connect to Stochastic Invert Latent a LATENT that holds every "
                "picture you sample, or leave noise of InST Sample open: it then inverts its own latent.")
        return rows[0]
