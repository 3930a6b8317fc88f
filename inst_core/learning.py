"""Learning a style: textual inversion through a style encoder (InST, Zhang et al. 2023, section 3.2, eq. 4).

The denoiser and the text encoder stay frozen; only the style encoder's parameters move.
"""
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple, NoReturn

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from .adapter import part_weights
from .bank import Batch, draw_bank, draw_fresh, held_out_bank, rounds
from .batch_plan import BatchPlan, describe_economy, plan_batches, prepare_bank
from .encoders import PictureFeatures, StyleEncoder, Vectors
from .loss_scale import LossScale
from .memory import WithinMemory
from .objective import converged, squared_error
from .recipes import Recipe
from .session import Session, encode_detached, make_leaves
from .stages import Stage

CHECK_SAMPLES = 40  # between two held-out losses; in long runs a tenth of what was learned from so far
LEAST_GAIN = 1e-6  # share of the held-out loss; less is rounding
GROWN = 10.0  # times its first length, from which on a pseudo-word is no word to the text encoder any more

Weights = dict[str, Tensor]


@dataclass(frozen=True)
class Painting:
    """The pictures that a style is learned from.

    Attributes:
        views: (V, C, h, w) clean latents in model space: crops of the painting, or it and its mirror image.
        whole: (P, C, h', w') latents of the whole painting, on which the held-out loss is taken.
        features: what CLIP sees, for encoders that need it.
        view_weights, whole_weights: (V, 1, h, w) and (P, 1, h', w') how much each place counts; None = all alike.
    """

    views: Tensor
    whole: Tensor
    features: PictureFeatures | None = None
    view_weights: Tensor | None = None
    whole_weights: Tensor | None = None

    def clone(self) -> "Painting":
        weights = (None if w is None else w.clone() for w in (self.view_weights, self.whole_weights))
        return Painting(self.views.clone(), self.whole.clone(), self.features and self.features.clone(), *weights)


class Check(NamedTuple):
    """A held-out loss, and how many samples and seconds of learning came before it."""

    samples: int
    seconds: float
    loss: float


class Step(NamedTuple):
    """What is known after a step.

    Attributes:
        done, steps: steps done, and steps at the most.
        gain: share of the held-out loss that the best style so far took away.
        seconds_left: at the most.
        denoised: (B, C, h, w) denoised predictions, from little to much noise.
    """

    done: int
    steps: int
    gain: float
    seconds_left: float
    denoised: Tensor


@dataclass(frozen=True)
class Learned:
    """The result of a run.

    Attributes:
        vectors: the pseudo-words.
        weights: of the encoder that makes them.
        losses: training loss of every step.
        checks: losses on the fixed bank, first to last.
        kept: the held-out loss of ``vectors``.
        ended: how the run ended, one of ``ENDINGS``.
        verdict: one line for the person who waited.
        adapter: weights of the adapter that was learned beside the encoder, if there is one (see ``adapter``).
        stages: the pseudo-words of every stage, of which ``vectors`` is the middle one; empty where all noise levels
            have the same.
    """

    vectors: Vectors
    weights: Weights
    losses: list[float]
    checks: list[Check]
    kept: float
    ended: str
    verdict: str
    adapter: Weights = field(default_factory=dict)
    stages: tuple[Stage, ...] = ()


