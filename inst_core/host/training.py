"""Models of the host that can be differentiated.

Nodes run inside ``torch.inference_mode()``: weights loaded there can never be saved for backward.  The host's own
trainer therefore makes the model again outside of it, from its loader, and so does this file, for the
denoiser and for the text encoder.  The copies live as long as the session; the user's models are never touched.
"""
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import comfy.model_management
import torch
from torch import Tensor

from .. import memory
from ..style import ALL_LAYERS, LAYERS, STYLE_BLOCK
from . import text as prompts
from .denoiser import Conditioning, Denoiser
from .families import family_of, style_blocks
from .patches import carry_over, check_copyable
from .style_layers import StyleLayersDenoiser, check_late


def make_room(needed: int) -> torch.device:
    """The compute device, with at least ``needed`` bytes free if moving the host's models away can give them."""
    device = comfy.model_management.get_torch_device()
    comfy.model_management.free_memory(needed, device)
    return device


@contextmanager
def training_mode() -> Iterator[None]:
    """Outside inference mode, with gradients."""
    with torch.inference_mode(False), torch.enable_grad():
        yield


def is_out_of_memory(error: BaseException) -> bool:
    """True for every way in which torch, the drivers or the host say so; the host also clears the device's error."""
    host_says = getattr(comfy.model_management, "is_oom", None)
    known = getattr(comfy.model_management, "OOM_EXCEPTION", Exception) is not Exception  # without CUDA it may be
    return bool(known and host_says and host_says(error)) or memory.is_out_of_memory(error)


class TextEncoder:
    """The frozen text encoder of a re-made CLIP, for one prompt with pseudo-words.

    Args:
        load: called before it runs, to have it on its device.
    """

    def __init__(self, clip, prompt: str, tokens: int, load: Callable[[], None] = lambda: None):
        self._clip, self._load = clip, load
        self._prompt = prompts.tokenize(clip, prompt, tokens)

    def encode(self, vectors: Mapping[str, Tensor]) -> Conditioning:
        """Context of the prompt; gradients reach ``vectors``. Run it and its backward inside ``recording``."""
        self._load()
        stage = self._clip.cond_stage_model
        stage.reset_clip_options()
        if self._clip.layer_idx is not None:
            stage.set_clip_options({"layer": self._clip.layer_idx})
        stage.set_clip_options({"execution_device": self._clip.patcher.load_device})
        return Conditioning(*stage.encode_token_weights(self._prompt.with_vectors(vectors)))

    @staticmethod
    def recording():
        """The host's CLIP layers add in place, over tensors that backward needs; here those are kept as they were."""
        return torch.autograd.graph.allow_mutation_on_saved_tensors()


class Residents:
    """Models on the device: together, or one at a time where they do not fit together.

    The gradient is cut at the context, so the text encoder and the denoiser never run at the same time.

    Args:
        patchers: of the models.
        together: None decides by the memory that is free once all other models have left.
    """

    def __init__(self, *patchers, together: bool | None = None):
        self.patchers = patchers
        self.together = fit_together(patchers) if together is None else together
        self._here: list = []
        if self.together:
            self._load([*patchers])

    def load(self, patcher) -> None:
        """Has the model on its device, with the other one away where both do not fit."""
        if not any(patcher is here for here in self._here):
            self.unload()
            self._load([patcher])

    def unload(self) -> None:
        for patcher in self._here:
            comfy.model_management.unload_model_and_clones(patcher)
        self._here = []

    def _load(self, patchers: list) -> None:
        # Like the host's trainer: everything else leaves the device, activations need the room.
        comfy.model_management.load_models_gpu(patchers, memory_required=1e20, force_full_load=True)
        self._here = patchers


def fit_together(patchers) -> bool:
    """Whether models fit on the device of the first with room for some activations, all other models gone."""
    management, device = comfy.model_management, patchers[0].load_device
    if device.type == "cpu":
        return True
    management.free_memory(1e30, device)
    weights = sum(patcher.model_size() for patcher in patchers if patcher.load_device == device)
    return weights + 2 * management.minimum_inference_memory() <= management.get_free_memory(device)


