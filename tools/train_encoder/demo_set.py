"""The demo model's own training set, in WikiArt's layout: parquet shards of pictures with an artist and a style.

Here an artist is a style that is known exactly: one seed of ``demo_model.painterly`` on several photographs, one of the
teacher's paintings, or a photograph for itself.  The photographs are those the demo model was trained on.  A further
column holds what the demo model's teacher says of the picture, 100 numbers, which are told as words.
"""
import argparse
import io
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch
from demo_model import painterly, pictures
from demo_model.styles import middle
from demo_model.teacher import Teacher
from PIL import Image
from torch import Tensor
from whole import read_tensors, write_whole

SHARDS = 8
HELD_OUT_FROM = 10**6  # seeds of styles that are never trained on
SAME_STYLE = 3  # photographs that one rendering by rule repaints
QUALITY = 95


def as_jpeg(picture: Tensor) -> bytes:
    """Of (3, H, W) in [0, 1]."""
    stream = io.BytesIO()
    Image.fromarray((picture * 255).round().byte().permute(1, 2, 0).numpy()).save(stream, "JPEG", quality=QUALITY)
    return stream.getvalue()


def row(picture: Tensor, artist: str, style: str, told: Tensor) -> dict:
    return {"image": {"bytes": as_jpeg(picture), "path": None}, "artist": artist, "genre": "", "style": style,
            "told": told.tolist()}


def rendered(teacher: Teacher, photographs: Tensor, seed: int) -> Iterator[dict]:
    """Photographs in one style by rule."""
    generator = torch.Generator().manual_seed(seed)
    chosen = photographs[torch.randint(len(photographs), (SAME_STYLE,), generator=generator)]
    made, technique = painterly.render(middle(chosen), seed)
    for picture, told in zip(made, teacher.measured(made), strict=True):
        yield row(picture, f"rule {seed}", technique, told)


def photographed(teacher: Teacher, photographs: Tensor, number: int) -> Iterator[dict]:
    picture = middle(photographs[number % len(photographs)][None])
    yield row(picture[0], f"photograph {number}", "photograph", teacher.measured(picture)[0])


def painted(path: Path) -> Iterator[dict]:
    """The teacher's paintings of one file of ``demo_model pairs``, each in a style of its own."""
    held = (torch.load(path, weights_only=True) if path.suffix == ".pt"
            else read_tensors(path)[0])
    for i, (picture, told) in enumerate(zip(held["target"], held["style"], strict=True)):
        yield row(picture.float() / 255, f"teacher {path.stem} {i}", "teacher", told)


def make(options: argparse.Namespace) -> None:
    """The stage: shards that are there are kept."""
    import pyarrow as pa
    from pyarrow import parquet

    held, teacher = pictures.read(options.pictures), Teacher()
    photographs = held.held_out if options.held_out else held.training
    pairs = sorted(options.pairs.glob("*[0-9].*")) if options.pairs else []
    options.folder.mkdir(parents=True, exist_ok=True)
    for shard in range(SHARDS):
        target = options.folder / f"train-{shard:05}-of-{SHARDS:05}.parquet"
        if target.exists():
            continue
        seeds = [i + HELD_OUT_FROM * options.held_out for i in range(shard, options.rules, SHARDS)]
        rows = [r for seed in seeds for r in rendered(teacher, photographs, seed)]
        rows += [r for i in range(shard, options.photographs, SHARDS) for r in photographed(teacher, photographs, i)]
        rows += [r for path in pairs[shard::SHARDS] for r in painted(path)]
        table = pa.Table.from_pylist(rows)
        write_whole(target, partial(parquet.write_table, table, row_group_size=64))
        print(f"{target.name}: {len(rows)} pictures", flush=True)
