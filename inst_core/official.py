"""Official InST ``embeddings.pt`` files, read without running them.

The released code saves ``{"string_to_token": ..., "attention": <Attentions object>}``: a whole pickled module.  Every
name in the pickle is looked at before anything is built, and torch's own restricted reader builds the rest: tensors,
plain containers, and plain dictionaries in place of the known modules.
"""
import pickletools
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .encoders import Attentions
from .textual_inversion import USE_IN_PROMPT

MAX_BYTES = 512 * 2**20
OVERHEAD = 2**16  # bytes that the contents of a zip file may have beyond the file's own


class _Module(dict):
    """Stands in for a pickled nn.Module: its ``__dict__`` as a plain dictionary."""

    def __setstate__(self, state: dict) -> None:
        self.update(state)


def _no_number(*_: Any) -> None:
    """Stands in for numpy's numbers, which other tools' files hold beside the tensors; nothing here needs them."""


_NUMPY_KINDS = {type(np.dtype(kind)) for kind in "?bBhHiIlLqQefd"}
_STAND_INS = {
    "ldm.modules.embedding_manager.Attentions": _Module,
    "ldm.modules.attention.CrossAttention": _Module,
    "torch.nn.modules.linear.Linear": _Module,
    "torch.nn.modules.linear.NonDynamicallyQuantizableLinear": _Module,
    "torch.nn.modules.dropout.Dropout": _Module,
    "torch.nn.modules.container.Sequential": _Module,
    "torch.nn.modules.container.ModuleList": _Module,
    "torch.nn.modules.container.ParameterDict": _Module,
    "numpy.core.multiarray.scalar": _no_number,
    "numpy._core.multiarray.scalar": _no_number,
    "numpy.dtype": np.dtype,
} | {f"{kind.__module__}.{kind.__qualname__}": kind for kind in _NUMPY_KINDS}
_TORCH_READS = {"collections.OrderedDict", "torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_parameter",
                "builtins.set", "__builtin__.set", "_codecs.encode"}
_TORCH_READS |= {f"torch.{kind}Storage" for kind in
                 ("Float", "Half", "BFloat16", "Double", "Long", "Int", "Short", "Char", "Byte", "Bool")}


def load_embeddings(path: Path) -> dict[str, Tensor]:
    """The ``Attentions`` state dict inside an official ``embeddings.pt``.

    Returns:
        {official key: float32 tensor}, complete and of the official shapes.

    Raises:
        ValueError: not a torch zip file, names it must not use, another tool's textual inversion, or missing, extra or
            misshapen tensors; names the file.
    """
    try:
        return _attention_weights(_read(path))
    except _Refused as error:
        raise ValueError(f"{path.name} was not imported: {error}") from error
    except Exception as error:  # what torch and zipfile raise depends on the kind of damage
        raise ValueError(f"{path.name} was not imported: it is damaged, or not a readable embeddings.pt ({error}). "
                         f"Expected the file that InST's training writes, in torch's zip format. {USE_IN_PROMPT}"
                         ) from error


class _Refused(Exception):
    """Why a file is not imported; becomes a ValueError that names the file."""


def _read(path: Path) -> Any:
    """What was saved, with dictionaries in place of modules."""
    size = path.stat().st_size
    if size > MAX_BYTES:
        raise _Refused(f"it has {size / 2**20:.0f} MB; an embeddings.pt has about 15.")
    with zipfile.ZipFile(path) as archive:
        pickles = [n for n in archive.namelist() if n.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise _Refused("it is a zip file, but not one that torch.save wrote.")
        if sum(entry.file_size for entry in archive.infolist()) > size + OVERHEAD:
            raise _Refused("its contents unpack to more than the file holds. Download it again.")
        _check_names(archive.read(pickles[0]))
    stand_ins = [(found, name) for name, found in _STAND_INS.items()]
    with torch.serialization.safe_globals(stand_ins):
        return torch.load(path, map_location="cpu", weights_only=True)


def _check_names(pickled: bytes) -> None:
    """Refuses a pickle that asks for any other class or function, before a single one is looked up."""
    for operation, argument, _ in pickletools.genops(pickled):
        name = str(argument).replace(" ", ".")
        if operation.name == "STACK_GLOBAL" or \
                operation.name in ("GLOBAL", "INST") and name not in _STAND_INS and name not in _TORCH_READS:
            raise _Refused(f"it asks for {name if argument else 'names in a later pickle format'}, which an InST file "
                           "does not need. Nothing was run. Do not trust this file unless you know who made it.")


def _parameters(module: dict, prefix: str = "") -> dict[str, Any]:
    """The state dict of a stand-in module."""
    found = {prefix + k: v for k, v in (module.get("_parameters") or {}).items() if v is not None}
    for name, child in (module.get("_modules") or {}).items():
        if isinstance(child, dict):
            found |= _parameters(child, f"{prefix}{name}.")
    return found


def _attention_weights(checkpoint: Any) -> dict[str, Tensor]:
    if not isinstance(checkpoint, dict):
        raise _Refused(f"it holds {type(checkpoint).__name__}; expected string_to_token and attention.")
    attention = checkpoint.get("attention")
    if not isinstance(attention, dict):
        inverted = "string_to_param" in checkpoint or any(isinstance(v, Tensor) for v in checkpoint.values())
        raise _Refused(f"it holds {', '.join(map(str, list(checkpoint)[:6])) or 'nothing'}; expected string_to_token "
                       "and attention. " + ("It is a textual inversion of another tool: leave it in "
                                            "models/embeddings and write embedding: and its name in any prompt."
                                            if inverted else "Choose the embeddings.pt of an InST training."))
    weights = _parameters(attention) if isinstance(attention, _Module) else dict(attention)
    _check_weights(weights)
    return {k: v.detach().float() for k, v in weights.items()}


def _check_weights(weights: dict[str, Any]) -> None:
    with torch.device("meta"):
        expected = {k: tuple(v.shape) for k, v in Attentions().state_dict().items()}
    missing, extra = sorted(expected.keys() - weights.keys()), sorted(map(str, weights.keys() - expected.keys()))
    if missing or extra:
        raise _Refused(f"its attention module lacks {missing or 'nothing'} and has unexpected {extra or 'nothing'}. "
                       "Choose the embeddings.pt of an InST training.")
    for key, shape in expected.items():
        value = weights[key]
        if not isinstance(value, Tensor) or tuple(value.shape) != shape or not value.is_floating_point():
            found = f"{value.dtype} {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            raise _Refused(f"{key} is {found}; expected floating point {shape}. The file is damaged.")
        if value.numel() * value.element_size() > value.untyped_storage().nbytes():
            raise _Refused(f"{key} takes more numbers than are stored for it. The file is damaged.")
        if not torch.isfinite(value).all():
            raise _Refused(f"{key} has values that are not finite; train it again.")