@dataclass(frozen=True)
class TrainingSession:
    """Differentiable copies of the user's MODEL and CLIP; see ``learning.Session``."""

    denoiser: Denoiser
    text: TextEncoder
    residents: Residents
    device: torch.device

    def free_bytes(self) -> int:
        """Memory that is free on the device, with the denoiser on it."""
        self.residents.load(self.residents.patchers[0])
        return comfy.model_management.get_free_memory(self.device)

    def is_out_of_memory(self, error: BaseException) -> bool:
        return is_out_of_memory(error)


@contextmanager
def _repeatable() -> Iterator[None]:
    """The same inputs give the same bits, as far as torch can promise it."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    filling, benchmark = torch.utils.deterministic.fill_uninitialized_memory, torch.backends.cudnn.benchmark
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = torch.backends.cudnn.benchmark = False
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Deterministic behavior was enabled")
            yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        torch.utils.deterministic.fill_uninitialized_memory, torch.backends.cudnn.benchmark = filling, benchmark


def _remade(patcher, socket: str):
    """A copy of a patcher, its LoRAs and patches included, over weights loaded a second time.

    What ``clone(force_deepcopy=True)`` does, except that the fresh patcher stays the copy's parent: the host tracks
    loaded models by their patchers and would report a leak if it vanished.
    """
    check_copyable(patcher, socket)
    make, arguments, *index = patcher.cached_patcher_init
    fresh = make(*arguments, disable_dynamic=True)
    for i in index:
        fresh = fresh[i]
    copy = patcher.clone(disable_dynamic=True, model_override=fresh.get_clone_model_override())
    copy.parent, copy.clone_base_uuid = fresh, fresh.clone_base_uuid
    carry_over(patcher, copy)
    copy.model.requires_grad_(False)
    return copy


@contextmanager
def training_session(model, clip, prompt: str, tokens: int, layers: str = ALL_LAYERS,
                     together: bool | None = None) -> Iterator[TrainingSession]:
    """Copies that can be differentiated, loaded on their device; freed afterwards, come what may.

    Args:
        prompt: with ``*``.
        tokens: number of pseudo-words.
        layers: "all"; "late" or "style block": only late decoder blocks see the style, or those that are known to set
            it (see ``style_layers``).
        together: whether text encoder and denoiser stay on the device together; None = where both fit.

    Raises:
        ValueError: MODEL or CLIP from a loader that cannot re-make them; ``layers`` other than "all" on another model
            than a plain U-Net, "style block" on a family without.
    """
    check_layers(model, layers)
    blocks = style_blocks(family_of(model)) if layers == STYLE_BLOCK else None
    with training_mode(), _repeatable():
        patcher = _remade(model, "model")
        text = clip.clone()
        text.patcher = _remade(clip.patcher, "clip")
        text.cond_stage_model = text.patcher.model
        before, residents = comfy.model_management.in_training, None
        try:
            comfy.model_management.in_training = True
            residents = Residents(patcher, text.patcher, together=together)
            use_text, use_denoiser = partial(residents.load, text.patcher), partial(residents.load, patcher)
            neutral = _without_style(text, prompt, use_text) if layers != ALL_LAYERS else None
            use_denoiser()
            patcher.pre_run()
            denoiser = (Denoiser(patcher, use_denoiser) if neutral is None
                        else StyleLayersDenoiser(patcher, neutral, use_denoiser, blocks))
            yield TrainingSession(denoiser, TextEncoder(text, prompt, tokens, use_text), residents,
                                  patcher.load_device)
        finally:
            comfy.model_management.in_training = before
            patcher.cleanup()
            for loaded in (patcher, text.patcher):
                comfy.model_management.unload_model_and_clones(loaded)
            comfy.model_management.soft_empty_cache()


def check_layers(model, layers: str) -> None:
    """Raises ValueError, in one sentence, unless a style can be learned for these layers of a MODEL."""
    if layers not in LAYERS:
        raise ValueError(f"layers is {layers!r}; expected one of {', '.join(LAYERS)}.")
    if layers != ALL_LAYERS:
        check_late(model, layers)
    if layers == STYLE_BLOCK:
        style_blocks(family_of(model))


@torch.no_grad()
def _without_style(text, prompt: str, load: Callable[[], None]) -> Conditioning:
    """The prompt's conditioning without its ``*``."""
    return TextEncoder(text, prompt, 0, load).encode({})