def learn_style(session: Session, encoder: StyleEncoder, painting: Painting, recipe: Recipe,
                report: Callable[[Step], object] = lambda step: None, tell: Callable[[str], object] = lambda text: None,
                rescue: Callable[[Learned], object] = lambda learned: None, weakest: float = 0.0,
                must_gain: bool = True) -> Learned:
    """Moves ``encoder`` until the frozen denoiser explains the painting.

    Args:
        report: called after every step; raises to stop.
        tell: called with a line about what goes on before the first step; raises to stop.
        rescue: called with the best style so far when the run ends by an exception, interrupts included, and
            something was learned by then. The exception goes on its way afterwards.
        weakest: lowest training time that is learned from and judged by; the recipe has the highest.
        must_gain: a run that gained nothing is an error; otherwise its style is where it began.

    Returns:
        The learned vectors: the best by held-out loss, or the last, as the recipe says. ``encoder`` holds the same
        weights.

    Raises:
        ValueError: nothing was learned, or the loss or its gradient is not finite.
    """
    painting = painting.clone()  # tensors made in inference mode cannot be saved for backward; their clones can
    generator = torch.Generator().manual_seed(recipe.seed)
    views, weights = painting.views, painting.view_weights
    bank = draw_bank(views, recipe, generator, weights, weakest) if recipe.bank else None
    held_out = held_out_bank(painting.whole, recipe.strongest, painting.whole_weights, weakest)

    run = Run(recipe, encoder, painting.features)

    tell("finding out how much fits into memory")
    plan, place = plan_batches(session, encoder, painting.features, bank, held_out, recipe.batch)
    within_memory = WithinMemory(plan, session.is_out_of_memory)
    held_out = within_memory(partial(prepare_bank, session, held_out, place, tell))
    if bank is not None:
        bank = within_memory(partial(prepare_bank, session, bank, place, tell))

    batches = (draw_fresh(views, recipe, generator, weights, weakest) if bank is None
               else rounds(bank, recipe.batch, generator))
    optimizer = torch.optim.AdamW(encoder.parameter_groups(recipe.rate))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, recipe.rate_at)
    scale = LossScale()

    tell("measuring how well the model knows the painting already")
    check = partial(held_out_loss, session, encoder, painting.features, held_out)
    run.note_check(within_memory(check))
    try:
        for step in range(1, recipe.steps + 1):
            loss, denoised = finite_gradient(session, run, next(batches), draw_seed(generator), within_memory, scale)
            optimizer.step()
            schedule.step()
            run.losses.append(loss)

            last = run.out_of_time or step == recipe.steps
            if last or run.check_is_due:
                run.note_check(within_memory(check))
            report(run.progress(denoised))
            if last or run.converged:
                break
    except BaseException as reason:
        try:
            if run.gained:
                rescue(run.finish(STOPPED, within_memory.limits))
        finally:
            raise reason  # also when what was learned could not be saved
    if must_gain:
        run.check_gained()
    ended = FINISHED if step == recipe.steps else TIME_LIMIT if last else CONVERGED
    return run.finish(ended, within_memory.limits)


