"""A photograph's layout, held for the first part of the steps in which it is repainted.

Two published ways.  "coarse": the low frequencies of every step's result are the photograph's (``inst_core.structure``,
ILVR); it costs nothing and works on every model.  "queries": which places of a picture attend to which is its layout,
what they fetch there is its look, so the queries of an inverted photograph are blended into those of the picture that
is painted (StyleID: Chung, Hyun & Heo, CVPR 2024, eq. 4), in the decoder of a U-Net.

Stochastic inversion has the inverted photograph at every level: its latent under the inverted noise.  So for "queries"
a step asks the model twice, first for the photograph at the step's level, whose queries are noted, then for the
picture.  Both go through the host's ``calc_cond_batch``: areas, masks, hooks, ControlNet, LoRA and a batch that the
host cuts up for memory act on both alike.
"""
from collections.abc import Callable
from functools import partial

import comfy.model_patcher
import torch
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from comfy.patcher_extension import WrappersMP, add_wrapper
from torch import Tensor

from ..structure import steps_held, with_coarse_layout

COARSE, QUERIES, BOTH = "coarse", "queries", "both"
WAYS = COARSE, QUERIES, BOTH
SHARE_OF_QUERIES = 0.75  # gamma, as published


def check_structure(model, keep: float, way: str) -> None:
    """Raises ValueError, in one sentence, unless a MODEL can hold a photograph's layout so."""
    if not 0.0 <= keep <= 1.0:
        raise ValueError(f"keep_structure is {keep}; it must lie between 0 (off) and 1 (in all steps).")
    network = model.model.diffusion_model
    if keep and way != COARSE and not isinstance(network, UNetModel):
        raise ValueError(f"keep_structure_by is {way!r}, which needs a U-Net (SD 1.x, SD 2.x, SDXL), and the "
                         f"connected model is a {type(network).__name__}: choose 'coarse', which works on every model.")


def holding_layout(model, keep: float, way: str = COARSE):
    """The MODEL, which holds the layout of the photographs that it starts from while it samples.

    Args:
        keep: share of the steps, counted from the first, in [0, 1]; with 0 the model is returned as it is.
        way: one of ``WAYS``; "both" are the two together.

    Raises:
        ValueError: ``keep`` outside its range, or another way than "coarse" on a model without a U-Net.
    """
    check_structure(model, keep, way)
    if keep == 0:
        return model

    def sample(executor, guider, sigmas, extra_args, callback, noise, latent, *more):
        last = float(sigmas[steps_held(keep, len(sigmas) - 1)])
        options = extra_args["model_options"]
        if way != QUERIES:
            comfy.model_patcher.set_model_options_post_cfg_function(options, partial(_hold_coarse, latent, last))
        if way != COARSE:
            layout = _Queries(guider.inner_model.model_sampling, noise, latent, float(sigmas[0]), last)
            add_wrapper(WrappersMP.CALC_COND_BATCH, layout.predict, options, is_model_options=True)
        return executor(guider, sigmas, extra_args, callback, noise, latent, *more)

    held = model.clone()
    held.add_wrapper(WrappersMP.SAMPLER_SAMPLE, sample)
    return held


def _hold_coarse(photograph: Tensor, last: float, step: dict) -> Tensor:
    """A post-CFG function of the host, for levels above ``last``."""
    denoised = step["denoised"]
    return with_coarse_layout(denoised, photograph.to(denoised)) if float(step["sigma"].max()) > last else denoised


class _Queries:
    """The queries of one sampling's photographs.

    Args:
        noise, latent: (B, C, h, w), what the sampler starts from.
        first, last: levels; at ``first`` picture and photograph are still the same, from ``last`` on nothing is held.
    """

    def __init__(self, model_sampling, noise: Tensor, latent: Tensor, first: float, last: float):
        self.model_sampling, self.noise, self.latent = model_sampling, noise, latent
        self.first, self.last = first, last

    def predict(self, executor, model, conds: list, x: Tensor, timestep: Tensor, model_options: dict) -> list[Tensor]:
        """Wraps the host's ``calc_cond_batch``."""
        if not self.last < float(timestep.max()) < self.first:
            return executor(model, conds, x, timestep, model_options)
        seen: dict[tuple, Tensor] = {}
        photograph = self._at(timestep[:1], model_options).to(x)
        executor(model, conds, photograph, timestep, _with_patch(model_options, partial(_note, seen)))
        return executor(model, conds, x, timestep, _with_patch(model_options, partial(_blend, seen)))

    def _at(self, sigma: Tensor, model_options: dict) -> Tensor:
        """The photographs at a level: those of the host's context window, where it takes a batch in windows."""
        noised = self.model_sampling.noise_scaling(sigma, self.noise.to(sigma), self.latent.to(sigma))
        window = model_options.get("transformer_options", {}).get("context_window")
        return noised if window is None else window.get_tensor(noised)


def _with_patch(model_options: dict, patch: Callable) -> dict:
    """Model options with a patch of every self-attention, before those that are there: some change what a place is."""
    options = comfy.model_patcher.create_model_options_clone(model_options)
    patches = options.setdefault("transformer_options", {}).setdefault("patches", {})
    patches["attn1_patch"] = [patch, *patches.get("attn1_patch", [])]
    return options


def _parts(options: dict) -> list[tuple]:
    """Names for the parts of a batch in this layer: each has a conditioning of its own."""
    layer = (*options["block"], options["block_index"])
    return [(*part, *layer) for part in zip(options["uuids"], options["cond_or_uncond"], strict=True)]


def _note(seen: dict, queries: Tensor, keys: Tensor, values: Tensor, options: dict) -> tuple[Tensor, Tensor, Tensor]:
    """An attn1 patch; what the layers make queries of is (batch, places, channels)."""
    if options["block"][0] == "output":
        parts = _parts(options)
        seen.update(zip(parts, queries.chunk(len(parts)), strict=True))
    return queries, keys, values


def _blend(seen: dict, queries: Tensor, keys: Tensor, values: Tensor, options: dict) -> tuple[Tensor, Tensor, Tensor]:
    """An attn1 patch. Queries are linear in what they are made of, so blending that blends them."""
    if options["block"][0] == "output":
        noted = torch.cat([seen[part] for part in _parts(options)]).to(queries)
        queries = queries.lerp(noted, SHARE_OF_QUERIES)
    return queries, keys, values
