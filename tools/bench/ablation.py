"""Every default of learning, changed one at a time, at the same number of samples.

Numbers are held-out losses: what each variant reached on each painting and seed, as a share of what the defaults
gained there (100 % = as good as the defaults, more is better).
"""
import argparse
import statistics

import torch
from comfyui import in_process
from kept import Kept

from bench.quality import Bench, paintings_of, run, shared_arguments


def variants(samples: int) -> dict[str, tuple]:
    """{name: (Recipe, layers)}. All run ``samples`` samples, and none stops early."""
    from inst_core.recipes import choose_recipe

    def ours(rate: float = 1.0, batch: int = 0, encoder: str = "direct", layers: str = "all", **others) -> tuple:
        """``rate``: times the encoder's own."""
        default = choose_recipe(encoder)
        batch = batch or default.batch
        return choose_recipe(encoder, steps=samples // batch, batch=batch, rate=rate * default.rate, patience=None,
                             **others), layers

    return {
        "defaults": ours(),
        "a quarter of the learning rate": ours(0.25),
        "half the learning rate": ours(0.5),
        "twice the learning rate": ours(2),
        "four times the learning rate": ours(4),
        "constant learning rate": ours(decay=False),
        "half the learning rate, constant": ours(0.5, decay=False),
        "batches of 1": ours(batch=1),
        "batches of 2": ours(batch=2),
        "batches of 8": ours(batch=8),
        "batches of 8, twice the learning rate": ours(2, batch=8),
        "1 token": ours(tokens=1),
        "2 tokens": ours(tokens=2),
        "8 tokens": ours(tokens=8),
        "times up to 0.7": ours(strongest=0.7),
        "fresh samples, no bank": ours(bank=0),
        "bank of 16": ours(bank=16),
        "bank of 256": ours(bank=256),
        "whole painting, no crops": ours(views=0),
        "start at the mean token": ours(start=""),
        "start at 'oil painting, impasto'": ours(start="oil painting, impasto"),
        "encoder attention": ours(encoder="attention"),
        "late layers": ours(layers="late"),
    }


HEAD = ("variant", "gain, % of the defaults'", "sd", "worst", "seconds")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    shared_arguments(parser)
    parser.add_argument("--samples", type=int, default=400)
    parser.add_argument("--only", nargs="*", help="names of variants; the defaults always run")


def main(args: argparse.Namespace) -> int:
    in_process.use_comfyui(not torch.cuda.is_available())
    from inst_core.metrics.tables import markdown

    bench, kept = Bench(args.checkpoint, args.clip_vision, args.pixels), Kept(args.output / "ablation.jsonl")
    tried = {k: v for k, v in variants(args.samples).items() if not args.only or k in {"defaults", *args.only}}
    found = {name: [run(bench, kept, name, recipe, path, seed, layers)
                    for path in paintings_of(args.paintings)[:args.count] for seed in range(args.seeds)]
             for name, (recipe, layers) in tried.items()}

    def row(name: str, runs: list[dict]) -> list[str]:
        # All are measured from the defaults' start: a better start is a gain.
        starts = [one["checks"][0][2] for one in found["defaults"]]
        gains = [100 * (start - one["kept"]) / (start - default["kept"])
                 for start, one, default in zip(starts, runs, found["defaults"], strict=True)]
        return [name, f"{statistics.mean(gains):.1f}", f"{statistics.stdev(gains) if len(gains) > 1 else 0:.1f}",
                f"{min(gains):.1f}", f"{statistics.mean(one['checks'][-1][1] for one in runs):.0f}"]

    print(f"{args.checkpoint or 'small random checkpoint'}, {args.pixels} px, {args.samples} samples, "
          f"{args.count} paintings x {args.seeds} seeds\n")
    print(markdown(HEAD, [row(*item) for item in found.items()]))
    return 0