class Run:
    """What happened so far in one run.

    Attributes:
        losses: training losses of the steps.
        checks: held-out losses.
    """

    def __init__(self, recipe: Recipe, encoder: StyleEncoder, features: PictureFeatures | None):
        self.recipe, self.encoder, self.features = recipe, encoder, features
        self.began, self.losses, self.checks = time.monotonic(), [], []
        self._first_lengths = lengths(encoder, features)
        self._kept, self._weights = float("inf"), copy_weights(encoder)

    @property
    def out_of_time(self) -> bool:
        return bool(self.recipe.seconds) and time.monotonic() - self.began > self.recipe.seconds

    @property
    def gain(self) -> float:
        """Share of the first held-out loss that is gone with the style that would be kept now."""
        return 1 - self._kept / self.checks[0].loss

    @property
    def gained(self) -> bool:
        return self.gain > LEAST_GAIN

    @property
    def check_is_due(self) -> bool:
        checked = self.checks[-1].samples // self.recipe.batch
        return len(self.losses) - checked >= steps_to_next_check(self.recipe, checked)

    @property
    def converged(self) -> bool:
        return self.recipe.patience is not None and converged([c.loss for c in self.checks], self.recipe.patience)

    @property
    def growth(self) -> float:
        """How many times longer than at first the longest pseudo-word is."""
        now = lengths(self.encoder, self.features)
        return max(float((now[k] / self._first_lengths[k].clamp_min(1e-12)).max()) for k in now)

    def note_check(self, loss: float) -> None:
        """Takes a held-out loss of the encoder as it is; its weights are kept where they are the best."""
        self.checks.append(Check(len(self.losses) * self.recipe.batch, time.monotonic() - self.began, loss))
        if loss <= self._kept or not self.recipe.keep_best:
            self._kept, self._weights = loss, copy_weights(self.encoder)

    def progress(self, denoised: Tensor) -> Step:
        done, steps, spent = len(self.losses), self.recipe.steps, time.monotonic() - self.began
        left = (spent - self.checks[0].seconds) / done * (steps - done)
        if self.recipe.seconds:
            left = min(left, max(0.0, self.recipe.seconds - spent))
        return Step(done, steps, self.gain, left, denoised)

    def finish(self, ended: str, plan: BatchPlan) -> Learned:
        """The style that is kept; the encoder gets its weights back."""
        self.encoder.load_state_dict(self._weights)
        vectors = final_vectors(self.encoder, self.features, self.recipe.seed)
        verdict = (f"{percent(self.gain)} closer to the painting by held-out loss; {ENDINGS[ended]} after "
                   f"{len(self.losses)} of {self.recipe.steps} steps, {self.checks[-1].seconds:.0f} s"
                   f"{describe_economy(plan, self.recipe)}")
        weights, adapter = part_weights(self._weights)
        return Learned(vectors, weights, self.losses, self.checks, self._kept, ended, verdict, adapter)

    def check_gained(self) -> None:
        """Raises ValueError, with the likely reason, if nothing was learned."""
        if self.gained:
            return
        first, later, recipe = self.checks[0].loss, min(check.loss for check in self.checks[1:]), self.recipe
        counted = f"after {len(self.losses)} steps the held-out loss was {later:.4f}, and {first:.4f} before"
        if self.checks[-1].samples < CHECK_SAMPLES:
            raise ValueError(f"nothing was learned: {counted}. {self.checks[-1].samples} samples are too few to learn "
                             f"from: use more steps (now {recipe.steps})"
                             f"{', or a higher max_seconds' if recipe.seconds else ''}.")
        if later > first * (1 + LEAST_GAIN):
            raise ValueError(f"nothing was learned: {counted}. Lower learning_rate (now {recipe.rate:g}); a style from "
                             "continue_from may be as good as it gets already.")
        raise ValueError(f"nothing was learned: {counted}. Use more steps (now {recipe.steps}) or a higher "
                         f"learning_rate (now {recipe.rate:g}), and check that model, clip and vae belong to one "
                         "checkpoint.")


CONVERGED, FINISHED, TIME_LIMIT, STOPPED = "converged", "finished", "time limit", "stopped"
ENDINGS = {CONVERGED: "converged", FINISHED: "finished", TIME_LIMIT: "stopped by the time limit",
           STOPPED: "stopped early"}  # by cancel, or by an error


