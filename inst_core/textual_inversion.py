"""Textual inversions of other tools, as tables of tensors: which matrix belongs to which text encoder.

ComfyUI's own ``embedding:`` reader (``comfy/sd1_clip.py``, ``load_embed``) takes the tensor under the text encoder's
key, or those of an embedding bundled with a LoRA, or otherwise the first one.  A style has to know its text encoders
before a CLIP is connected, so a matrix under another name goes to the text encoder that is as wide.
"""
import re
from collections.abc import Mapping

import torch
from torch import Tensor

# Tokens that one window of CLIP holds beside its start and end.
MAX_TOKENS = 75
MAX_WIDTH = 16384  # wider than any text encoder
# Text encoders by their keys in embedding files, and how wide they usually are. Files of this pack may hold others.
KNOWN_WIDTHS = {"clip_l": 768, "clip_g": 1280, "clip_h": 1024, "t5xxl": 4096, "gemma2_2b": 2304, "qwen3_4b": 2560,
                "qwen25_7b": 3584, "mistral3_24b": 5120}
# Others go by their names alone: they are as wide as one of those, or as one another.
NAMES = (*KNOWN_WIDTHS, "llama", "qwen3_8b", "qwen3vl_4b", "qwen3_2b", "qwen25_3b", "pile_t5xl", "mt5xl",
         "chinese_roberta")
USE_IN_PROMPT = ("A textual inversion that cannot be read here still works in any prompt: put the file into "
                 "models/embeddings and write embedding: and its name.")

_BUNDLED = re.compile(r"bundle_emb\..+?\.(string_to_param\.\*|[^.]+)")
_ANY_ENCODER = "string_to_param.*"


def in_words(widths: Mapping[str, int]) -> str:
    """Text encoders {key: width} for messages: ``clip_l (768), clip_g (1280)``."""
    return ", ".join(f"{key} ({width})" for key, width in widths.items())


def read_vectors(tensors: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
    """The vectors of a textual inversion.

    Args:
        tensors: the file's, by their names.
        source: name of the file, for messages.

    Returns:
        {text encoder key: (n, width)}, unchecked, in whatever number format.

    Raises:
        ValueError: the file is no textual inversion, or it cannot be told which text encoder a matrix is for.
    """
    named = {key: tensors[key] for key in NAMES if key in tensors} or _bundled(tensors)
    if not named:
        named = _by_width(tensors, source)
    return {key: _as_matrix(value) for key, value in named.items()}


def _as_matrix(value: Tensor) -> Tensor:
    """A single vector is one token."""
    return value[None] if value.ndim == 1 else value


def _bundled(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Embeddings inside a LoRA, ``bundle_emb.NAME.KEY``; several names follow each other, as in the host."""
    found: dict[str, list[Tensor]] = {}
    for key, value in tensors.items():
        if (match := _BUNDLED.fullmatch(key)) and value.ndim in (1, 2) and value.is_floating_point():
            encoder = match[1]
            if encoder == _ANY_ENCODER:
                encoder = _encoder_of(value)
            if encoder in NAMES:
                found.setdefault(encoder, []).append(_as_matrix(value).float())
    return {key: torch.cat(values) for key, values in found.items() if len({v.shape[1] for v in values}) == 1}


def _encoder_of(value: Tensor) -> str | None:
    return next((key for key, width in KNOWN_WIDTHS.items() if width == value.shape[-1]), None)


def _by_width(tensors: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
    """Every floating matrix, each of another known width: {text encoder key: matrix}."""
    floating = {k: v for k, v in tensors.items() if v.is_floating_point() and v.ndim}
    encoders = {k: _encoder_of(v) if v.ndim <= 2 else None for k, v in floating.items()}
    if not floating or None in encoders.values() or len(set(encoders.values())) != len(encoders):
        shapes = ", ".join(f"{k} {tuple(v.shape)}" for k, v in list(tensors.items())[:4]) or "nothing"
        widths = in_words(KNOWN_WIDTHS)
        raise ValueError(f"{source} is not a style: it holds {shapes}{', ...' if len(tensors) > 4 else ''}. Expected "
                         f"the vectors of one text encoder, or of several that differ in width: {widths}. "
                         f"{USE_IN_PROMPT}")
    return {encoder: floating[key] for key, encoder in encoders.items() if encoder}
