"""Learning a style: textual inversion through a style encoder (InST, Zhang et al. 2023, section 3.2, eq. 4).

The denoiser and the text encoder stay frozen; only the style encoder's parameters move.
"""
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .encoders import PictureFeatures, StyleEncoder, Vectors
from .objective import (
    Batch,
    converged,
    draw_batch,
    held_out_batches,
    noise_error,
    stratified_timesteps,
    uniform_timesteps,
)

CHECKS = 8  # held-out losses taken during a run, besides the first

# (steps done, training loss, denoised prediction (B, C, h, w)); raises to stop.
Report = Callable[[int, float, Tensor], None]


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
    """

    steps: int
    learning_rate: float
    batch_size: int = 1
    seed: int = 0
    seconds: float = 0

    def __post_init__(self):
        if self.steps < 1:
            raise ValueError(f"steps is {self.steps}; at least 1 is needed. A few hundred learn a style.")
        if self.batch_size < 1:
            raise ValueError(f"batch_size is {self.batch_size}; at least 1 is needed.")
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate is {self.learning_rate}; it must be above 0 (about 1e-4 to 1e-2).")


@dataclass(frozen=True)
class Learned:
    """What came of it.

    Attributes:
        vectors: the pseudo-words.
        losses: training loss of every step.
        held_out: losses on the fixed bank, first to last.
        kept: the held-out loss of ``vectors``.
        verdict: one line for the person who waited.
    """

    vectors: Vectors
    losses: list[float]
    held_out: list[float]
    kept: float
    verdict: str


def learn_style(session, encoder: StyleEncoder, painting: Painting, settings: Settings, report: Report) -> Learned:
    """Moves ``encoder`` until the frozen denoiser explains the painting.

    Args:
        session: ``denoiser``, ``text`` and ``device`` (see ``host.training``).
        report: called after every step.

    Returns:
        The learned vectors. Faithful encoders run all steps and keep the last, like the released code; others stop
        when the held-out loss no longer falls, and keep the best. ``encoder`` holds the same weights.

    Raises:
        ValueError: the loss is not finite.
    """
    painting = painting.clone()  # tensors made in inference mode cannot be saved for backward; their clones can
    generator = torch.Generator().manual_seed(settings.seed)
    timesteps = uniform_timesteps if encoder.faithful else stratified_timesteps
    optimizer = torch.optim.AdamW(encoder.parameters(), lr=settings.learning_rate)
    check_every = -(-settings.steps // CHECKS)
    began, late, losses = time.monotonic(), False, []
    held_out, best = [held_out_loss(session, encoder, painting, settings.batch_size)], snapshot(encoder)

    for step in range(1, settings.steps + 1):
        batch = draw_batch(painting.views, settings.batch_size, timesteps, generator)
        loss, denoised = backward(session, encoder, painting.features, batch, generator)
        if not torch.isfinite(loss):
            raise ValueError(f"The loss became {loss.item()} at step {step}. Lower learning_rate "
                             f"(now {settings.learning_rate:g}), or run ComfyUI with --force-fp32.")
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())

        late = bool(settings.seconds) and time.monotonic() - began > settings.seconds
        last = late or step == settings.steps
        if last or step % check_every == 0:
            held_out.append(held_out_loss(session, encoder, painting, settings.batch_size))
            if encoder.faithful or held_out[-1] <= min(held_out):
                best = snapshot(encoder)
        report(step, losses[-1], denoised)
        if last or (converged(held_out) and not encoder.faithful):
            break

    encoder.load_state_dict(best)
    kept = held_out[-1] if encoder.faithful else min(held_out)
    ended = "stopped by the time limit" if late else "converged" if step < settings.steps else "finished"
    verdict = f"{ended} after {step} of {settings.steps} steps, held-out loss {held_out[0]:.4f} \u2192 {kept:.4f}"
    return Learned(final_vectors(encoder, painting.features, settings.seed), losses, held_out, kept, verdict)


def backward(session, encoder: StyleEncoder, features: PictureFeatures | None, batch: Batch,
             generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
    """Accumulates d(loss)/d(encoder parameters); returns the mean loss and the denoised prediction, both detached.

    The graph is cut at the context: the text encoder is differentiated once, however many samples the batch has.
    """
    with session.text.recording():
        conditioning = session.text.encode(encoder(features, generator))
        cut = type(conditioning)(*(t if t is None else t.detach().requires_grad_() for t in conditioning))
        error, denoised = noise_error(session.denoiser, batch, cut, session.device)
        # Backward of the sum, divided afterwards: the mean's tiny gradients would vanish in a float16 denoiser.
        error.sum().backward()
        # A denoiser without size conditioning ignores the pooled output.
        reached = [(t, c.grad / error.numel()) for t, c in zip(conditioning, cut, strict=True)
                   if c is not None and c.grad is not None]
        torch.autograd.backward(*zip(*reached, strict=True))
    return error.detach().mean(), denoised.detach()


@torch.no_grad()
def held_out_loss(session, encoder: StyleEncoder, painting: Painting, batch_size: int) -> float:
    """Mean loss on the fixed bank, the encoder as it is applied (dropout off)."""
    conditioning = session.text.encode(encoder(painting.features))
    errors = [noise_error(session.denoiser, batch, conditioning, session.device)[0].flatten(1).mean(1)
              for batch in held_out_batches(painting.whole, batch_size)]
    return torch.cat(errors).mean().item()


def snapshot(encoder: StyleEncoder) -> dict[str, Tensor]:
    return {k: v.detach().clone() for k, v in encoder.state_dict().items()}


@torch.no_grad()
def final_vectors(encoder: StyleEncoder, features: PictureFeatures | None, seed: int) -> Vectors:
    """The vectors to save. ``released`` applies its style with dropout still on: one draw of it, from the seed."""
    generator = torch.Generator().manual_seed(seed) if encoder.dropout_when_applied else None
    return {k: v.detach().clone().cpu() for k, v in encoder(features, generator).items()}
