"""How many samples go through the denoiser together, and where what it prepares of them is kept."""
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from .bank import Batch, prepare
from .encoders import PictureFeatures, StyleEncoder
from .memory import kept_for_backward
from .objective import squared_error
from .recipes import Recipe
from .session import Session, encode_detached, make_leaves

SHARE_OF_FREE_MEMORY = 0.8  # that activations may take; the rest is for what comes and goes
SHARE_FOR_BANK = 0.25  # of that, for prepared samples on the device; a larger bank stays in main memory


@dataclass(frozen=True)
class BatchPlan:
    """How much is computed at once. It changes results by rounding errors only.

    Attributes:
        samples: of one optimiser step that go through the denoiser together.
        recompute: activations of the denoiser's blocks are computed again for backward instead of being kept (Chen et
            al. 2016, gradient checkpointing).
    """

    samples: int
    recompute: bool = False

    def halved(self) -> "BatchPlan | None":
        """Half the samples; at one sample recomputation; then nothing is left to try."""
        if self.samples > 1:
            return replace(self, samples=self.samples // 2)
        return None if self.recompute else replace(self, recompute=True)


def plan_batches(session: Session, encoder: StyleEncoder, features: PictureFeatures | None, bank: Batch | None,
                held_out: Batch, samples: int) -> tuple[BatchPlan, torch.device]:
    """How many of ``samples`` go through the denoiser together, and where prepared samples are kept.

    Measured on one sample: what the denoiser prepares of it, and what backward keeps of it. Prepared samples stay on
    the device where they take little of what is free, and count there; otherwise they wait in main memory. Where not
    even one sample fits, activations are recomputed.
    """
    main_memory = torch.device("cpu")
    session.denoiser.recompute = False
    one = next((held_out if bank is None else bank).split(1))
    try:
        one = replace(one, prepared=tuple(session.denoiser.prepare(one)))
        kept = kept_of_one_sample(session, encoder, features, one)
    except (RuntimeError, MemoryError) as error:
        if not session.is_out_of_memory(error):
            raise
        return BatchPlan(1, recompute=True), main_memory
    free = SHARE_OF_FREE_MEMORY * session.free_bytes()
    numbers = sum(b.latent.numel() for b in (bank, held_out) if b is not None)
    prepared = one.prepared_bytes * numbers / one.latent.numel()
    on_device = session.device.type == "cpu" or prepared <= SHARE_FOR_BANK * free
    fitting = int((free - prepared * on_device) / max(kept, 1))
    return BatchPlan(min(samples, max(1, fitting)), recompute=fitting < 1), session.device if on_device else main_memory


def kept_of_one_sample(session: Session, encoder: StyleEncoder, features: PictureFeatures | None, one: Batch) -> int:
    """Bytes of activations that backward keeps of one sample, nothing recomputed."""
    context = make_leaves(encode_detached(session, encoder(features)))
    return kept_for_backward(lambda: squared_error(session.denoiser, one, context, session.device)[0])


def prepare_bank(session: Session, bank: Batch, place: torch.device, tell: Callable[[str], object],
                 plan: BatchPlan) -> Batch:
    """The bank with what the denoiser computes of it once and for all, kept at ``place``."""
    return prepare(session.denoiser, bank, plan.samples, place,
                   lambda done: tell(f"computing once what the style does not change: sample {done} of {len(bank)}"))


def describe_economy(plan: BatchPlan, recipe: Recipe) -> str:
    """What the verdict says when memory was short."""
    if plan == BatchPlan(recipe.batch):
        return ""
    return f"; memory was short: {plan.samples} at once{', with recomputation' if plan.recompute else ''}"
