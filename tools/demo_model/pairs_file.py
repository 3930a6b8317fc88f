"""Pairs as latents: what the denoiser is trained on. One small file, read without pictures or teacher."""
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from whole import read_tensors, save_tensors

PATTERN = "pairs*.int8.safetensors"
ABOUT = ("latents of 256 px pairs: photo, target repainted by the teacher told style; own = (target, photo) as "
         "measured by the teacher; latent = int8 * scale per channel")
HELD_OUT = 48  # pairs, where a file does not say


@dataclass(frozen=True)
class Pairs:
    """
    Attributes:
        photo, target: (n, 4, 32, 32) latents of the photograph and of what the teacher made of it.
        style: (n, 100) what the teacher was told.
        own: (n, 2, 100) what it measures in the target, and in the photograph.
    """

    photo: Tensor
    target: Tensor
    style: Tensor
    own: Tensor

    def __len__(self) -> int:
        return len(self.photo)

    def __getitem__(self, rows) -> "Pairs":
        return Pairs(self.photo[rows], self.target[rows], self.style[rows], self.own[rows])

    @classmethod
    def joined(cls, parts: Iterable["Pairs"]) -> "Pairs":
        parts = list(parts)
        return cls(*(torch.cat([getattr(p, name) for p in parts]) for name in ("photo", "target", "style", "own")))


def save_pairs(path: Path, pairs: Pairs, held_out: int) -> None:
    """Latents are rounded to 255 levels a channel; the last ``held_out`` pairs are for judging."""
    tensors = {"style": pairs.style.half(), "own": pairs.own.half()}
    for name in ("photo", "target"):
        latents = getattr(pairs, name).float()
        scale = latents.abs().amax((0, 2, 3)) / 127
        tensors[name] = (latents / scale.view(1, -1, 1, 1)).round().to(torch.int8)
        tensors[f"{name}_scale"] = scale
    save_tensors(path, tensors, {"about": ABOUT, "held_out": str(held_out)})


def read_pairs(folder: Path) -> tuple[Pairs, Pairs]:
    """(to train on, held out) of all pairs files of a folder.

    Raises:
        ValueError: there are none.
    """
    training, judging = [], []
    for path in sorted(folder.glob(PATTERN)):
        tensors, metadata = read_tensors(path)
        held_out = int(metadata.get("held_out", HELD_OUT))
        for name in ("photo", "target"):
            scale = tensors[f"{name}_scale"].view(1, -1, 1, 1)
            tensors[name] = (tensors[name].float() * scale).half()
        whole = Pairs(tensors["photo"], tensors["target"], tensors["style"].float(), tensors["own"].float())
        border = len(whole) - held_out
        training.append(whole[:border])
        judging.append(whole[border:])
    if not training:
        raise ValueError(f"{folder} holds no pairs ({PATTERN}). Make them with the stages pictures, styles, pairs and "
                         "latents, or take them from another folder with --from.")
    return Pairs.joined(training), Pairs.joined(judging)
