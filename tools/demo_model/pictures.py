"""The photographs that the demo model is trained on, in one file.

They are the stills, and a few frames of each animation, of the media packages that ComfyUI's workflow templates are
shown with (MIT), cut into squares.  Extra folders of pictures can be named.

Left out: the two pictures of ``tools/demo.py`` with all that shows the same thing, near duplicates, and blank ones.
The last ``HELD_OUT`` pictures are for judging and are never trained on; frames of one animation stay on one side.
"""
import argparse
import io
import json
import random
import re
from collections.abc import Iterable, Iterator
from importlib.metadata import distributions
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from whole import read_tensors, save_tensors

from .sheets import save_sheet
from .training import say

PACKAGES = re.compile(r"comfyui[-_]workflow[-_]templates[-_]media[-_].*")
SUFFIXES = {".webp", ".png", ".jpg", ".jpeg"}
SIDE = 304  # px; crops of 256 are taken from it
QUALITY = 80
FRAMES = (0.1, 0.5, 0.9)  # of an animation
ALIKE = 6  # bits of 64 in which two pictures' difference hashes may differ to count as one
WIDE = 1.35  # pictures at least this wide or tall give two squares
CLOSER = 2.2  # squares at least this many times SIDE give two more, of half their side
BLANK = 0.07  # standard deviation of luminance below which a picture shows nothing
HELD_OUT = 48
SEED = 5
NAME = "pictures.safetensors"
KEPT_BACK = "api_bria_image_edit-2.webp", "api_openai_dall_e_2_t2i-1.webp"  # a house and a painting, to look at results
SHEET = 8  # pictures in a row and in a column


class Pictures(NamedTuple):
    """
    Attributes:
        training, held_out: (n, 3, SIDE, SIDE), bytes.
    """

    training: Tensor
    held_out: Tensor


def packaged() -> list[Path]:
    """Pictures of the installed media packages."""
    found = [Path(d.locate_file(f)) for d in distributions() if PACKAGES.fullmatch(d.metadata["Name"] or "")
             for f in d.files or () if f.suffix.lower() in SUFFIXES]
    return sorted(found, key=lambda p: (p.parent.parent.name, p.name))


def subject(path: Path) -> str:
    """``api_bria_image_edit`` of ``api_bria_image_edit-2.webp``: pictures of one template show the same things."""
    return re.sub(r"[-_]?\d*$", "", path.stem)


def frames(path: Path) -> Iterator[Image.Image]:
    """A still, or a few frames of an animation."""
    with Image.open(path) as picture:
        count = getattr(picture, "n_frames", 1)
        for place in (FRAMES if count > len(FRAMES) else (0,)):
            picture.seek(int(place * count))
            yield ImageOps.exif_transpose(picture).convert("RGB")


def squares(picture: Image.Image) -> Iterator[Image.Image]:
    """The middle square of a picture, or the two ends of a long one; of large ones two closer views as well."""
    side, excess = min(picture.size), max(picture.size) - min(picture.size)
    for offset in ((0, excess) if max(picture.size) >= WIDE * side else (excess // 2,)):
        left, top = (offset, 0) if picture.width > picture.height else (0, offset)
        boxes = [(left, top, side)]
        if side >= CLOSER * SIDE:
            half = side // 2
            boxes += [(left + side // 8, top + side // 8, half), (left + side * 3 // 8, top + side * 3 // 8, half)]
        for x, y, length in boxes:
            yield picture.resize((SIDE, SIDE), Image.LANCZOS, (x, y, x + length, y + length))


def fingerprint(picture: Image.Image) -> np.ndarray:
    """Difference hash: which of neighbouring places is brighter, (8, 8)."""
    grey = np.asarray(picture.convert("L").resize((9, 8), Image.BOX))
    return grey[:, 1:] > grey[:, :-1]


def collect(paths: Iterable[Path], excluded: Iterable[Path]) -> Iterator[tuple[Path, bytes]]:
    """(source, square as WebP) of everything that may be trained on."""
    excluded = list(excluded)
    subjects = {subject(p) for p in excluded}
    seen = [fingerprint(s) for p in excluded for f in frames(p) for s in squares(f)]
    for path in paths:
        if subject(path) in subjects:
            continue
        for frame in frames(path):
            if min(frame.size) < SIDE * 3 // 4:
                continue
            for square in squares(frame):
                mark = fingerprint(square)
                blank = np.asarray(square.convert("L")).std() / 255 < BLANK
                if blank or any((mark != other).sum() <= ALIKE for other in seen):
                    continue
                seen.append(mark)
                stream = io.BytesIO()
                square.save(stream, "WEBP", quality=QUALITY, method=4)
                yield path, stream.getvalue()


def arranged(found: list[tuple[Path, bytes]], held_out: int) -> list[tuple[Path, bytes]]:
    """Shuffled by subject, the held-out ones last.

    Raises:
        ValueError: not more pictures than are to be held out.
    """
    order = sorted({subject(path) for path, _ in found})
    random.Random(SEED).shuffle(order)
    found = sorted(found, key=lambda item: order.index(subject(item[0])))  # stable: frames stay in order
    if len(found) <= held_out:
        raise ValueError(f"{len(found)} pictures were found; more than the {held_out} held-out ones are needed. "
                         "Install the media packages (tools/dev.py setup) or name folders of pictures with --more.")
    border = subject(found[-held_out][0])  # a subject that straddles goes to the held-out side
    training = [item for item in found[:-held_out] if subject(item[0]) != border]
    return training + found[-held_out:]


def pack(target: Path, paths: Iterable[Path], excluded: Iterable[Path], held_out: int = HELD_OUT) -> None:
    """Writes the file."""
    sources, data = zip(*arranged(list(collect(paths, excluded)), held_out), strict=True)
    tensors = {"pictures": torch.frombuffer(bytearray(b"".join(data)), dtype=torch.uint8),
               "lengths": torch.tensor(list(map(len, data)))}
    names = ["/".join(path.parts[-3:]) for path in sources]  # the package, or the last folders
    save_tensors(target, tensors, {"sources": json.dumps(names), "held_out": str(held_out)})


def read(folder: Path) -> Pictures:
    """Raises ValueError where the folder has none."""
    tensors, metadata = read_tensors(folder / NAME)
    held_out = int(metadata["held_out"])
    pictures = [np.array(Image.open(io.BytesIO(data.numpy())).convert("RGB"))
                for data in tensors["pictures"].split(tensors["lengths"].tolist())]
    whole = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).contiguous()
    return Pictures(whole[:-held_out], whole[-held_out:])


def make(options: argparse.Namespace) -> None:
    """The stage: packs what is installed, and the folders named."""
    installed = packaged()
    more = sorted(p for folder in options.more for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES)
    pack(options.folder / NAME, [*installed, *more], [p for p in installed if p.name in KEPT_BACK])
    packed = read(options.folder)
    save_sheet(options.folder / "pictures.jpg", list(packed.training[:SHEET**2, :, ::2, ::2].split(SHEET)))
    say("pictures", f"{len(packed.training)} squares, {len(packed.held_out)} held out; to look at: "
                    f"{options.folder / 'pictures.jpg'}")
