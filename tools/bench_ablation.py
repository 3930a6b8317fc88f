"""Every default of learning, changed one at a time, at the same number of samples.

Numbers are held-out losses: what each variant reached on each painting and seed, as a share of what the defaults
gained there (100 % = as good as the defaults, more is better).
"""
import argparse
import statistics

import in_process
import torch
from bench_quality import Bench, Kept, Recipe, paintings_of, run, shared_arguments

BATCH = 4


def variants(samples: int) -> dict[str, Recipe]:
    """What is tried. All run ``samples`` samples, and none stops early."""
    def ours(learning_rate: float | None = None, batch: int = BATCH, tokens: int | None = None, objective=None,
             encoder: str = "direct", start: str | None = None, layers: str = "all", whole: bool = False,
             **settings) -> Recipe:
        if learning_rate:
            settings["learning_rate"] = learning_rate
        settings |= {"steps": samples // batch, "batch_size": batch}
        return Recipe(encoder, tokens, start, layers, whole, settings, objective or {})

    return {
        "defaults": ours(),
        "learning rate 0.001": ours(0.001),
        "learning rate 0.0025": ours(0.0025),
        "learning rate 0.01": ours(0.01),
        "learning rate 0.02": ours(0.02),
        "batches of 1": ours(batch=1),
        "batches of 2": ours(batch=2),
        "batches of 8": ours(batch=8),
        "batches of 8, learning rate 0.01": ours(0.01, batch=8),
        "1 token": ours(tokens=1),
        "2 tokens": ours(tokens=2),
        "8 tokens": ours(tokens=8),
        "density cosine_log_snr": ours(objective={"density": "cosine_log_snr"}),
        "weight min_snr": ours(objective={"weight": "min_snr"}),
        "times up to 0.7": ours(objective={"strongest": 0.7}),
        "fresh samples, no bank": ours(objective={"bank": 0, "antithetic": False}),
        "bank of 16": ours(objective={"bank": 16}),
        "bank of 256": ours(objective={"bank": 256}),
        "no antithetic noise": ours(objective={"antithetic": False}),
        "whole painting, no crops": ours(whole=True),
        "start at the mean token": ours(start=""),
        "start at 'oil painting, impasto'": ours(start="oil painting, impasto"),
        "norm kept": ours(keep_norm=True),
        "norm kept, learning rate 0.01": ours(0.01, keep_norm=True),
        "EMA 0.9": ours(ema=0.9),
        "encoder attention": ours(encoder="attention", learning_rate=1e-3),
        "late layers": ours(layers="late"),
    }


HEAD = ("variant", "gain, % of the defaults'", "sd", "worst", "seconds")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    shared_arguments(parser)
    parser.add_argument("--samples", type=int, default=400)
    parser.add_argument("--only", nargs="*", help="names of variants; the defaults always run")


def main(args: argparse.Namespace) -> int:
    in_process.use_comfyui(not torch.cuda.is_available())
    from inst_core import learning
    from inst_core.metrics.tables import markdown

    learning.converged = lambda held_out: False  # every variant uses up its samples
    bench, kept = Bench(args.checkpoint, args.clip_vision, args.pixels), Kept(args.output / "ablation.jsonl")
    tried = {k: v for k, v in variants(args.samples).items() if not args.only or k in {"defaults", *args.only}}
    found = {name: [run(bench, kept, name, recipe, path, seed) for path in paintings_of(args.paintings)[:args.count]
                    for seed in range(args.seeds)] for name, recipe in tried.items()}
    base = [one["checks"][0][2] - one["kept"] for one in found["defaults"]]
    starts = [one["checks"][0][2] for one in found["defaults"]]

    def row(name: str, runs: list[dict]) -> list[str]:
        # All are measured from the defaults' start: a better start is a gain.
        gains = [100 * (start - one["kept"]) / gain for start, one, gain in zip(starts, runs, base, strict=True)]
        return [name, f"{statistics.mean(gains):.1f}", f"{statistics.stdev(gains) if len(gains) > 1 else 0:.1f}",
                f"{min(gains):.1f}", f"{statistics.mean(one['checks'][-1][1] for one in runs):.0f}"]

    print(f"{args.checkpoint or 'small random checkpoint'}, {args.pixels} px, {args.samples} samples, "
          f"{args.count} paintings x {args.seeds} seeds\n")
    print(markdown(HEAD, [row(*item) for item in found.items()]))
    return 0
