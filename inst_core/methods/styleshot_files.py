"""StyleShot's files: recognised by their keys, checked, and made into networks around their own tensors."""
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import ModuleType
from typing import NamedTuple, TypeVar

import torch
from torch import nn

from . import hed
from .common import Part, module_part
from .styleshot import AdapterSizes, EncoderSizes, StateDict, StyleAdapter, StyleAwareEncoder

Network = TypeVar("Network", bound=nn.Module)



class _Role(NamedTuple):
    """A file of a release: how its keys start, and the part that a file with such keys should be."""

    starts: tuple[str, ...]
    part: Callable[[StateDict], Part]


_CONTROLNET, _ADAPTER, _ADAPTER_FILE = "controlnet.", "adapter_modules.", "ip.bin"
_REQUIRED = ("encoder", "adapter")
_ROLES = {
    "encoder": _Role(("cnn.", "style_embeddings.", "image_encoder."),
                     lambda weights: module_part("style-aware encoder", "style_aware_encoder.bin",
                                                 partial(StyleAwareEncoder, EncoderSizes.of(weights)))),
    "adapter": _Role((_ADAPTER, "style_image_proj_modules.", _CONTROLNET),
                     lambda weights: module_part("style adapter", _ADAPTER_FILE,
                                                 partial(StyleAdapter, AdapterSizes.of(weights)))),
    "contour": _Role(("block1.convs.", "block5.convs."), lambda weights: hed.PART),
}


@dataclass(frozen=True)
class Release:
    """The files of a release, checked, by what they are; the official keys that are needed, tensors as stored.

    Attributes:
        encoder, adapter: state dicts of ``StyleAwareEncoder`` and ``StyleAdapter``.
        controlnet: the content-fusion ControlNet in diffusers' naming; empty in early, text-driven releases.
        contour: state dict of ``hed.HED``, or None.
    """

    encoder: StateDict
    adapter: StateDict
    controlnet: StateDict
    contour: StateDict | None = None


def _role_of(name: str, weights: StateDict) -> str:
    """The role of a file, by how its keys start.

    Raises:
        ValueError: unknown.
    """
    role = next((role for role, (starts, _) in _ROLES.items() if any(key.startswith(starts) for key in weights)), None)
    if role is None:
        known = ", ".join(part({}).file for _, part in _ROLES.values())
        first = ", ".join(list(weights)[:3]) or "nothing"
        raise ValueError(f"{name} is not a file of StyleShot (it starts with {first}). Choose one of these: {known}.")
    return role


def _combined(files: Sequence[tuple[str, StateDict]], title: str) -> tuple[str, StateDict]:
    """Files of one role as one: of an own training, stage 1 leaves the adapter and stage 2 the ControlNet.

    Where both have the projections, those beside the adapter count: stage 2 keeps them frozen.

    Raises:
        ValueError: files that hold the same part.
    """
    names, held, weights = [], set(), {}
    for name, more in sorted(files, key=lambda file: not _holds(file[1], _ADAPTER)):
        parts = {prefix for prefix in (_ADAPTER, _CONTROLNET) if _holds(more, prefix)}
        if names and (not parts or parts & held):
            raise ValueError(f"{names[-1]} and {name} are the same part ({title}); choose one.")
        names.append(name)
        held |= parts
        weights = {**more, **weights}
    return " and ".join(names), weights


def _holds(weights: StateDict, prefix: str) -> bool:
    return any(key.startswith(prefix) for key in weights)


def _check_complete(name: str, part: Part, weights: StateDict) -> None:
    """Raises ValueError, saying what is missing."""
    if not (lacking := part.lacking(weights)):
        return
    if part.file == _ADAPTER_FILE and not _holds(weights, _ADAPTER):
        raise ValueError(f"{name} holds no {_ADAPTER.rstrip('.')}. StyleShot's training leaves them in the file of its "
                         "first stage and the ControlNet in that of the second: choose both in Load StyleShot.")
    raise ValueError(f"{name} looks like {part.file} ({part.title}), but {len(lacking)} tensors are missing or "
                     f"have another shape: {', '.join(lacking[:4])}. The file is damaged or of another version: "
                     "download it again.")


def read_release(files: Mapping[str, StateDict]) -> Release:
    """Recognises the files of a release by their keys and checks them; only shapes are looked at.

    Args:
        files: {file name: state dict}, in any order, with or without the prefix of DataParallel. The adapter and the
            ControlNet may lie in two files.

    Raises:
        ValueError: a file that is unknown or incomplete, two that are the same part, one that is missing, or files
            that do not belong together.
    """
    found: dict[str, list[tuple[str, StateDict]]] = {}
    for name, stored in files.items():
        weights = {key.removeprefix("module."): tensor for key, tensor in stored.items()}
        found.setdefault(_role_of(name, weights), []).append((name, weights))
    names, parts, controlnet = {}, {}, {}
    for role, same in found.items():
        names[role], weights = _combined(same, _ROLES[role].part({}).title)
        part = _ROLES[role].part(weights)
        _check_complete(names[role], part, weights)
        parts[role] = {key: weights[key] for key in part.shapes()}
        controlnet |= {key.removeprefix(_CONTROLNET): tensor for key, tensor in weights.items()
                       if role == "adapter" and key.startswith(_CONTROLNET)}
    if missing := [_ROLES[role].part({}) for role in _REQUIRED if role not in names]:
        wanted = " and ".join(f"{part.file} ({part.title})" for part in missing)
        raise ValueError(f"{wanted} is missing among the files ({', '.join(files) or 'none'}). Choose all files of one "
                         "release.")
    gives, takes = EncoderSizes.of(parts["encoder"]).embed, AdapterSizes.of(parts["adapter"]).embed
    if gives != takes:
        raise ValueError(f"{names['encoder']} makes embeddings of {gives} numbers, {names['adapter']} takes {takes}. "
                         "Choose two files of one release.")
    return Release(controlnet=controlnet, **parts)


def build(make: Callable[..., Network], weights: StateDict, ops: ModuleType = nn) -> Network:
    """A frozen network around the file's own tensors: nothing is copied, the stored number formats stay."""
    with torch.device("meta"):
        module = make(ops=ops)
    module.load_state_dict(dict(weights), assign=True)
    return module.eval().requires_grad_(False)


def style_encoder(release: Release, ops: ModuleType = nn) -> StyleAwareEncoder:
    return build(partial(StyleAwareEncoder, EncoderSizes.of(release.encoder)), release.encoder, ops)


def style_adapter(release: Release, ops: ModuleType = nn) -> StyleAdapter:
    return build(partial(StyleAdapter, AdapterSizes.of(release.adapter)), release.adapter, ops)
