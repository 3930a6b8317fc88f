"""Models of the host that can be differentiated.

Nodes run inside ``torch.inference_mode()``: weights loaded there can never be saved for backward.  The host's own
trainer therefore makes the model again outside of it, from its loader, and so does this file, for the
denoiser and for the text encoder.  The copies live as long as the session; the user's models are never touched.
"""
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import comfy.model_management
import comfy.model_patcher
import comfy.sampler_helpers
import comfy.samplers
import torch
from torch import Tensor

from ..inversion import noise_between
from . import text as prompts


class Conditioning(NamedTuple):
    """Text encoder output: ``context`` (1, tokens, width) and ``pooled`` (1, width) or None."""

    context: Tensor
    pooled: Tensor | None


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


class Denoiser:
    """The frozen denoiser of a re-made MODEL, in terms of noise prediction."""

    def __init__(self, patcher):
        self._patcher = patcher
        self.device = patcher.load_device
        self.model_sampling = patcher.get_model_object("model_sampling")

    def level(self, timestep: Tensor) -> Tensor:
        """Noise levels of training time in [0, 1], 1 = pure noise; the host's ``percent_to_sigma`` backwards."""
        sampling = self.model_sampling
        levels = [min(float(sampling.percent_to_sigma(1 - t)), float(sampling.sigma_max)) for t in timestep.tolist()]
        return torch.tensor(levels).clamp_min(float(sampling.sigma_min))

    def noised(self, latent: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
        """x at levels ``sigma`` (B,)."""
        return self.model_sampling.noise_scaling(sigma, noise, latent)

    def denoised(self, x: Tensor, sigma: Tensor, conditioning: Conditioning) -> Tensor:
        """D(x, sigma, c) as the host's samplers compute it, LoRA and model patches included. x (B, C, h, w)."""
        extra = {} if conditioning.pooled is None else {"pooled_output": conditioning.pooled}
        conds = {"positive": comfy.sampler_helpers.convert_cond([[conditioning.context, extra]])}
        conds = comfy.samplers.process_conds(self._patcher.model, x, conds, x.device)
        options = comfy.model_patcher.create_model_options_clone(self._patcher.model_options)
        options.setdefault("transformer_options", {})["sample_sigmas"] = sigma
        return comfy.samplers.calc_cond_batch(self._patcher.model, [conds["positive"]], x, sigma, options)[0]

    def predicted_noise(self, x: Tensor, sigma: Tensor, denoised: Tensor) -> Tensor:
        """n_hat from D in the model's own parametrisation."""
        return noise_between(self.model_sampling, sigma, x, denoised)


class TextEncoder:
    """The frozen text encoder of a re-made CLIP, for one prompt with pseudo-words."""

    def __init__(self, clip, prompt: str, widths: Mapping[str, int], tokens: int):
        self._clip = clip
        # Rows that no vocabulary holds mark where the pseudo-words go.
        marks = {k: torch.arange(tokens, dtype=torch.float32).sub(1e6).unsqueeze(1).expand(-1, w)
                 for k, w in widths.items()}
        self._tokens = prompts.tokenize(clip, prompt, marks)

    def _spliced(self, vectors: Mapping[str, Tensor]) -> dict:
        def live(key: str, token):
            if torch.is_tensor(token) and (token <= -1e5).all():
                return vectors[key][int(token[0] + 1e6)]
            return token

        keys = {k: k if k in vectors else f"clip_{k}" for k in self._tokens}
        return {k: [[(live(keys[k], token), weight) for token, weight in window] for window in windows]
                for k, windows in self._tokens.items()}

    def encode(self, vectors: Mapping[str, Tensor]) -> Conditioning:
        """Context of the prompt; gradients reach ``vectors``. Run it and its backward inside ``recording``."""
        stage = self._clip.cond_stage_model
        stage.reset_clip_options()
        if self._clip.layer_idx is not None:
            stage.set_clip_options({"layer": self._clip.layer_idx})
        stage.set_clip_options({"execution_device": self._clip.patcher.load_device})
        context, pooled = stage.encode_token_weights(self._spliced(vectors))[:2]
        return Conditioning(context, pooled)

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
def training_session(model, clip, prompt: str, tokens: int) -> Iterator[TrainingSession]:
    """Copies that can be differentiated, loaded on their device; freed afterwards, come what may.

    Args:
        prompt: with ``*``.
        tokens: number of pseudo-words.

    Raises:
        ValueError: MODEL or CLIP from a loader that cannot re-make them.
    """
    with training_mode():
        denoiser = _remade(model, "model", "Load Checkpoint or Load Diffusion Model")
        text = clip.clone()
        text.patcher = _remade(clip.patcher, "clip", "Load Checkpoint or Load CLIP")
        text.cond_stage_model = text.patcher.model
        before = comfy.model_management.in_training
        try:
            comfy.model_management.in_training = True
            # Like the host's trainer: everything else leaves the device, activations need the room.
            comfy.model_management.load_models_gpu([denoiser, text.patcher], memory_required=1e20, force_full_load=True)
            denoiser.pre_run()
            yield TrainingSession(Denoiser(denoiser), TextEncoder(text, prompt, prompts.text_widths(clip), tokens),
                                  denoiser.load_device)
        finally:
            comfy.model_management.in_training = before
            denoiser.cleanup()
            for patcher in (denoiser, text.patcher):
                comfy.model_management.unload_model_and_clones(patcher)
            del denoiser, text, patcher
            comfy.model_management.soft_empty_cache()
