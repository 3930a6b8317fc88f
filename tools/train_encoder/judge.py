"""What an encoder holds of a style, and what of a picture: held-out styles, each on several photographs."""
import argparse

import torch
from torch import Tensor
from torch.nn import functional as F

from inst_core import guessing
from inst_core.metrics.tables import markdown

from .cache import Cached

HEAD = "encoder", "within a style", "between styles", "ratio", "retrieval", "distance to told words"


def distances(words: Tensor, groups: Tensor) -> tuple[float, float, float]:
    """(mean distance within a style, between styles, share of pictures whose nearest other is of their style).

    Args:
        words: (n, d); groups: (n,).
    """
    apart = torch.cdist(words.double(), words.double())
    same = groups[:, None] == groups[None]
    alone = torch.eye(len(words), dtype=torch.bool)
    nearest = apart.masked_fill(alone, torch.inf).argmin(1)
    return (apart[same & ~alone].mean().item(), apart[~same].mean().item(),
            (groups[nearest] == groups).double().mean().item())


@torch.no_grad()
def judge(options: argparse.Namespace) -> None:
    """Prints a table of distances in the starting word's length; FOLDER holds the cache of ``demo-set --held-out``."""
    cached = Cached(options.folder, 0)
    seen = torch.stack([cached.features(i)[0] for i in range(len(cached))])
    told = torch.stack([cached[0, i]["words"] for i in range(len(cached))])
    names = list(cached.groups)
    groups = torch.tensor([names.index(name) for name in cached.group_of])
    rows = []
    for path in options.encoders:
        guesser = guessing.load(path)
        words = {k: v.mean(1) / guesser.start[k].norm() for k, v in guesser(seen).items()}
        within, between, found = distances(torch.cat([*words.values()], 1), groups)
        apart = (F.normalize(words["clip_l"], dim=-1) - F.normalize(told, dim=-1)).norm(dim=-1).mean()
        rows.append([path.stem, f"{within:.3f}", f"{between:.3f}", f"{within / between:.3f}", f"{100 * found:.0f} %",
                     f"{apart:.3f}"])
    print(markdown(HEAD, rows))
