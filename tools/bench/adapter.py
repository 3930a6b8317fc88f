"""What an adapter brings: the held-out loss of pseudo-words alone and of pseudo-words with an adapter, learned from the
same painting with the same steps and seed.

On a checkpoint of one's own, such as the demo model, or on a small random model of a family, which has no VAE: its
latent is the picture, its colours mixed by a fixed random matrix.
"""
import argparse
import sys
from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path

import evaluate
import torch
from comfyui import in_process

from bench import quality

RANKS = 0, 8
FAMILY = "z-image"


class Shrunk:
    """A small random model of a family at which latents of paintings are learned."""

    def __init__(self, family: str, pixels: int):
        import shrunk_families

        with torch.inference_mode():
            self.model, self.clip = shrunk_families.open_shrunk(in_process.MODELS / "shrunk", family, [""])
        self.side = pixels // 8

    def look_at(self, path: Path, recipe):
        from inst_core.learning import Painting

        latent_format = self.model.get_model_object("latent_format")
        mix = torch.randn(latent_format.latent_channels, 3, generator=torch.Generator().manual_seed(0))
        small = torch.nn.functional.interpolate(evaluate.open_picture(path), (self.side, self.side), mode="bilinear",
                                                antialias=True)
        latent = torch.einsum("cp,bphw->bchw", mix, small * 2 - 1)
        latent = latent.view(*latent.shape[:2], *[1] * (latent_format.latent_dimensions - 2), *latent.shape[2:])
        return Painting(torch.cat([latent, latent.flip(-1)]), latent)


HEAD = ("painting", "adapter_rank", "seeds", "start", "kept", "fell by", "steps", "adapter, KiB")


def table_rows(bench, args: argparse.Namespace, recipe) -> Iterator[list[str]]:
    for path, rank in product(quality.paintings_of(args.paintings)[:args.count], args.ranks):
        found = [quality.learn(bench, path, replace(recipe, seed=seed), rank=rank) for seed in range(args.seeds)]
        print(f"[benchmark] {path.stem}, rank {rank}: {'; '.join(run.verdict for run in found)}", file=sys.stderr)
        size = sum(tensor.nbytes for tensor in found[0].adapter.values())
        yield [path.stem[:24], str(rank),
               *quality.gain_of([run.checks[0].loss for run in found], [run.kept for run in found]),
               " ".join(str(len(run.losses)) for run in found), f"{size / 1024:.0f}"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--checkpoint", type=Path, help="an SD 1.x checkpoint; without one a small random model")
    parser.add_argument("--family", default=FAMILY, help=f"of the small random model (tests/models/shrunk_families.py; "
                        f"{FAMILY})")
    parser.add_argument("--paintings", type=Path, help="a folder; without it pictures that come with ComfyUI")
    parser.add_argument("--count", type=int, default=2, help="how many of them")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--ranks", type=int, nargs="*", default=RANKS)
    parser.add_argument("--pixels", type=int, default=128, help="side of the paintings")


def main(args: argparse.Namespace) -> int:
    in_process.use_comfyui(not torch.cuda.is_available())
    from inst_core.metrics.tables import markdown
    from inst_core.recipes import choose_recipe

    vision = in_process.MODELS / "clip_vision" / "inst-small-vit-l.safetensors"
    bench = (quality.Bench(args.checkpoint, vision, args.pixels) if args.checkpoint
             else Shrunk(args.family, args.pixels))
    rows = list(table_rows(bench, args, choose_recipe("direct")))
    print(f"{args.checkpoint.stem if args.checkpoint else f'small random {args.family}'}, {args.pixels} px\n\n"
          f"{markdown(HEAD, rows)}")
    return 0
