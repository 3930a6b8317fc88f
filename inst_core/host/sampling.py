"""Noise levels, stochastic inversion and synthesis on the host's own samplers."""
import logging
from typing import NamedTuple

import comfy.model_management
import comfy.sample
import comfy.sampler_helpers
import comfy.samplers
import comfy.utils
import latent_preview
import torch
from torch import Tensor

from .. import schedules
from ..inversion import (
    RELEASED_STEPS,
    InversionNoise,
    Timing,
    fingerprints,
    fresh_noise,
    indices_of,
    noise_between,
    released_start,
    released_timesteps,
    stochastic_inversion,
)
from .parts import INVERT, SAMPLE, check_parts, check_still_image
from .progress import check_interrupted, global_rng_kept
from .structure import COARSE, holding_layout

EMPTY_SIZES = ("downscale_ratio_spacial", "downscale_ratio_temporal")  # Empty Latent Image notes how it counts
GUIDANCE_OPTIONS = ("sampler_cfg_function", "sampler_pre_cfg_function", "sampler_post_cfg_function")


class Inverted(NamedTuple):
    """Result of ``invert``: NOISE for custom samplers; the start as a noised LATENT for KSampler (Advanced)."""

    noise: InversionNoise
    noised: dict


def level_of(model, strength: float) -> Tensor:
    """The noise level sigma of a strength in [0, 1]: 1 is pure noise, 0 the untouched latent.

    Raises:
        ValueError: strength outside [0, 1].
    """
    if not 0.0 <= strength <= 1.0:
        raise ValueError(f"strength is {strength}; it must lie between 0 and 1. 0 returns the photograph unchanged; "
                         "InST uses 0.5 to 0.7.")
    sampling = model.get_model_object("model_sampling")
    return torch.tensor(min(float(sampling.percent_to_sigma(1.0 - strength)), float(sampling.sigma_max)))


def released_sigmas(model, strength: float, steps: int = RELEASED_STEPS) -> tuple[Tensor, Tensor]:
    """(level that noise is added at, descending levels decoded) of the released code.

    Its last DDIM step ends at training timestep 0, not at a clean latent, so the last level is not 0.  Strength 0 has
    no levels to decode.

    Raises:
        ValueError: strength out of range, or a model without SD's thousand discrete levels.
    """
    if strength == 0:
        return torch.zeros(()), torch.zeros(0)
    sampling = model.get_model_object("model_sampling")
    if not hasattr(sampling, "log_sigmas") or len(sampling.sigmas) != 1000:
        raise ValueError("timing 'released' counts in the 1000 levels of SD 1.x/2.x/XL, which the connected model does "
                         "not have. Use timing 'matched'.")
    t_noise, ddim = released_timesteps(strength, steps)
    return sampling.sigmas[t_noise].cpu(), sampling.sigmas[[*ddim, 0]].cpu()


def _guider(model, positive) -> comfy.samplers.CFGGuider:
    """A guider with one conditioning and no guidance: LoRA, ControlNet, areas and hooks apply as in sampling.

    Patches that guide in another way (PAG, SAG, RescaleCFG) are left out: what counts is what the model itself sees.
    """
    guider = comfy.samplers.CFGGuider(model)
    guider.model_options = {k: v for k, v in guider.model_options.items() if k not in GUIDANCE_OPTIONS}
    guider.inner_set_conds({"positive": positive})
    guider.set_cfg(1.0)
    return guider


class _PredictNoise(comfy.samplers.Sampler):
    """A host sampler whose single step reads the model's noise prediction. ``predicted`` holds it afterwards."""

    def sample(self, model_wrap, sigmas, extra_args, callback, noise, latent_image=None, denoise_mask=None,
               disable_pbar=False):
        def denoise(x: Tensor, sigma: Tensor) -> Tensor:
            return model_wrap(x, sigma.expand(x.shape[0]), **extra_args)

        sampling = model_wrap.inner_model.model_sampling
        self.content = latent_image
        self.predicted = stochastic_inversion(sampling, denoise, latent_image, noise, sigmas[0])
        return latent_image


