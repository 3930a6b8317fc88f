"""Official InST ``embeddings.pt`` files, read without running them.

The released code saves ``{"string_to_token": ..., "attention": <Attentions object>}``: a whole pickled module.  The
reader below can build tensors and plain containers and nothing else; modules of the known classes become plain
dictionaries, anything else is refused by name.
"""
import collections
import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .encoders import Attentions

MAX_BYTES = 512 * 2**20

_MODULES = {
    ("ldm.modules.embedding_manager", "Attentions"),
    ("ldm.modules.attention", "CrossAttention"),
    ("torch.nn.modules.linear", "Linear"),
    ("torch.nn.modules.linear", "NonDynamicallyQuantizableLinear"),
    ("torch.nn.modules.dropout", "Dropout"),
    ("torch.nn.modules.container", "Sequential"),
    ("torch.nn.modules.container", "ModuleList"),
    ("torch.nn.modules.container", "ParameterDict"),
}
_STORAGES = {
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "DoubleStorage": torch.float64,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "BoolStorage": torch.bool,
    "ByteStorage": torch.uint8,
}


class OfficialFileError(ValueError):
    """An ``embeddings.pt`` that is not one, or that asks for something it must not get."""


class _Module(dict):
    """Stands in for a pickled nn.Module: its ``__dict__`` as a plain dictionary."""

    def __setstate__(self, state: dict) -> None:
        self.update(state)


def _rebuild_tensor(storage: Tensor, offset: int, size: tuple, stride: tuple, *_: Any) -> Tensor:
    needed = offset + sum((n - 1) * s for n, s in zip(size, stride, strict=True)) + 1 if all(size) else 0
    if min((offset, *size, *stride)) < 0 or needed > storage.numel():
        raise OfficialFileError("a tensor in the file reaches outside its storage. The file is damaged.")
    return storage.as_strided(size, stride, offset).clone()


def _rebuild_parameter(data: Tensor, *_: Any) -> Tensor:
    return data


class _TensorUnpickler(pickle.Unpickler):
    """Finds tensors, containers and the known modules; refuses every other name."""

    def __init__(self, archive: zipfile.ZipFile, root: str):
        super().__init__(archive.open(f"{root}/data.pkl"))
        self._archive, self._root = archive, root

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _MODULES:
            return _Module
        if module == "torch" and name in _STORAGES:
            return _STORAGES[name]
        found = {
            ("collections", "OrderedDict"): collections.OrderedDict,
            ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
            ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
            ("builtins", "set"): set,
            ("__builtin__", "set"): set,
        }.get((module, name))
        if found is None:
            raise OfficialFileError(f"it asks for {module}.{name}, which an InST file does not need. Nothing was run. "
                                    "Do not trust this file.")
        return found

    def persistent_load(self, key: tuple) -> Tensor:
        _, dtype, name, _, count = key
        data = bytearray(self._archive.read(f"{self._root}/data/{name}"))
        if len(data) != count * torch.empty((), dtype=dtype).element_size():
            raise OfficialFileError(f"tensor storage {name} has {len(data)} bytes. The file is damaged.")
        return torch.frombuffer(data, dtype=dtype) if data else torch.empty(0, dtype=dtype)


def _parameters(module: dict, prefix: str = "") -> dict[str, Tensor]:
    """The state dict of a stand-in module."""
    found = {prefix + k: v for k, v in (module.get("_parameters") or {}).items() if v is not None}
    for name, child in (module.get("_modules") or {}).items():
        if isinstance(child, dict):
            found |= _parameters(child, f"{prefix}{name}.")
    return found


def load_embeddings(path: Path) -> dict[str, Tensor]:
    """The ``Attentions`` state dict inside an official ``embeddings.pt``.

    Returns:
        {official key: float32 tensor}, complete and of the official shapes.

    Raises:
        OfficialFileError: not a torch zip file, names it must not use, or missing, extra or misshapen tensors.
    """
    try:
        return _read(path)
    except OfficialFileError as error:
        raise OfficialFileError(f"{path.name} was not imported: {error}") from error
    except (zipfile.BadZipFile, pickle.UnpicklingError, EOFError, KeyError, IndexError, TypeError, AttributeError,
            ValueError, RuntimeError) as error:
        raise OfficialFileError(f"{path.name} was not imported: it is not a readable embeddings.pt ({error}). Expected "
                                "the file that InST's training writes, in torch's zip format.") from error


def _read(path: Path) -> dict[str, Tensor]:
    if path.stat().st_size > MAX_BYTES:
        raise OfficialFileError(f"it has {path.stat().st_size / 2**20:.0f} MB; an embeddings.pt has about 15.")
    with zipfile.ZipFile(path) as archive:
        pickles = [n for n in archive.namelist() if n.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise OfficialFileError("it is a zip file, but not one that torch.save wrote.")
        if sum(i.file_size for i in archive.infolist()) > MAX_BYTES:
            raise OfficialFileError("its contents unpack to far more than an embeddings.pt holds.")
        checkpoint = _TensorUnpickler(archive, pickles[0].removesuffix("/data.pkl")).load()
    if not isinstance(checkpoint, dict) or not isinstance(checkpoint.get("attention"), dict):
        keys = ", ".join(map(str, checkpoint)) if isinstance(checkpoint, dict) else type(checkpoint).__name__
        raise OfficialFileError(f"it holds {keys}; expected string_to_token and attention.")
    attention = checkpoint["attention"]
    weights = _parameters(attention) if isinstance(attention, _Module) else dict(attention)
    _check_weights(weights)
    return {k: v.float() for k, v in weights.items()}


def _check_weights(weights: dict[str, Tensor]) -> None:
    with torch.device("meta"):
        expected = {k: tuple(v.shape) for k, v in Attentions().state_dict().items()}
    missing, extra = sorted(expected.keys() - weights.keys()), sorted(weights.keys() - expected.keys())
    if missing or extra:
        raise OfficialFileError(f"its attention module lacks {missing or 'nothing'} and has unexpected "
                                f"{extra or 'nothing'}.")
    for key, shape in expected.items():
        if tuple(weights[key].shape) != shape or not torch.isfinite(weights[key]).all():
            raise OfficialFileError(f"{key} has shape {tuple(weights[key].shape)} or values that are not finite; "
                                    f"expected {shape}.")
