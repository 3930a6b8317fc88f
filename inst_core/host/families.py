"""Which model families the nodes serve. The only place that knows a family's name."""
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import torch


class Family(NamedTuple):
    """A row of the support table.

    Attributes:
        label: for people.
        text: the text encoders whose tokens are learned, of those that are loaded.
        prediction: what the denoiser predicts; the host's ``model_sampling`` knows it, this is for the table only.
    """

    label: str
    text: tuple[str, ...]
    prediction: str


# Families that a style can be learned on, keyed by the host's model config class (comfy/supported_models.py).
# Inversion and sampling ask ``model_sampling`` and run on others too.
FAMILIES = {
    "SD15": Family("SD 1.x", ("clip_l",), "noise"),
    "SD20": Family("SD 2.x", ("clip_h",), "velocity or noise"),
    "SDXL": Family("SDXL", ("clip_l", "clip_g"), "noise or velocity"),
    "SSD1B": Family("SSD-1B", ("clip_l", "clip_g"), "noise"),
    "Segmind_Vega": Family("Segmind-Vega", ("clip_l", "clip_g"), "noise"),
    "KOALA_700M": Family("KOALA 700M", ("clip_l", "clip_g"), "noise"),
    "KOALA_1B": Family("KOALA 1B", ("clip_l", "clip_g"), "noise"),
    "SD3": Family("SD 3, SD 3.5", ("clip_l", "clip_g", "t5xxl"), "flow"),
    "Flux": Family("Flux.1 dev", ("clip_l", "t5xxl"), "flow"),
    "FluxSchnell": Family("Flux.1 schnell", ("clip_l", "t5xxl"), "flow"),
}

# What the paper's released weights were trained for.
PAPER_FAMILY = "SD15"


def family_of(model) -> str:
    """The family key of a MODEL, also for families that are not in the table."""
    return type(model.model.model_config).__name__


def label_of_encoders(encoders: Iterable[str]) -> str | None:
    """The best-known family with just these text encoders, for messages; None = unknown."""
    return next((family.label for family in FAMILIES.values() if set(family.text) == set(encoders)), None)


def source_of(model) -> str:
    """File name of the checkpoint a MODEL was loaded from, where its loader tells; otherwise the family."""
    match model.cached_patcher_init:
        case (_, (str() as path, *_), *_):
            return Path(path).name
    return family_of(model)


def _check_still_image(model, node: str) -> None:
    name = family_of(model)
    latent_format = model.get_model_object("latent_format")
    if latent_format.latent_dimensions != 2:
        raise ValueError(f"{node} works on still images; the connected model ({name}) makes video. "
                         "Use an image model such as SD 1.5 or SDXL.")
    if _extra_channels(model, latent_format.latent_channels):
        raise ValueError(f"{node} does not support inpainting or edit models (the connected {name} takes extra input "
                         "channels). Use the base checkpoint and set a latent noise mask instead.")


def _extra_channels(model, channels: int) -> bool:
    """Whether the denoiser wants more than the noisy latent: asked for a picture, the host gives what it would add."""
    blank = torch.zeros(1, channels, 8, 8)
    added = model.model.concat_cond(noise=blank, latent_image=blank, denoise_mask=blank, device=blank.device)
    return added is not None


def check_learnable(model) -> None:
    """Raises ValueError, in one sentence, unless a style can be learned on this MODEL."""
    _check_still_image(model, "Learn InST Style")
    name = family_of(model)
    if name not in FAMILIES:
        known = ", ".join(f.label for f in FAMILIES.values())
        raise ValueError(f"Learn InST Style does not support the connected model family ({name}). Supported: {known}.")


def check_invertible(model) -> None:
    """Raises ValueError, in one sentence, unless the MODEL's noising can be inverted."""
    _check_still_image(model, "Stochastic Invert Latent")