def predict_noise(model, positive, noise: Tensor, samples: Tensor, sigma: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """(clean latents in model space, the noise that the model sees in them at ``sigma``), float32 on the CPU."""
    probe = _PredictNoise()
    _guider(model, positive).sample(noise, samples, probe, torch.stack([sigma, torch.zeros_like(sigma)]),
                                    disable_pbar=True, seed=seed)
    return probe.content.float().cpu(), probe.predicted.float().cpu()


def _pictures(model, latent: dict) -> Tensor:
    """The samples of a LATENT as the host's samplers take them: an empty one gets the model's channels and size."""
    return comfy.sample.fix_empty_latent_channels(model, latent["samples"], **{k: latent[k] for k in EMPTY_SIZES
                                                                               if k in latent})


def _sampled(latent: dict, samples: Tensor) -> dict:
    """The LATENT with other samples, as the host's samplers hand it on."""
    return {**{k: v for k, v in latent.items() if k not in EMPTY_SIZES}, "samples": samples}


def noise_mask(latent: dict, samples: Tensor) -> Tensor | None:
    """The LATENT's mask as samplers lay it over ``samples``, of their shape and on their device, or None."""
    mask = latent.get("noise_mask")
    return None if mask is None else comfy.sampler_helpers.prepare_mask(mask, samples.shape, samples.device)


def samplers() -> list[str]:
    """Names of the host's samplers, and of those that other packs added since."""
    return comfy.samplers.KSampler.SAMPLERS


def schedulers() -> list[str]:
    """Names of the host's schedulers, and of those that other packs added since."""
    return comfy.samplers.KSampler.SCHEDULERS


def shows_nothing(latent: dict) -> bool:
    """Whether a LATENT is empty, as Empty Latent Image makes it: there is no photograph to keep anything of."""
    return not latent["samples"].is_nested and not latent["samples"].any()


def changes_nothing(sigmas: Tensor) -> bool:
    """Whether a sampler has nothing to do at these levels: none at all, or the clean latent's 0 only.

    Raises:
        ValueError: they are no noise levels.
    """
    schedules.check_sigmas(sigmas)
    return len(sigmas) == 0 or float(sigmas[0]) == 0


def invert(model, positive, latent: dict, strength: float, seed: int, timing: Timing = "matched",
           sigmas: Tensor | None = None, steps: int = RELEASED_STEPS) -> Inverted:
    """Stochastic inversion of a content LATENT (InST section 3.3).

    Args:
        positive: style CONDITIONING; asked once, without guidance.
        strength: how much is redone, [0, 1]; at 0 the latent stays as it is, and the noise is a random one of level 0.
        timing: "matched": noised at the level where sampling starts; "released": the released code's two levels, for
            ``released_sigmas`` of ``steps`` DDIM steps.
        sigmas: the sampler's levels; then their first one is the level instead of ``strength``.

    Raises:
        ValueError: unsupported model, strength out of range.
    """
    check_still_image(model, INVERT)
    samples = _pictures(model, latent)
    check_parts(model, INVERT, latent=samples, conditionings={"positive": positive})
    sampling = model.get_model_object("model_sampling")
    if sigmas is not None:
        noised_at = start_at = torch.zeros(()) if changes_nothing(sigmas) else sigmas[0]
    elif timing == "released":
        noised_at, decoded = released_sigmas(model, strength, steps)
        start_at = decoded[0] if len(decoded) else noised_at
    else:
        noised_at = start_at = level_of(model, strength)

    index = indices_of(latent)
    fresh = fresh_noise(samples.shape, seed, index)
    whose = (None if index is None else tuple(index), fingerprints(samples))
    if start_at == 0:
        return Inverted(InversionNoise(seed, fresh, 0.0, *whose), _sampled(latent, samples))

    z0, predicted = predict_noise(model, positive, fresh, samples, noised_at, seed)
    x = sampling.noise_scaling(noised_at, predicted, z0)
    if timing == "released" and sigmas is None:
        x = released_start(sampling, x, noised_at, start_at)
    at_maximum = float(start_at) >= float(sampling.sigma_max) * (1 - 1e-5)
    noise = InversionNoise(seed, noise_between(sampling, start_at, x, z0, max_denoise=at_maximum), float(start_at),
                           *whose)
    return Inverted(noise, _sampled(latent, model.model.process_latent_out(_before_scaling(sampling, start_at, x))))


def _before_scaling(sampling, sigma: Tensor, x: Tensor) -> Tensor:
    """The latent that a sampler scales to ``x`` when it adds no noise.

    On flow models it multiplies by 1 - sigma, so at sigma 1 no latent can carry ``x``.
    """
    if float(sampling.noise_scaling(sigma, torch.zeros(1), torch.ones(1))) == 0:
        logging.getLogger(__name__).warning(
            "Stochastic Invert Latent: at this model's highest level (strength 1) a noised LATENT is impossible; the "
            "output is zeros. Use the NOISE output, or a strength below 1.")
        return torch.zeros_like(x)
    return sampling.inverse_noise_scaling(sigma, x)


def sampling_sigmas(model, scheduler: str, steps: int, strength: float, sampler: str = "euler") -> Tensor:
    """``steps + 1`` levels from that of ``strength`` down to 0, placed by a host scheduler.

    At strength 1 these are exactly the host's levels for that many steps; at strength 0 there are none.

    Raises:
        ValueError: steps below 1, strength out of range, or a scheduler with fewer levels.
    """
    if steps < 1:
        raise ValueError(f"steps is {steps}; at least 1 is needed. InST uses 50, good pictures start at about 20.")
    if scheduler not in (known := schedulers()):
        raise ValueError(f"scheduler is {scheduler!r}; expected one of {', '.join(known)}.")
    sampling = model.get_model_object("model_sampling")
    discard = sampler in comfy.samplers.KSampler.DISCARD_PENULTIMATE_SIGMA_SAMPLERS

    def schedule(total: int) -> Tensor:
        check_interrupted()
        sigmas = comfy.samplers.calculate_sigmas(sampling, scheduler, total + discard)
        return torch.cat([sigmas[:-2], sigmas[-1:]]) if discard else sigmas

    if strength == 1.0:
        return schedule(steps)
    start = float(level_of(model, strength))
    return schedules.from_level(schedule, start, steps) if start > 0 else torch.zeros(0)


def cosine_sigmas(model, steps: int, denoise: float) -> Tensor:
    """``steps`` levels at equal steps of the cosine clock from the level of ``denoise``, then 0.

    On flow models sigma / (1 - sigma) is the noise-to-signal ratio that the clock counts.  At denoise 0 there are no
    levels, as from the host's Basic Scheduler.

    Raises:
        ValueError: steps below 1, denoise out of range, or more steps than lie between its level and the last one.
    """
    if steps < 1:
        raise ValueError(f"steps is {steps}; at least 1 is needed. Set steps to 20 or so.")
    sampling = model.get_model_object("model_sampling")
    one, nothing = torch.ones(1, 1, 1, 1), torch.zeros(1, 1, 1, 1)

    def ratio(sigma: float) -> float:
        level = torch.tensor(sigma)
        signal = float(sampling.noise_scaling(level, nothing, one))
        return float(sampling.noise_scaling(level, one, nothing)) / signal if signal > 0 else float("inf")

    start, end = float(level_of(model, denoise)), float(sampling.sigma_min)
    if start == 0:
        return torch.zeros(0)
    ratios = schedules.cosine_clock(ratio(start), ratio(end), steps)
    is_flow = ratio(0.5) != 0.5
    sigmas = ratios / (1 + ratios) if is_flow else ratios
    sigmas[0] = start
    if not (sigmas.diff() < 0).all():
        raise ValueError(f"denoise is {denoise}, whose level {start:.4g} is too close to the model's last one, "
                         f"{end:.4g}, for {steps} steps. Set denoise higher, or steps to 1.")
    return torch.cat([sigmas, torch.zeros(1)])


def sample(model, positive, negative, latent: dict, noise, sigmas: Tensor, cfg: float, sampler: str,
           released: bool = False, keep_structure: float = 0.0, keep_structure_by: str = COARSE) -> dict:
    """Synthesis with a host sampler from a NOISE; progress and previews are the host's.

    Args:
        sigmas: descending levels.
        released: the last level is the released code's timestep 0; return its variance-preserving latent.
        keep_structure, keep_structure_by: see ``structure.holding_layout``.

    Returns:
        The LATENT with new ``samples``, or unchanged where the levels leave nothing to do.

    Raises:
        ValueError: the noise was made for another level than ``sigmas`` start at, or the model cannot hold a layout so.
    """
    if sampler not in (known := samplers()):
        raise ValueError(f"sampler is {sampler!r}; expected one of {', '.join(known)}.")
    if changes_nothing(sigmas):
        return latent
    check_still_image(model, SAMPLE)
    samples = _pictures(model, latent)
    check_parts(model, SAMPLE, latent=samples, conditionings={"positive": positive, "negative": negative})
    made_for = getattr(noise, "sigma", None)
    if made_for is not None and abs(made_for - float(sigmas[0])) > 0.01 * made_for:
        raise ValueError(f"The connected NOISE was inverted at sigma {made_for:.4g}, but sampling starts at "
                         f"{float(sigmas[0]):.4g}. Give Stochastic Invert Latent and InST Sample the same repaint "
                         "strength and timing, or the same sigmas.")
    callback = latent_preview.prepare_callback(model, len(sigmas) - 1)
    held = holding_layout(model, keep_structure, keep_structure_by)
    with global_rng_kept():
        result = comfy.sample.sample_custom(
            held, noise.generate_noise({**latent, "samples": samples}), cfg, comfy.samplers.sampler_object(sampler),
            sigmas, positive, negative, samples, noise_mask=latent.get("noise_mask"), callback=callback,
            disable_pbar=not comfy.utils.PROGRESS_BAR_ENABLED, seed=noise.seed)
    if released:
        scale = (1 + sigmas[-1] ** 2).sqrt()
        result = model.model.process_latent_out(model.model.process_latent_in(result) / scale)
    if latent.get("noise_mask") is not None:
        outside = noise_mask(latent, result) == 0
        result = torch.where(outside, samples.to(result), result)  # the host keeps it to rounding only
    return _sampled(latent, result)
