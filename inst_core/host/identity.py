"""Which models the connected ones are: the same after a restart, another with another LoRA, strength or patch."""
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor, nn

from ..library import fingerprint

BLOCKS, BLOCK = 64, 4096  # of a model file that are looked at, and their bytes


def _sample_file(path: Path) -> list[Any]:
    """Size and some blocks of a file, from its first byte to its last: the same for a copy under another name."""
    size = path.stat().st_size
    with path.open("rb") as file:
        blocks = []
        for i in range(BLOCKS):
            file.seek(max(0, size - BLOCK) * i // (BLOCKS - 1))
            blocks.append(file.read(BLOCK))
    return [size, blocks]


def _is_folder(value: Any) -> bool:
    """Also one that is not there: the folders of embeddings need not be."""
    return isinstance(value, str) and os.path.isabs(value) and not os.path.isfile(value)


def _with_files(value: Any) -> Any:
    """A loader's arguments with the contents of files in place of their names; folders are left out."""
    if isinstance(value, str):
        return _sample_file(Path(value)) if os.path.isfile(value) else value
    if isinstance(value, Mapping):
        return {key: _with_files(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_with_files(item) for item in value if not _is_folder(item)]
    return value


def _own_weights(patcher) -> dict[str, Tensor]:
    """The model's tensors without the user's patches, whether these are applied at the moment or not."""
    weights = dict(patcher.model_state_dict())
    for name, original in patcher.object_patches_backup.items():
        weights = {key: tensor for key, tensor in weights.items() if not key.startswith(f"{name}.")}
        if isinstance(original, nn.Module):
            weights |= {f"{name}.{key}": tensor for key, tensor in original.state_dict().items()}
    weights |= {key: kept.weight for key, kept in patcher.backup.items()}
    weights |= {key: kept[0] for key, kept in patcher.hook_backup.items()}
    return weights


def _describe(model) -> list[Any]:
    """What was loaded, and all that is patched over it; of patches, tensors and strengths count, not the objects.

    The loader's files are asked first: in memory, parameters that a file lacks hold whatever was there before.
    """
    patcher = getattr(model, "patcher", model)
    if not isinstance(patcher, ModelPatcher):
        return [model]  # a VAE of another kind
    loaded = _own_weights(patcher) if patcher.cached_patcher_init is None else _with_files(patcher.cached_patcher_init)
    return [loaded, patcher.model_dtype(), patcher.patches, patcher.object_patches, patcher.model_options,
            patcher.injections, patcher.weight_wrapper_patches, patcher.wrappers, list(patcher.hook_patches.values())]


@torch.no_grad()
def identify(model, clip, vae, clip_vision=None, texts: Sequence[str] = ()) -> str:
    """A hash of MODEL, CLIP, VAE and CLIP vision as they are connected.

    Args:
        texts: prompts; what CLIP makes of them counts, embeddings that they name included.
    """
    described = [_describe(model), _describe(clip), clip.layer_idx, clip.tokenizer_options,
                 [clip.tokenize(text) for text in texts], _describe(vae)]
    if clip_vision is not None:
        described += [_describe(clip_vision), clip_vision.image_size]
    return fingerprint(described)
