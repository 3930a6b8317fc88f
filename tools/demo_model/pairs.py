"""Pairs: a photograph, and the same repainted by the teacher in a style that it is told.

``make`` writes pictures, PER_FILE pairs a file: the autoencoder is trained on them.  ``encode`` turns all of them into
latents for the denoiser.  Both go on where they were: what a file holds depends on its number alone.
"""
import argparse
import hashlib
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from whole import read_tensors, save_tensors

from . import networks, pictures, styles
from .denoiser import load_autoencoder
from .networks import encoded
from .pairs_file import HELD_OUT, Pairs, save_pairs
from .sheets import save_sheet
from .teacher import PAINTING, Teacher, resized
from .training import say

PICTURES, LATENTS, OUTPUT = "pairs", "latents", "pairs-made.int8.safetensors"
HELD_OUT_NAME = "held_out"  # its files are made of pictures that are never trained on
PER_FILE = 16
SIDE = 256
VIEWS = 256, 280, 304  # px of the photograph that a pair shows
STEP = 8  # px: crops begin where a latent does


def crop(picture: Tensor, side: int, step: int, generator: torch.Generator) -> Tensor:
    room = (picture.shape[-1] - side) // step + 1
    top, left = (step * torch.randint(room, (2,), generator=generator)).tolist()
    return picture[..., top:top + side, left:left + side]


def pair(teacher: Teacher, photographs: Tensor, bank: styles.Bank, generator: torch.Generator) -> dict[str, Tensor]:
    """photo, target (3, SIDE, SIDE) bytes; style (100,); own (2, 100) as measured in the target and in the photo.

    Half of the pairs show the whole picture smaller, half a part of it as the teacher painted it: strokes of two sizes.
    """
    def half() -> bool:
        return torch.rand((), generator=generator).item() < 0.5

    photograph = photographs[torch.randint(len(photographs), (), generator=generator)]
    photograph = photograph.flip(2) if half() else photograph
    view = VIEWS[torch.randint(len(VIEWS), (), generator=generator)]
    photo = resized(crop(photograph, view, 1, generator)[None].float() / 255, PAINTING)
    style = bank.drawn(generator)
    both = torch.cat([photo, teacher.painted(photo, style[None])])
    both = resized(both, SIDE) if half() else crop(both, SIDE, STEP, generator)
    photo, target = (both * 255).round().byte()
    return {"photo": photo, "target": target, "style": style, "own": teacher.measured(both.flip(0))}


def make(options: argparse.Namespace) -> None:
    """The stage: files FIRST to LAST, and those of held-out pictures. Several processes may share the numbers."""
    found, bank = pictures.read(options.folder), styles.read(options.folder)
    teacher, folder = Teacher(options.threads or 1), options.folder / PICTURES
    wanted = [(folder / f"{HELD_OUT_NAME}-{i:05}.safetensors", found.held_out, 10**6 + i)
              for i in range(HELD_OUT // PER_FILE)]
    wanted += [(folder / f"{i:05}.safetensors", found.training, i) for i in range(options.first, options.last)]
    due, start = [w for w in wanted if not w[0].exists()], time.monotonic()
    for done, (path, photographs, seed) in enumerate(due):
        generator = torch.Generator().manual_seed(seed)
        made = [pair(teacher, photographs, bank, generator) for _ in range(PER_FILE)]
        save_tensors(path, {k: torch.stack([m[k] for m in made]) for k in made[0]})
        if done % 20 == 0 or done == len(due) - 1:
            save_sheet(options.folder / "pairs.jpg",
                       [torch.stack([m[k] for m in made[:8]]) for k in ("photo", "target")])
            left = (time.monotonic() - start) / (done + 1) * (len(due) - done - 1) / 60
            say("pairs", f"{done + 1} of {len(due)} files of {PER_FILE}, {left:.0f} min left")
    say("pairs", f"{len(wanted) * PER_FILE} pairs; to look at: {options.folder / 'pairs.jpg'}")


def picture_files(folder: Path, held_out: bool = False) -> list[Path]:
    """Files of pairs as pictures."""
    return [p for p in sorted((folder / PICTURES).glob("*.safetensors"))
            if p.name.startswith(HELD_OUT_NAME) == held_out]


def digest_of(encoder: torch.nn.Module) -> str:
    """A name for the latents of this encoder."""
    digest = hashlib.sha256()
    for weight in encoder.state_dict().values():
        digest.update(weight.contiguous().numpy().tobytes())
    return digest.hexdigest()[:12]


def _latents(autoencoder: torch.nn.ModuleDict, source: Path, target: Path) -> Pairs:
    """Of one file; kept, so that it is done once."""
    if not target.exists():
        held = read_tensors(source)[0]
        save_tensors(target, {k: encoded(autoencoder, v).half() if k in ("photo", "target") else v
                              for k, v in held.items()})
    held = read_tensors(target)[0]
    return Pairs(held["photo"], held["target"], held["style"], held["own"])


@torch.no_grad()
def encode(options: argparse.Namespace) -> None:
    """The stage: all pairs as latents in one file, the held-out ones last."""
    networks.host(True, options.comfyui)
    autoencoder = load_autoencoder(options.folder)
    files: Sequence[Path] = [*picture_files(options.folder), *picture_files(options.folder, held_out=True)]
    if not files:
        raise ValueError(f"{options.folder / PICTURES} is empty. Make pairs first, with the stage 'pairs'.")
    cache = options.folder / LATENTS / digest_of(autoencoder["encoder"])
    parts = []
    for i, path in enumerate(files):
        parts.append(_latents(autoencoder, path, cache / path.name))
        if i % 20 == 0 or i == len(files) - 1:
            say("latents", f"{i + 1} of {len(files)} files")
    held_out = sum(len(part) for part, path in zip(parts, files, strict=True) if path.name.startswith(HELD_OUT_NAME))
    save_pairs(options.folder / OUTPUT, Pairs.joined(parts), held_out)
    shown = torch.cat([parts[0].photo[:8], parts[0].target[:8]]).float()
    rows = [autoencoder["decoder"](z) for z in shown.split(8)]
    save_sheet(options.folder / "latents.jpg", rows)
    say("latents", f"{sum(map(len, parts))} pairs in {options.folder / OUTPUT}; to look at: "
                   f"{options.folder / 'latents.jpg'}")
