"""What training reads: features, latents and captions of all pictures, computed once.

One parquet file for each shard of the source; those that are there are kept, so several processes and restarts share
the work.  Trained on from memory-mapped Arrow, which costs no memory.
"""
import argparse
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from whole import write_whole

from . import sources
from .sources import Example

VIEWS = 2  # of a picture that features are taken of: the whole, and random parts of it
LEVELS = 8  # samples in a row have noise levels in as many equal parts of all levels
PART = 0.5, 0.9  # of the short side


def as_image(picture: Image.Image) -> Tensor:
    """(1, H, W, 3) in [0, 1]."""
    return torch.from_numpy(np.asarray(picture).copy())[None].float() / 255


def views(image: Tensor, generator: torch.Generator) -> Iterator[Tensor]:
    """The whole, and VIEWS - 1 square parts of it at random places."""
    yield image
    height, width = image.shape[1:3]
    for share, y, x in torch.rand(VIEWS - 1, 3, generator=generator).tolist():
        side = round(min(height, width) * (PART[0] + (PART[1] - PART[0]) * share))
        top, left = round(y * (height - side)), round(x * (width - side))
        yield image[:, top:top + side, left:left + side]


def square(image: Tensor, side: int) -> Tensor:
    """The middle, (1, side, side, 3): latents of one size go through the denoiser together."""
    from inst_core.preprocess import resize

    height, width = image.shape[1:3]
    short = min(height, width)
    top, left = (height - short) // 2, (width - short) // 2
    return resize(image[:, top:top + short, left:left + short], side, side)


def stored(tensor: Tensor) -> bytes:
    return tensor.contiguous().half().numpy().tobytes()


def row_of(example: Example, number: int, engine, look, side: int) -> dict:
    """What is kept of a picture."""
    image = as_image(example.picture)
    seen = torch.cat([look(view) for view in views(image, torch.Generator().manual_seed(number))])
    latent = engine.encode(square(image, side))[0].cpu()
    told = stored(engine.told(torch.tensor([example.told]))) if example.told else b""
    return {"group": example.group, "caption": example.caption, "context": example.context, "seen": stored(seen),
            "latent": stored(latent), "shape": list(latent.shape), "words": told}


def examples(options: argparse.Namespace, file: Path, skipped: Counter) -> Iterator[Example]:
    if file.suffix == ".parquet":
        return sources.wikiart([str(file)], at_least=2 * options.side, skipped=skipped)
    if file.suffix == ".json":
        return sources.sharegpt4v(file, options.pictures or file.parent, at_least=2 * options.side, skipped=skipped)
    return sources.folder(file, at_least=2 * options.side, skipped=skipped)


def make(options: argparse.Namespace, engine, look, rank: int, world: int) -> Counter:
    """Keeps what training needs of the sources that are this process's share; returns what was left out, and why."""
    import pyarrow as pa
    from pyarrow import parquet

    files = sorted(f for source in options.sources
                   for f in (sorted(source.glob("*.parquet")) or [source] if source.is_dir() else [source]))
    if not files:
        raise ValueError("Nothing to learn from: name parquet files, ShareGPT4V's JSON or folders of pictures.")
    folder, skipped = options.folder / "cache", Counter()
    folder.mkdir(parents=True, exist_ok=True)
    for number, file in list(enumerate(files))[rank::world]:
        target = folder / f"{number:05}-{file.stem}.parquet"
        if target.exists():
            continue
        rows = [row_of(example, i, engine, look, options.side)
                for i, example in enumerate(examples(options, file, skipped))]
        if rows:
            table = pa.Table.from_pylist(rows)
            write_whole(target, partial(parquet.write_table, table))
        print(f"[cache] {file.name}: {len(rows)} pictures; left out so far: {dict(skipped)}", flush=True)
    return skipped


class Cached(torch.utils.data.Dataset):
    """All that was kept.

    Item (n, i) is the n-th sample of the training: picture i to be painted, told by another of the same artist and
    style where there is one.  All that is random in it depends on the seed and n alone, not on the process.
    """

    def __init__(self, folder: Path, seed: int, same: bool = False):
        """
        Args:
            same: pictures are told by themselves.
        """
        from datasets import Dataset

        files = sorted(map(str, (folder / "cache").glob("*.parquet")))
        if not files:
            raise ValueError(f"{folder} holds no cache. Run the stage 'cache' first.")
        self.rows, self.seed, self.same = Dataset.from_parquet(files, cache_dir=str(folder / "arrow")), seed, same
        self.groups: dict[str, list[int]] = {}
        self.group_of = list(self.rows["group"])
        for i, name in enumerate(self.group_of):
            self.groups.setdefault(name or f"alone {i}", []).append(i)

    def __len__(self) -> int:
        return len(self.rows)

    def features(self, i: int) -> Tensor:
        """(VIEWS, F)"""
        return as_tensor(self.rows[i]["seen"]).view(VIEWS, -1)

    def told(self) -> list[tuple[Tensor, Tensor]]:
        """Features (VIEWS, F) and words (VIEWS, width) of every picture whose words are known."""
        known = [i for i, words in enumerate(self.rows["words"]) if words]
        return [(self.features(i), as_tensor(self.rows[i]["words"]).expand(VIEWS, -1)) for i in known]

    def __getitem__(self, item: tuple[int, int]) -> dict:
        number, i = item
        generator = torch.Generator().manual_seed(1_000_003 * self.seed + number)
        row = self.rows[i]
        others = [] if self.same else [j for j in self.groups[row["group"] or f"alone {i}"] if j != i]
        told_by = others[torch.randint(len(others), (), generator=generator)] if others else i
        view, here = torch.randint(VIEWS, (2,), generator=generator).tolist()
        latent = as_tensor(row["latent"]).view(row["shape"])
        words = as_tensor(row["words"])
        return {"number": number, "row": i, "seen": self.features(told_by)[view],
                "own": as_tensor(row["seen"]).view(VIEWS, -1)[here if not self.same else view], "latent": latent,
                "noise": torch.randn(latent.shape, generator=generator),
                "time": (number % LEVELS + torch.rand((), generator=generator)) / LEVELS,
                "place": torch.rand(2, generator=generator), "words": words, "known": float(len(words) > 0),
                "caption": row["caption"], "context": row["context"]}


def as_tensor(data: bytes) -> Tensor:
    return torch.from_numpy(np.frombuffer(data, np.float16).astype(np.float32))


class Order(torch.utils.data.Sampler):
    """The samples of one process, for ever: number n of the training is in process n mod world, whatever their number
    is, so all processes together see the same pictures in every step as one alone."""

    def __init__(self, count: int, seed: int, rank: int, world: int):
        self.count, self.seed, self.rank, self.world = count, seed, rank, world

    def __iter__(self) -> Iterator[tuple[int, int]]:
        number, epoch, order = self.rank, -1, []
        while True:
            if number // self.count != epoch:
                epoch = number // self.count
                order = torch.randperm(self.count, generator=torch.Generator().manual_seed(self.seed + epoch)).tolist()
            yield number, order[number % self.count]
            number += self.world
