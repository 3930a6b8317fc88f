"""Files that ``torch.save`` wrote, read without running anything in them and without growing beyond their size.

torch's restricted reader (``weights_only``) builds tensors and plain containers.  Beside them, stand-ins take the place
of other classes.  Names that torch knows, but that make large things of a few bytes, are refused.
"""
import pickletools
import tarfile
import zipfile
from _compat_pickle import IMPORT_MAPPING
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

OVERHEAD = 2**16  # bytes that the contents of a zip file may have beyond the file's own
PROTOCOL = 2  # of pickle
# The first bytes of torch's old format: a pickled magic number. Three pickles come before the one that matters.
_OLD_FORMAT, _PICKLES_BEFORE = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.", 3


def no_number(*_: Any) -> None:
    """Stands in for numpy's numbers, which files hold beside their tensors; nothing here needs them."""


_NUMPY_KINDS = {type(np.dtype(kind)) for kind in "?bBhHiIlLqQefd"}
NUMPY = {"numpy.core.multiarray.scalar": no_number, "numpy._core.multiarray.scalar": no_number,
         "numpy.dtype": np.dtype} | {f"{kind.__module__}.{kind.__qualname__}": kind for kind in _NUMPY_KINDS}
# What torch builds itself, of what it knows: tensors as large as their storage, and containers.
TENSORS = {f"torch._utils.{name}" for name in ("_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_tensor_v3",
                                               "_rebuild_parameter", "_rebuild_parameter_with_state")}
TENSORS |= {"torch._tensor._rebuild_from_type_v2", "torch.nn.parameter.Parameter", "torch.storage.UntypedStorage",
            "torch.Size", "torch.device", "collections.OrderedDict", "builtins.set", "_codecs.encode"}
TENSORS |= {f"torch.{kind}Storage" for kind in
            ("Float", "Half", "BFloat16", "Double", "Long", "Int", "Short", "Char", "Byte", "Bool")}
TENSORS |= {f"torch.{name}" for name, value in vars(torch).items() if isinstance(value, torch.dtype)}


class Refused(Exception):
    """Why a file is not opened; whoever opens it adds which file, and raises ValueError."""


def names_in(path: Path) -> set[str]:
    """Every class and function, ``module.name``, that a file asks for; none is looked up.

    Raises:
        Refused: the file is not of ``torch.save``, or its contents are larger than it.
        Exception: damaged in another way.
    """
    with path.open("rb") as file:
        if file.read(len(_OLD_FORMAT)) == _OLD_FORMAT:
            file.seek(0)
            return set().union(*(_names(file) for _ in range(_PICKLES_BEFORE + 1)))
    if tarfile.is_tarfile(path):
        raise Refused("it is in torch's first format, a tar file, which cannot be read safely. If you trust it, load "
                      "it once with an older torch and save it again.")
    if not zipfile.is_zipfile(path):
        raise Refused("it is neither a safetensors file nor one that torch.save wrote. It may be cut off: download it "
                      "again.")
    with zipfile.ZipFile(path) as archive:
        pickles = [n for n in archive.namelist() if n.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise Refused("it is a zip file, but not one that torch.save wrote. Choose a weight file.")
        if sum(entry.file_size for entry in archive.infolist()) > path.stat().st_size + OVERHEAD:
            raise Refused("its contents unpack to more than the file holds. Download it again.")
        return _names(archive.read(pickles[0]))


def _names(pickled: bytes | BinaryIO) -> set[str]:
    found = set()
    for operation, argument, _ in pickletools.genops(pickled):
        if operation.name == "PROTO" and argument != PROTOCOL or operation.name == "STACK_GLOBAL":
            raise Refused("it is in another pickle format than torch.save writes by itself. If you trust it, load it "
                          "and save it again.")
        if operation.name in ("GLOBAL", "INST"):
            module, _, name = argument.partition(" ")
            found.add(f"{IMPORT_MAPPING.get(module, module)}.{name}")  # files name Python 2's modules
    return found


def load(path: Path, stand_ins: Mapping[str, Any], mapped: bool = False) -> Any:
    """What was saved, on the CPU.

    Args:
        stand_ins: {``module.name``: class or function that takes its place}.
        mapped: tensors stay in the file until they are used, where the format allows it.
    """
    allowed = torch.serialization.safe_globals([(found, name) for name, found in stand_ins.items()])
    options = {"map_location": "cpu", "weights_only": True}
    if mapped and zipfile.is_zipfile(path) and path.suffix != ".safetensors":  # torch goes by the name of a path
        with allowed:
            return torch.load(path, mmap=True, **options)
    with allowed, path.open("rb") as file:
        return torch.load(file, **options)


def reason(error: Exception) -> str:
    """One line of what a library says went wrong, without its advice to trust the file."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    line = next((line for line in lines if "WeightsUnpickler error" in line), lines[0])
    return line.replace("WeightsUnpickler error:", "").split(". Please use")[0].strip()[:200]


def is_whole(tensor: Tensor) -> bool:
    """Whether all its numbers are stored: not one number that stands for many."""
    return tensor.numel() * tensor.element_size() <= tensor.untyped_storage().nbytes()
