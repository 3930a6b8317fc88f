"""Prompts with pseudo-words: vectors in the place of tokens, spliced by the host's own tokenizer."""
import copy
import tempfile
import uuid
from collections.abc import Mapping
from pathlib import Path

import torch
from comfy.sd1_clip import SDTokenizer
from safetensors.torch import save_file
from torch import Tensor

from ..style import ALL_LAYERS
from .style_layers import late_only

PLACEHOLDER = "*"


def _readers(clip) -> dict[str, SDTokenizer]:
    """{key of the text encoder: its tokenizer}, for those that read embeddings."""
    parts = {k: t for k, t in vars(clip.tokenizer).items() if isinstance(t, SDTokenizer)}
    return {k: t for k, t in parts.items() if t.embedding_directory is not None}


def _tokenizers(clip) -> dict[str, SDTokenizer]:
    """The same, for text encoders that are loaded: a CLIP may come without some of those its tokenizer knows."""
    parts = {k: t for k, t in _readers(clip).items() if getattr(clip.cond_stage_model, k, None) is not None}
    if not parts:
        raise ValueError(f"The connected CLIP ({type(clip.cond_stage_model).__name__}) has no tokenizer that takes "
                         "embeddings, so a style cannot be put into its prompts.")
    return parts


def text_widths(clip) -> dict[str, int]:
    """{``clip_l``: 768, ...}: the text encoders a style for this CLIP needs, and their widths."""
    return {k: t.embedding_size for k, t in _tokenizers(clip).items()}


def with_placeholder(text: str) -> str:
    """The prompt with its ``*``; a prompt without one gets it at the end."""
    if PLACEHOLDER in text:
        return text
    return f"{text.strip()} in the style of {PLACEHOLDER}" if text.strip() else PLACEHOLDER


def tokenize(clip, text: str, vectors: Mapping[str, Tensor]) -> dict:
    """Tokens of ``text`` with ``vectors`` in the place of every ``*``.

    The vectors go through the host's ``embedding:`` reader (as a file in a temporary folder), so a style here and the
    same style as ``embedding:name`` give the same tokens by construction.
    """
    with tempfile.TemporaryDirectory() as folder:
        name = f"inst_{uuid.uuid4().hex}"
        save_file({k: v.detach().float().cpu().contiguous() for k, v in vectors.items()},
                  Path(folder, f"{name}.safetensors"))
        reader = clip.clone()
        reader.tokenizer = copy.copy(clip.tokenizer)
        for key, part in _readers(clip).items():
            part = copy.copy(part)
            known = part.embedding_directory
            part.embedding_directory = [folder, *([known] if isinstance(known, str) else known)]
            setattr(reader.tokenizer, key, part)
        return reader.tokenize(text.replace(PLACEHOLDER, f" embedding:{name} "))


def _scheduled(clip, tokens: dict) -> list:
    return clip.encode_from_tokens_scheduled(tokens)


def _blend(without: list, with_style: list, strength: float) -> list:
    """Conditioning on the line from the prompt without the style (0) through the style (1) and beyond."""
    blended = []
    for (base, base_extra), (full, full_extra) in zip(without, with_style, strict=True):
        short = full.shape[1] - base.shape[1]  # prompts may differ in the number of 77-token windows
        base = torch.nn.functional.pad(base, (0, 0, 0, max(short, 0)))
        full = torch.nn.functional.pad(full, (0, 0, 0, max(-short, 0)))
        extra = dict(full_extra)
        if extra.get("pooled_output") is not None:
            extra["pooled_output"] = torch.lerp(base_extra["pooled_output"], extra["pooled_output"], strength)
        blended.append([torch.lerp(base, full, strength), extra])
    return blended


def style_conditioning(clip, text: str, vectors: Mapping[str, Tensor], strength: float = 1.0,
                       layers: str = ALL_LAYERS) -> list:
    """CONDITIONING of ``text`` with the style in the place of ``*``.

    Args:
        strength: 1 = the style as learned, bit-equal to ``embedding:name``; 0 = the prompt without ``*``; other
            values lie on the line through the two.
        layers: "late" lets only the late blocks of a U-Net see the style (see ``style_layers``).
    """
    text = with_placeholder(text)
    if strength == 1 and layers == ALL_LAYERS:
        return _scheduled(clip, tokenize(clip, text, vectors))
    without = _scheduled(clip, clip.tokenize(text.replace(PLACEHOLDER, "")))
    if strength == 0:
        return without
    styled = _scheduled(clip, tokenize(clip, text, vectors))
    if strength != 1:
        styled = _blend(without, styled, strength)
    return styled if layers == ALL_LAYERS else late_only(styled, without)


def token_embedding(clip, key: str):
    """The embedding table of one text encoder: a module with ``weight`` (vocabulary, width)."""
    return getattr(clip.cond_stage_model, key).transformer.get_input_embeddings()


def word_vectors(clip, words: str) -> dict[str, Tensor]:
    """A vector to start from, per text encoder: {key: (1, width) float32 CPU}.

    The mean token embedding of some words (of the whole vocabulary where there are none), at the mean length of the
    vocabulary: other lengths are no words to the text encoder (Kim et al. 2026, directional textual inversion).
    """
    start = {}
    for key, part in _tokenizers(clip).items():
        special = {part.start_token, part.end_token, part.pad_token}
        ids = [t for window in part.tokenize_with_weights(words) for t, _ in window if t not in special]
        table = token_embedding(clip, key).weight
        mean = table[torch.tensor(ids, device=table.device)] if ids else table
        mean = mean.float().mean(0, keepdim=True)
        length = table.float().norm(dim=-1).mean()
        start[key] = (mean * (length / mean.norm())).cpu().clone()
    return start
