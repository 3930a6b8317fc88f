"""The frozen models that a style is learned on, as the loop sees them."""
from contextlib import AbstractContextManager
from typing import Protocol

import torch
from torch.utils._pytree import tree_map

from .encoders import Vectors
from .objective import Denoiser


class Conditioning(Protocol):
    """A named tuple of tensors that the text encoder gives and the denoiser takes, some of them None."""


class Text(Protocol):
    """A frozen text encoder with one prompt."""

    def encode(self, vectors: Vectors) -> Conditioning:
        """The prompt with these pseudo-words."""

    def recording(self) -> AbstractContextManager:
        """In which ``encode`` and its backward pass run."""


class Session(Protocol):
    """Models that can be differentiated; see ``host.training.TrainingSession``."""

    denoiser: Denoiser
    text: Text
    device: torch.device

    def free_bytes(self) -> int:
        """Memory that is free on the device, with the denoiser on it."""

    def is_out_of_memory(self, error: BaseException) -> bool:
        """Whether an exception says that memory ran out."""


@torch.no_grad()
def encode_detached(session: Session, vectors: Vectors) -> Conditioning:
    """The context of the prompt with these pseudo-words, without gradients."""
    return session.text.encode({k: v.detach() for k, v in vectors.items()})


def make_leaves(conditioning: Conditioning) -> Conditioning:
    """The same, as the place where a gradient ends. Some text encoders give further tensors, masks among them."""
    return tree_map(lambda t: t.detach().requires_grad_(t.is_floating_point()) if torch.is_tensor(t) else t,
                    conditioning)
