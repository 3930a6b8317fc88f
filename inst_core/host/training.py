"""Models of the host that can be differentiated.

Nodes run inside ``torch.inference_mode()``: weights loaded there can never be saved for backward.  The host's own
trainer therefore makes the model again outside of it, from its loader, and so does this file, for the
denoiser and for the text encoder.  The copies live as long as the session; the user's models are never touched.
"""
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import comfy.model_management
import torch
from torch import Tensor

from ..style import ALL_LAYERS, LATE_LAYERS
from . import text as prompts
from .denoiser import Conditioning, Denoiser
from .style_layers import StyleLayersDenoiser


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


class TextEncoder:
    """The frozen text encoder of a re-made CLIP, for one prompt with pseudo-words."""

    def __init__(self, clip, prompt: str, tokens: int):
        self._clip = clip
        self._prompt = prompts.tokenize(clip, prompt, tokens)

    def encode(self, vectors: Mapping[str, Tensor]) -> Conditioning:
        """Context of the prompt; gradients reach ``vectors``. Run it and its backward inside ``recording``."""
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


@dataclass(frozen=True)
class TrainingSession:
    """Differentiable copies of the user's MODEL and CLIP."""

    denoiser: Denoiser
    text: TextEncoder
    device: torch.device

    def free_bytes(self) -> int:
        """Memory that is free on the device."""
        return comfy.model_management.get_free_memory(self.device)


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


def _remade(patcher, socket: str, loader: str):
    """A copy of a patcher, its LoRAs and patches included, over weights loaded a second time.

    What ``clone(force_deepcopy=True)`` does, except that the fresh patcher stays the copy's parent: the host tracks
    loaded models by their patchers and would report a leak if it vanished.
    """
    if patcher.cached_patcher_init is None:
        raise ValueError(f"{socket} comes from a loader that cannot make it a second time, so a style cannot be "
                         f"learned on it. Load it with {loader}.")
    make, arguments, *index = patcher.cached_patcher_init
    fresh = make(*arguments, disable_dynamic=True)
    for i in index:
        fresh = fresh[i]
    copy = patcher.clone(disable_dynamic=True, model_override=fresh.get_clone_model_override())
    copy.parent, copy.clone_base_uuid = fresh, fresh.clone_base_uuid
    copy.model.requires_grad_(False)
    return copy


@contextmanager
def training_session(model, clip, prompt: str, tokens: int, layers: str = ALL_LAYERS) -> Iterator[TrainingSession]:
    """Copies that can be differentiated, loaded on their device; freed afterwards, come what may.

    Args:
        prompt: with ``*``.
        tokens: number of pseudo-words.
        layers: "all", or "late": only late decoder blocks see the style (see ``style_layers``).

    Raises:
        ValueError: MODEL or CLIP from a loader that cannot re-make them; ``layers`` "late" on another model than a
            plain U-Net.
    """
    with training_mode(), _repeatable():
        patcher = _remade(model, "model", "Load Checkpoint or Load Diffusion Model")
        text = clip.clone()
        text.patcher = _remade(clip.patcher, "clip", "Load Checkpoint or Load CLIP")
        text.cond_stage_model = text.patcher.model
        before = comfy.model_management.in_training
        try:
            comfy.model_management.in_training = True
            # Like the host's trainer: everything else leaves the device, activations need the room.
            comfy.model_management.load_models_gpu([patcher, text.patcher], memory_required=1e20, force_full_load=True)
            patcher.pre_run()
            denoiser = Denoiser(patcher)
            if layers == LATE_LAYERS:
                denoiser = StyleLayersDenoiser(patcher, _without_style(text, prompt))
            yield TrainingSession(denoiser, TextEncoder(text, prompt, tokens), patcher.load_device)
        finally:
            comfy.model_management.in_training = before
            patcher.cleanup()
            for loaded in (patcher, text.patcher):
                comfy.model_management.unload_model_and_clones(loaded)
            denoiser = None  # it holds the model
            del patcher, text
            comfy.model_management.soft_empty_cache()


@torch.no_grad()
def _without_style(text, prompt: str) -> Conditioning:
    """The prompt's conditioning without its ``*``."""
    return TextEncoder(text, prompt, 0).encode({})
