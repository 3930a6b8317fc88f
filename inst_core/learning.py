"""Learning a style: textual inversion through a style encoder (InST, Zhang et al. 2023, section 3.2, eq. 4).

The denoiser and the text encoder stay frozen; only the style encoder's parameters move.
"""
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from .encoders import DirectEncoder, PictureFeatures, StyleEncoder, Vectors
from .memory import WithinMemory, is_out_of_memory, kept_for_backward
from .objective import (
    RELEASED,
    Batch,
    Objective,
    converged,
    held_out_bank,
    noise_error,
    samples,
    weighted,
)

# Defaults, chosen by the ablation in docs/learning.md.
TOKENS, STEPS, BATCH_SIZE, CROPS = 4, 100, 4, 16
START_WORDS = "painting"

# Held-out losses are taken about every CHECK_SAMPLES samples, and at most MOST_CHECKS times in a run.
CHECK_SAMPLES, MOST_CHECKS = 40, 40
SHARE_OF_FREE_MEMORY = 0.8  # that activations may take; the rest is for what comes and goes

# (steps done, samples done, training loss, denoised predictions (B, C, h, w)); raises to stop.
Report = Callable[[int, int, float, Tensor], None]
Weights = dict[str, Tensor]


@dataclass(frozen=True)
class Room:
    """How much is computed at once. Results depend on it to rounding only.

    Attributes:
        samples: of one optimiser step that go through the denoiser together.
        recompute: activations of the denoiser's blocks are computed again for backward instead of being kept (Chen et
            al. 2016, gradient checkpointing).
    """

    samples: int
    recompute: bool = False

    def halved(self) -> "Room | None":
        """Half the samples; at one sample recomputation; then nothing is left to try."""
        if self.samples > 1:
            return replace(self, samples=self.samples // 2)
        return None if self.recompute else replace(self, recompute=True)


@dataclass(frozen=True)
class Painting:
    """What is learned from.

    Attributes:
        views: (V, C, h, w) clean latents in model space: crops of the painting, or it and its mirror image.
        whole: (P, C, h', w') latents of the whole painting, on which the held-out loss is taken.
        features: what CLIP sees, for encoders that need it.
    """

    views: Tensor
    whole: Tensor
    features: PictureFeatures | None = None

    def clone(self) -> "Painting":
        return Painting(self.views.clone(), self.whole.clone(), self.features and self.features.clone())


@dataclass(frozen=True)
class Settings:
    """How to learn.

    Attributes:
        steps: optimiser steps, at the most.
        learning_rate: of AdamW.
        batch_size: samples a step.
        seed: draws everything that is random.
        seconds: time limit, 0 = none.
        objective: which samples, for encoders that are not ``faithful``.
        keep_norm: vectors of ``direct`` keep the length they start with.
        ema: decay of the average of the encoder's weights that is kept as the result, 0 = no average.
    """

    steps: int = STEPS
    learning_rate: float = DirectEncoder.learning_rate
    batch_size: int = BATCH_SIZE
    seed: int = 0
    seconds: float = 0
    objective: Objective = field(default_factory=Objective)
    keep_norm: bool = False
    ema: float = 0.0

    def __post_init__(self):
        if self.steps < 1:
            raise ValueError(f"steps is {self.steps}; at least 1 is needed. A hundred or so learn a style.")
        if self.batch_size < 1:
            raise ValueError(f"batch_size is {self.batch_size}; at least 1 is needed.")
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate is {self.learning_rate}; it must be above 0 (about 1e-4 to 1e-2).")


class Check(NamedTuple):
    """A held-out loss, and how many samples and seconds of learning came before it."""

    samples: int
    seconds: float
    loss: float


@dataclass(frozen=True)
class Learned:
    """What came of it.

    Attributes:
        vectors: the pseudo-words.
        losses: training loss of every step.
        checks: losses on the fixed bank, first to last.
        kept: the held-out loss of ``vectors``.
        verdict: one line for the person who waited.
    """

    vectors: Vectors
    losses: list[float]
    checks: list[Check]
    kept: float
    verdict: str


def learn_style(session, encoder: StyleEncoder, painting: Painting, settings: Settings, report: Report) -> Learned:
    """Moves ``encoder`` until the frozen denoiser explains the painting.

    Args:
        session: ``denoiser``, ``text``, ``device``, ``free_bytes`` (see ``host.training.TrainingSession``).
        report: called after every step.

    Returns:
        The learned vectors. Faithful encoders run all steps and keep the last, like the released code; others stop
        when the held-out loss no longer falls, and keep the best. ``encoder`` holds the same weights.

    Raises:
        ValueError: the loss or its gradient is not finite.
    """
    session.denoiser.forget()
    painting = painting.clone()  # tensors made in inference mode cannot be saved for backward; their clones can
    generator = torch.Generator().manual_seed(settings.seed)
    objective = RELEASED if encoder.faithful else settings.objective
    batches = samples(painting.views, settings.batch_size, objective, session.denoiser.log_snr, generator)
    optimizer = torch.optim.AdamW(encoder.parameters(), lr=settings.learning_rate, fused=True)
    within_memory = WithinMemory(room_for(session, encoder, painting, settings.batch_size))
    norms, average = row_norms(encoder), copied(encoder.state_dict()) if settings.ema else None
    check_every = max(1, CHECK_SAMPLES // settings.batch_size, settings.steps // MOST_CHECKS)
    began, late, losses, checks = time.monotonic(), False, [], []

    def check() -> None:
        with holding(encoder, average):
            loss = within_memory(lambda room: held_out_loss(session, encoder, painting, room))
        checks.append(Check(len(losses) * settings.batch_size, time.monotonic() - began, loss))

    check()
    best = copied(encoder.state_dict())
    for step in range(1, settings.steps + 1):
        batch = next(batches)
        loss, denoised = within_memory(
            lambda room, batch=batch: backward(session, encoder, painting.features, batch, generator, room))
        check_finite(loss, encoder, step, settings)
        optimizer.step()
        optimizer.zero_grad()
        if settings.keep_norm:
            restore_norms(encoder, norms)
        if settings.ema:
            update_average(average, encoder, settings.ema)
        losses.append(loss.item())

        late = bool(settings.seconds) and time.monotonic() - began > settings.seconds
        last = late or step == settings.steps
        if last or step % check_every == 0:
            check()
            if encoder.faithful or checks[-1].loss <= min(c.loss for c in checks):
                best = copied(average or encoder.state_dict())
        report(step, step * settings.batch_size, losses[-1], denoised)
        if last or (converged([c.loss for c in checks]) and not encoder.faithful):
            break

    encoder.load_state_dict(best)
    kept = checks[-1].loss if encoder.faithful else min(c.loss for c in checks)
    ended = "stopped by the time limit" if late else "converged" if step < settings.steps else "finished"
    verdict = (f"{ended} after {step} of {settings.steps} steps ({checks[-1].samples} samples, "
               f"{checks[-1].seconds:.1f} s), held-out loss {checks[0].loss:.4f} \u2192 {kept:.4f}"
               f"{economy(within_memory.limits, settings)}")
    return Learned(final_vectors(encoder, painting.features, settings.seed), losses, checks, kept, verdict)


def backward(session, encoder: StyleEncoder, features: PictureFeatures | None, batch: Batch,
             generator: torch.Generator | None, room: Room) -> tuple[Tensor, Tensor]:
    """Accumulates d(loss)/d(encoder parameters); returns the mean loss and the denoised predictions, both detached.

    Cut in two at the context: the denoiser gives d(loss)/d(context), as many samples at a time as there is room for;
    the text encoder, run a second time with gradients, carries it on to the encoder.
    """
    session.denoiser.recompute = room.recompute
    state = generator and generator.get_state()
    try:
        vectors = encoder(features, generator)
        context = leaf(text_of(session, vectors))
        total, parts = 0.0, []
        for part in batch.split(room.samples):
            error, denoised = noise_error(session.denoiser, part, context, session.device)
            loss = weighted(error, part.weight).sum()
            # The sum, divided afterwards: the mean's tiny gradients would vanish in a float16 denoiser.
            loss.backward()
            total += loss.detach()
            parts.append(denoised.detach())
        count = batch.latent.numel()
        with session.text.recording():
            # A denoiser without size conditioning ignores the pooled output.
            reached = [(t, c.grad / count) for t, c in zip(tree_leaves(session.text.encode(vectors)),
                                                           tree_leaves(context), strict=True)
                       if torch.is_tensor(c) and c.grad is not None]
            torch.autograd.backward(*zip(*reached, strict=True))
    except BaseException:
        if generator:
            generator.set_state(state)  # a second try with less memory draws the same dropout
        raise
    return total / count, torch.cat(parts)


@torch.no_grad()
def text_of(session, vectors: Vectors):
    """The context of the prompt with these pseudo-words, without gradients."""
    return session.text.encode({k: v.detach() for k, v in vectors.items()})


def leaf(conditioning):
    """The same, as the place where a gradient ends. Some text encoders give further tensors, masks among them."""
    return tree_map(lambda t: t.detach().requires_grad_(t.is_floating_point()) if torch.is_tensor(t) else t,
                    conditioning)


def room_for(session, encoder: StyleEncoder, painting: Painting, samples: int) -> Room:
    """How many of ``samples`` go through the denoiser together, by what backward keeps of one and the memory that is
    free; with recomputation where not even one fits."""
    try:
        kept = kept_of_one_sample(session, encoder, painting)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        return Room(1, recompute=True)
    fitting = int(SHARE_OF_FREE_MEMORY * session.free_bytes() / max(kept, 1))
    return Room(min(samples, max(1, fitting)), recompute=fitting < 1)


def kept_of_one_sample(session, encoder: StyleEncoder, painting: Painting) -> int:
    """Bytes of activations that backward keeps of one sample, nothing recomputed."""
    session.denoiser.recompute = False
    one = next(held_out_bank(painting.views).split(1))
    context = leaf(text_of(session, encoder(painting.features)))
    return kept_for_backward(lambda: noise_error(session.denoiser, one, context, session.device)[0])


@torch.no_grad()
def held_out_loss(session, encoder: StyleEncoder, painting: Painting, room: Room) -> float:
    """Mean loss on the fixed bank, the encoder as it is applied (dropout off)."""
    conditioning = text_of(session, encoder(painting.features))
    errors = [noise_error(session.denoiser, batch, conditioning, session.device)[0].flatten(1).mean(1)
              for batch in held_out_bank(painting.whole).split(room.samples)]
    return torch.cat(errors).mean().item()


def check_finite(loss: Tensor, encoder: StyleEncoder, step: int, settings: Settings) -> None:
    """Raises ValueError before a broken gradient reaches the style."""
    gradient = torch.stack([p.grad.norm() for p in encoder.parameters() if p.grad is not None]).norm()
    if torch.isfinite(loss) and torch.isfinite(gradient):
        return
    raise ValueError(f"At step {step} the loss was {loss.item():g} and its gradient {gradient.item():g}. Lower "
                     f"learning_rate (now {settings.learning_rate:g}), or run ComfyUI with --bf16-unet or "
                     "--force-fp32.")


def row_norms(encoder: StyleEncoder) -> list[Tensor]:
    """Lengths of the free vectors of an encoder, one (n, 1) for each text encoder."""
    return [p.detach().norm(dim=-1, keepdim=True) for p in encoder.free_vectors()]


@torch.no_grad()
def restore_norms(encoder: StyleEncoder, norms: list[Tensor]) -> None:
    """Puts free vectors back to these lengths: learned tokens grow far beyond the vocabulary's otherwise, and drown
    the rest of the prompt (Kim et al. 2026, directional textual inversion; here by projection after AdamW)."""
    for vectors, norm in zip(encoder.free_vectors(), norms, strict=True):
        vectors.mul_(norm / vectors.norm(dim=-1, keepdim=True))


@torch.no_grad()
def update_average(average: Weights, encoder: StyleEncoder, decay: float) -> None:
    """Moves ``average`` towards the encoder's weights."""
    for key, value in encoder.state_dict().items():
        average[key].lerp_(value, 1 - decay)


@contextmanager
def holding(encoder: StyleEncoder, weights: Mapping[str, Tensor] | None) -> Iterator[None]:
    """The encoder with other weights for a while."""
    if weights is None:
        yield
        return
    own = copied(encoder.state_dict())
    encoder.load_state_dict(weights)
    try:
        yield
    finally:
        encoder.load_state_dict(own)


def copied(weights: Mapping[str, Tensor]) -> Weights:
    return {k: v.detach().clone() for k, v in weights.items()}


def economy(room: Room, settings: Settings) -> str:
    """What the verdict says when memory was short."""
    if room == Room(settings.batch_size):
        return ""
    return f"; memory was short: {room.samples} at once{', with recomputation' if room.recompute else ''}"


@torch.no_grad()
def final_vectors(encoder: StyleEncoder, features: PictureFeatures | None, seed: int) -> Vectors:
    """The vectors to save. ``released`` applies its style with dropout still on: one draw of it, from the seed."""
    generator = torch.Generator().manual_seed(seed) if encoder.dropout_when_applied else None
    return {k: v.detach().clone().cpu() for k, v in encoder(features, generator).items()}
