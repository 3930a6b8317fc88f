"""Pairs: a photograph, and the same repainted by the teacher in a style that it is told.

``make`` writes pictures, PER_FILE pairs a file: the autoencoder is trained on them.  ``encode`` turns all of them into
latents for the denoiser.  Both go on where they were: what a file holds depends on its number alone.
"""
import argparse
import hashlib
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm
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
    due = [w for w in wanted if not w[0].exists()]
    for done, (path, photographs, seed) in enumerate(tqdm(due, desc="pairs", unit="file")):
        generator = torch.Generator().manual_seed(seed)
        made = [pair(teacher, photographs, bank, generator) for _ in range(PER_FILE)]
        save_tensors(path, {k: torch.stack([m[k] for m in made]) for k in made[0]})
        if done % 20 == 0 or done == len(due) - 1:
            save_sheet(options.folder / "pairs.jpg",
                       [torch.stack([m[k] for m in made[:8]]) for k in ("photo", "target")])
    say("pairs", f"{len(wanted) * PER_FILE} pairs; to look at: {options.folder / 'pairs.jpg'}")


def picture_files(folder: Path, held_out: bool = False) -> list[Path]:
    """Files of pairs as pictures.

    Raises:
        ValueError: there are none.
    """
    found = [p for p in sorted((folder / PICTURES).glob("*.safetensors"))
             if p.name.startswith(HELD_OUT_NAME) == held_out]
    if not found:
        raise ValueError(f"{folder / PICTURES} holds no pairs as pictures. Make them first, with the stages pictures, "
                         "styles and pairs.")
    return found


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
    return Pairs(**read_tensors(target)[0])


@torch.no_grad()
def encode(options: argparse.Namespace) -> None:
    """The stage: all pairs as latents in one file, the held-out ones last."""
    networks.host(True)
    autoencoder = load_autoencoder(options.folder)
    training, held_out = picture_files(options.folder), picture_files(options.folder, held_out=True)
    cache = options.folder / LATENTS / digest_of(autoencoder["encoder"])
    parts = [_latents(autoencoder, path, cache / path.name)
             for path in tqdm([*training, *held_out], desc="latents", unit="file")]
    save_pairs(options.folder / OUTPUT, Pairs.joined(parts), sum(map(len, parts[len(training):])))
    save_sheet(options.folder / "latents.jpg",
               [autoencoder["decoder"](z[:8].float()) for z in (parts[0].photo, parts[0].target)])
    say("latents", f"{sum(map(len, parts))} pairs in {options.folder / OUTPUT}; to look at: "
                   f"{options.folder / 'latents.jpg'}")