def steps_to_next_check(recipe: Recipe, done: int) -> int:
    """After a check of the held-out loss at step ``done``."""
    return max(1, CHECK_SAMPLES // recipe.batch, done // 10)


def draw_seed(generator: torch.Generator) -> int:
    """For a step's own randomness: however often the step is tried, it draws the same."""
    return int(torch.randint(2**62, (), generator=generator))


def finite_gradient(session: Session, run: Run, batch: Batch, seed: int, within_memory: WithinMemory[BatchPlan],
                    scale: LossScale) -> tuple[float, Tensor]:
    """Puts the gradient of one batch into the encoder, with a smaller loss scale as often as it overflows.

    Returns:
        Mean loss, and the denoised predictions.

    Raises:
        ValueError: the loss or, at any scale, its gradient is not finite; the style is as it was.
    """
    while True:
        loss, denoised = within_memory(partial(backward, session, run.encoder, run.features, batch, seed, scale.value))
        if all(p.grad is None or torch.isfinite(p.grad).all() for p in run.encoder.parameters()):
            scale.note_good_step()
            return loss.item(), denoised
        if scale.exhausted or not torch.isfinite(loss):
            refuse_not_finite(loss, run)
        scale.back_off()


def refuse_not_finite(loss: Tensor, run: Run) -> NoReturn:
    """The learning rate is only at fault where it has driven the pseudo-words far away from where they began."""
    growth = run.growth
    what = f"At step {len(run.losses) + 1} the loss was {loss.item():g} and its gradient is not finite"
    if not growth < GROWN:
        raise ValueError(f"{what}. The pseudo-words are {growth:.0f} times as long as at first: lower learning_rate "
                         f"(now {run.recipe.rate:g}).")
    raise ValueError(f"{what}. The model left the range of half precision: run ComfyUI with --bf16-unet or --fp32-unet "
                     "(and --fp32-text-enc).")


def backward(session: Session, encoder: StyleEncoder, features: PictureFeatures | None, batch: Batch, seed: int,
             scale: float, plan: BatchPlan) -> tuple[Tensor, Tensor]:
    """Gives the encoder's parameters their gradients of the mean loss; returns the loss and the denoised predictions,
    both detached.

    Cut in two at the context: the denoiser gives d(loss)/d(context), as many samples at a time as there is room for;
    the text encoder, run a second time with gradients, carries it on to the encoder.

    Args:
        seed: of dropout, where the encoder has any.
        scale: of the loss on its way back (see ``LossScale``).
    """
    session.denoiser.recompute = plan.recompute
    encoder.zero_grad()  # also of a try that memory did not suffice for
    vectors = encoder(features, torch.Generator().manual_seed(seed))
    context = make_leaves(encode_detached(session, vectors))
    losses, predictions = [], []
    for part in batch.split(plan.samples):
        error, denoised = squared_error(session.denoiser, part, context, session.device)
        losses.append(error.flatten(1).mean(1))
        (losses[-1].sum() * scale).backward()
        losses[-1] = losses[-1].detach()
        predictions.append(denoised.detach())
    with session.text.recording():
        # A denoiser without size conditioning ignores the pooled output.
        reached = [(t, c.grad) for t, c in zip(tree_leaves(session.text.encode(vectors)), tree_leaves(context),
                                               strict=True) if torch.is_tensor(c) and c.grad is not None]
        torch.autograd.backward(*zip(*reached, strict=True))
    for parameter in encoder.parameters():
        if parameter.grad is not None:
            parameter.grad /= scale * len(batch)
    return torch.cat(losses).mean(), torch.cat(predictions)


@torch.no_grad()
def held_out_loss(session: Session, encoder: StyleEncoder, features: PictureFeatures | None, held_out: Batch,
                  plan: BatchPlan) -> float:
    """Mean loss on the fixed bank, the encoder as it is applied (dropout off)."""
    conditioning = encode_detached(session, encoder(features))
    errors = [squared_error(session.denoiser, part, conditioning, session.device)[0].flatten(1).mean(1)
              for part in held_out.split(plan.samples)]
    return torch.cat(errors).mean().item()


# ---- the encoder ----

def copy_weights(encoder: StyleEncoder) -> Weights:
    return {k: v.detach().clone() for k, v in encoder.state_dict().items()}


@torch.no_grad()
def lengths(encoder: StyleEncoder, features: PictureFeatures | None) -> Mapping[str, Tensor]:
    """Lengths of the pseudo-words as they are, {key: (n,)}."""
    return {k: v.norm(dim=-1) for k, v in encoder(features).items()}


@torch.no_grad()
def final_vectors(encoder: StyleEncoder, features: PictureFeatures | None, seed: int) -> Vectors:
    """The vectors to save. ``released`` applies its style with dropout still on: one draw of it, from the seed."""
    generator = torch.Generator().manual_seed(seed) if encoder.dropout_when_applied else None
    return {k: v.detach().clone().cpu() for k, v in encoder(features, generator).items()}


def percent(share: float) -> str:
    """Two digits that mean something: 12 %, 1.2 %, 0.012 %."""
    return f"{100 * share:.0f} %" if share >= 0.0995 else f"{100 * share:.2g} %"
