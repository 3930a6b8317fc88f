"""Whether the parts of a graph belong together: asked before any work begins."""
from collections.abc import Mapping

import torch
from torch import Tensor

from ..pictures import check_finite
from ..textual_inversion import in_words
from .families import (
    FAMILIES,
    NOT_LEARNABLE,
    ONE_FRAME,
    VIDEO,
    context_width,
    family_of,
    label_of_encoders,
    pooled_width,
    rows_of,
)
from .text import text_widths

LEARN, INVERT, SAMPLE = "Learn InST Style", "Stochastic Invert Latent", "InST Sample"


def check_learnable(model, clip=None, vae=None) -> None:
    """Raises ValueError, in one sentence, unless a style can be learned on this MODEL with this CLIP and VAE."""
    name = family_of(model)
    if name in NOT_LEARNABLE:
        raise ValueError(f"{LEARN} cannot learn on the connected model ({name}): {NOT_LEARNABLE[name]}. "
                         "Choose another model.")
    check_still_image(model, LEARN)
    if not rows_of(name):
        known = ", ".join(family.label for family in FAMILIES)
        raise ValueError(f"{LEARN} does not support the connected model family ({name}). Choose one of "
                         f"these: {known}.")
    check_parts(model, LEARN, clip=clip, vae=vae)


def check_invertible(model) -> None:
    """Raises ValueError, in one sentence, unless the MODEL's noising can be inverted."""
    check_still_image(model, INVERT)


def check_still_image(model, node: str) -> None:
    """Raises ValueError unless the MODEL makes still images of nothing but a noisy latent and a prompt."""
    name, dimensions = family_of(model), _dimensions(model)
    if dimensions == 3 and name not in ONE_FRAME:
        why = "makes video" if name.startswith(VIDEO) else "has latents with a time axis, and is not among the image " \
                                                           f"models known to have one ({', '.join(ONE_FRAME)})"
        raise ValueError(f"{node} works on still images; the connected model ({name}) {why}. Use an image model such "
                         "as SDXL or Z-Image.")
    if dimensions not in (2, 3):
        raise ValueError(f"{node} works on still images; the connected model ({name}) has latents of {dimensions} "
                         "dimension. Use an image model such as SDXL or Z-Image.")
    blank = torch.zeros(_latent_shape(model, 8, 8))
    # Asked for a picture, the host gives what it would add to the noisy latent.
    if model.model.concat_cond(noise=blank, latent_image=blank, denoise_mask=blank, device=blank.device) is not None:
        raise ValueError(f"{node} does not support inpainting or edit models (the connected {name} takes extra input "
                         "channels). Use the base checkpoint and set a latent noise mask instead.")


def check_parts(model, node: str, clip=None, vae=None, latent: Tensor | None = None,
                conditionings: Mapping[str, list] | None = None) -> None:
    """Raises ValueError, naming the socket, unless everything given belongs to the MODEL's family.

    Args:
        latent: the samples of a LATENT, as the host would sample them (``fix_empty_latent_channels``).
        conditionings: {name of the socket: CONDITIONING}.
    """
    name = family_of(model)
    if clip is not None:
        _check_clip(name, node, text_widths(clip))
    channels = model.get_model_object("latent_format").latent_channels
    if vae is not None and getattr(vae, "latent_channels", channels) != channels:
        raise ValueError(f"{node}: the VAE comes from another model: it makes latents of {vae.latent_channels} "
                         f"channels, and the connected model ({name}) takes {channels}. Connect the VAE of the same "
                         "checkpoint.")
    if latent is not None and not latent.is_nested:
        _check_latent(model, node, latent)
    for socket, conditioning in (conditionings or {}).items():
        for context, extra in conditioning:
            for found, width in ((context, context_width(model)), (extra.get("pooled_output"), pooled_width(model))):
                if width is not None and torch.is_tensor(found) and found.shape[-1] != width:
                    raise ValueError(f"{node}: {socket} comes from the CLIP of another model: its width is "
                                     f"{found.shape[-1]}, and the connected model ({name}) takes {width}. Connect the "
                                     "CLIP of the same checkpoint to the prompt.")
            if not torch.isfinite(context).all():
                raise ValueError(f"{node}: {socket} holds NaN or infinite values; expected finite numbers. Check the "
                                 "prompt's nodes, or start ComfyUI with --fp32-text-enc.")


def _check_clip(name: str, node: str, widths: Mapping[str, int]) -> None:
    rows = rows_of(name)
    if not rows or any(set(widths) <= set(family.text) for family in rows):
        return
    wanted = " or ".join(", ".join(family.text) for family in rows)
    has = in_words(widths)
    known = label_of_encoders(widths)
    raise ValueError(f"{node}: the CLIP comes from another model{f' ({known})' if known else ''}: it has the text "
                     f"encoders {has}, and the connected model ({rows[0].label}) is prompted through {wanted}. Connect "
                     "the CLIP of the same checkpoint.")


def _check_latent(model, node: str, latent: Tensor) -> None:
    if not len(latent):
        raise ValueError(f"{node}: latent holds no picture. Connect VAE Encode with a photograph.")
    shape, expected = tuple(latent.shape), _latent_shape(model, *latent.shape[-2:])
    if len(shape) != len(expected) or shape[1:-2] != expected[1:-2]:
        inner = ", ".join(map(str, expected[1:-2]))
        raise ValueError(f"{node}: the latent comes from another model: it is {shape}, and the connected model "
                         f"({family_of(model)}) takes (batch, {inner}, height, width). Encode the picture with the VAE "
                         "of the same checkpoint.")
    check_finite(f"{node}: latent", latent)


def _dimensions(model) -> int:
    return model.get_model_object("latent_format").latent_dimensions


def _latent_shape(model, height: int, width: int) -> tuple[int, ...]:
    channels = model.get_model_object("latent_format").latent_channels
    return (1, channels, height, width) if _dimensions(model) == 2 else (1, channels, 1, height, width)
