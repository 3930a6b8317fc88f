"""Learning a style: textual inversion through a style encoder (InST, Zhang et al. 2023, section 3.2, eq. 4).

The denoiser and the text encoder stay frozen; only the style encoder's parameters move.
"""
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .encoders import PictureFeatures, StyleEncoder, Vectors
from .objective import draw_batch, held_out_batches, noise_error, stratified_timesteps, uniform_timesteps

CHECKS = 8  # held-out losses taken during a run, besides the first

# (steps done, training loss, denoised prediction (B, C, h, w)); raises to stop.
Report = Callable[[int, float, Tensor], None]


@dataclass(frozen=True)
class Settings:
    """Attributes: ``steps`` optimiser steps, ``batch_size`` samples a step, AdamW ``learning_rate``, ``seed``."""

    steps: int
    learning_rate: float
    batch_size: int = 1
    seed: int = 0

    def __post_init__(self):
        if self.steps < 1:
            raise ValueError(f"steps is {self.steps}; at least 1 is needed. A few hundred learn a style.")
        if self.batch_size < 1:
            raise ValueError(f"batch_size is {self.batch_size}; at least 1 is needed.")
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate is {self.learning_rate}; it must be above 0 (about 1e-4 to 1e-2).")


@dataclass(frozen=True)
class Learned:
    """Attributes: pseudo-word ``vectors``; ``losses`` of every step; ``held_out`` losses, evenly spaced, first to last;
    ``kept`` the held-out loss of the vectors returned."""

    vectors: Vectors
    losses: list[float]
    held_out: list[float]
    kept: float

    def verdict(self) -> str:
        """One line for the person who waited."""
        return f"learned in {len(self.losses)} steps, held-out loss {self.held_out[0]:.4f} \u2192 {self.kept:.4f}"


def learn_style(session, encoder: StyleEncoder, features: PictureFeatures | None, views: Tensor, settings: Settings,
                report: Report) -> Learned:
    """Moves ``encoder`` until the frozen denoiser explains the painting.

    Args:
        session: ``denoiser``, ``text`` and ``device`` (see ``host.training``).
        features: CLIP features of the painting, for encoders that need them.
        views: (V, C, h, w) clean latents of the painting in model space, such as the picture and its mirror image.
        report: called after every step.

    Returns:
        The learned vectors. Faithful encoders keep the last step, like the released code; others the best held-out
        one. ``encoder`` holds the same weights.

    Raises:
        ValueError: the loss is not finite.
    """
    # Tensors made in inference mode cannot be saved for backward; their clones can.
    views, features = views.clone(), features and features.clone()
    generator = torch.Generator().manual_seed(settings.seed)
    timesteps = uniform_timesteps if encoder.faithful else stratified_timesteps
    optimizer = torch.optim.AdamW(encoder.parameters(), lr=settings.learning_rate)
    check_every = max(1, -(-settings.steps // CHECKS))
    losses, held_out, best = [], [held_out_loss(session, encoder, features, views, settings)], snapshot(encoder)

    for step in range(1, settings.steps + 1):
        batch = draw_batch(views, settings.batch_size, timesteps, generator)
        loss, denoised = backward(session, encoder, features, batch, generator)
        if not torch.isfinite(loss):
            raise ValueError(f"The loss became {loss.item()} at step {step}. Lower learning_rate "
                             f"(now {settings.learning_rate:g}), or run ComfyUI with --force-fp32.")
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())

        if step % check_every == 0 or step == settings.steps:
            held_out.append(held_out_loss(session, encoder, features, views, settings))
            if encoder.faithful or held_out[-1] <= min(held_out):
                best = snapshot(encoder)
        report(step, losses[-1], denoised)

    encoder.load_state_dict(best)
    kept = held_out[-1] if encoder.faithful else min(held_out)
    return Learned(final_vectors(encoder, features, settings.seed), losses, held_out, kept)


def backward(session, encoder: StyleEncoder, features: PictureFeatures | None, batch, generator) \
        -> tuple[Tensor, Tensor]:
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
def held_out_loss(session, encoder: StyleEncoder, features: PictureFeatures | None, views: Tensor,
                  settings: Settings) -> float:
    """Mean loss on the fixed bank, the encoder as it is applied (dropout off)."""
    conditioning = session.text.encode(encoder(features))
    errors = [noise_error(session.denoiser, batch, conditioning, session.device)[0].flatten(1).mean(1)
              for batch in held_out_batches(views, settings.batch_size)]
    return torch.cat(errors).mean().item()


def snapshot(encoder: StyleEncoder) -> dict[str, Tensor]:
    return {k: v.detach().clone() for k, v in encoder.state_dict().items()}


@torch.no_grad()
def final_vectors(encoder: StyleEncoder, features: PictureFeatures | None, seed: int) -> Vectors:
    """The vectors to save. ``released`` applies its style with dropout still on: one draw of it, from the seed."""
    generator = torch.Generator().manual_seed(seed) if encoder.dropout_when_applied else None
    return {k: v.detach().clone().cpu() for k, v in encoder(features, generator).items()}
