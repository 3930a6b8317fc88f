"""Official InST ``embeddings.pt`` files, read without running them.

The released code saves ``{"string_to_token": ..., "attention": <Attentions object>}``: a whole pickled module.  Every
name in the pickle is looked at before anything is built, and torch's own restricted reader builds the rest: tensors,
plain containers, and plain dictionaries in place of the known modules.
"""
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from . import pickles
from .encoders import Attentions
from .textual_inversion import KNOWN_WIDTHS, USE_IN_PROMPT

MAX_BYTES = 512 * 2**20


class _Module(dict):
    """Stands in for a pickled nn.Module: its ``__dict__`` as a plain dictionary."""

    def __setstate__(self, state: dict) -> None:
        self.update(state)


_STAND_INS = {
    "ldm.modules.embedding_manager.Attentions": _Module,
    "ldm.modules.attention.CrossAttention": _Module,
    "torch.nn.modules.linear.Linear": _Module,
    "torch.nn.modules.linear.NonDynamicallyQuantizableLinear": _Module,
    "torch.nn.modules.dropout.Dropout": _Module,
    "torch.nn.modules.container.Sequential": _Module,
    "torch.nn.modules.container.ModuleList": _Module,
    "torch.nn.modules.container.ParameterDict": _Module,
} | pickles.NUMPY


def load_embeddings(path: Path) -> dict[str, Tensor]:
    """The ``Attentions`` state dict inside an official ``embeddings.pt``.

    Returns:
        {official key: tensor in the number format of the file}, complete and of the official shapes.

    Raises:
        ValueError: not a torch zip file, names it must not use, another tool's textual inversion, or missing, extra or
            misshapen tensors; names the file.
    """
    try:
        return _attention_weights(_read(path))
    except pickles.Refused as error:
        raise ValueError(f"{path.name} was not imported: {error}") from error
    except Exception as error:  # what torch and zipfile raise depends on the kind of damage
        raise ValueError(f"{path.name} was not imported: it is damaged, or not a readable embeddings.pt "
                         f"({pickles.reason(error)}). Expected the file that InST's training writes, in torch's zip "
                         f"format. {USE_IN_PROMPT}") from error


def _read(path: Path) -> Any:
    """What was saved, with dictionaries in place of modules."""
    size = path.stat().st_size
    if size > MAX_BYTES:
        raise pickles.Refused(f"it has {size / 2**20:.0f} MB; an embeddings.pt has about 15. Choose the "
                              "embeddings.pt of an InST training.")
    if not zipfile.is_zipfile(path):
        raise pickles.Refused(f"it is not in torch's zip format; expected the file that InST's training writes. "
                              f"{USE_IN_PROMPT}")
    others = sorted(pickles.names_in(path) - pickles.TENSORS - _STAND_INS.keys())
    if others:
        raise pickles.Refused(f"it asks for {others[0]}, which an InST file does not need. Nothing was run. Do not "
                              "trust this file unless you know who made it.")
    return pickles.load(path, _STAND_INS)


def _parameters(module: dict, prefix: str = "") -> dict[str, Any]:
    """The state dict of a stand-in module."""
    found = {prefix + k: v for k, v in (module.get("_parameters") or {}).items() if v is not None}
    for name, child in (module.get("_modules") or {}).items():
        if isinstance(child, dict):
            found |= _parameters(child, f"{prefix}{name}.")
    return found


def _attention_weights(checkpoint: Any) -> dict[str, Tensor]:
    if not isinstance(checkpoint, dict):
        raise pickles.Refused(f"it holds {type(checkpoint).__name__}; expected string_to_token and attention. Choose "
                              "the embeddings.pt of an InST training.")
    attention = checkpoint.get("attention")
    if not isinstance(attention, dict):
        inverted = "string_to_param" in checkpoint or any(
            isinstance(v, Tensor) and v.ndim in (1, 2) and v.shape[-1] in KNOWN_WIDTHS.values()
            for v in checkpoint.values())
        advice = "It is a textual inversion of another tool: leave it in models/embeddings and write embedding: and " \
            "its name in any prompt." if inverted else "Choose the embeddings.pt of an InST training."
        raise pickles.Refused(f"it holds {', '.join(map(str, list(checkpoint)[:6])) or 'nothing'}; expected "
                              f"string_to_token and attention. {advice}")
    weights = _parameters(attention) if isinstance(attention, _Module) else dict(attention)
    _check_weights(weights)
    return {k: v.detach() for k, v in weights.items()}


def _check_weights(weights: dict[str, Any]) -> None:
    with torch.device("meta"):
        expected = {k: tuple(v.shape) for k, v in Attentions().state_dict().items()}
    missing, extra = sorted(expected.keys() - weights.keys()), sorted(map(str, weights.keys() - expected.keys()))
    if missing or extra:
        raise pickles.Refused(f"its attention module lacks {missing or 'nothing'} and has unexpected "
                              f"{extra or 'nothing'}. Choose the embeddings.pt of an InST training.")
    for key, shape in expected.items():
        value = weights[key]
        if not isinstance(value, Tensor) or tuple(value.shape) != shape or not value.is_floating_point():
            found = f"{value.dtype} {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            raise pickles.Refused(f"{key} is {found}; expected floating point {shape}. The file is damaged.")
        if not pickles.is_whole(value):
            raise pickles.Refused(f"{key} takes more numbers than are stored for it. The file is damaged: "
                                  "copy it again.")
        if not torch.isfinite(value).all():
            raise pickles.Refused(f"{key} has values that are not finite. Train it again.")
