"""What keeps the layout of a photograph, and what it costs in style: InST Sample's keep_structure beside lower repaint
strengths, on the demo checkpoint, with styles learned from paintings.

The last column compares at equal style: the least self-similarity distance that lowering the repaint strength has at
the same Gram distance or less, and how far below it this row lies.
"""
import argparse
from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np
import torch

from bench import demo

STRENGTHS = 0.2, 0.4, 0.6, 0.8, 1.0
KEPT = [(strength, keep, way) for keep, way in ((0.5, "coarse"), (1.0, "coarse"), (1.0, "queries"), (1.0, "both"))
        for strength in (0.6, 0.8, 1.0)]
HEAD = ("repaint strength", "keep_structure", "by", "Gram to style", "self-similarity", "edge correlation",
        "LPIPS to content", "palette, Lab", "pictures through the network", "seconds of one core",
        "below lower strength")


def curve(points: Sequence[tuple[float, float]]) -> np.ndarray:
    """(n, 2) on the straight lines between (Gram distance, self-similarity distance) of neighbouring strengths."""
    return np.concatenate([np.linspace(a, b, 100) for a, b in pairwise(points)])


def below(row: Mapping[str, float], lowering: np.ndarray) -> str:
    """By how much a row's self-similarity distance lies under that of lower strengths with as much style."""
    as_much = lowering[lowering[:, 0] <= row["gram"] + 1e-9, 1]
    if not len(as_much):
        return "no strength has so much style"
    return f"{100 * (1 - row['self_similarity'] / as_much.min()):.1f} %"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    demo.add_arguments(parser, styles=2)
    parser.add_argument("--steps", type=int, default=8, help="sampling steps (8)")
    parser.add_argument("--style", choices=["own", "told"], default="own",
                        help="own: learned from the painting; told: words that the demo model's teacher finds "
                             "(dependency group train)")


def main(args: argparse.Namespace) -> int:
    bench = demo.Bench(args)
    from inst_core.metrics.tables import markdown

    with torch.inference_mode():
        positives = {s.digest: bench.conditioning(s, style=args.style) for s in bench.styles}

    def run(strength: float, keep: float, way: str) -> dict[str, float]:
        model, calls = demo.counted(bench.studio.model)
        found = bench.measure(lambda content, style: bench.repainted(
            content, style, positives[style.digest], model, args.steps, strength, keep_structure=keep,
            keep_structure_by=way))
        found["pictures"] = sum(calls) / len(bench.contents) / len(bench.styles)
        demo.say(strength, keep, way, {k: round(v, 4) for k, v in found.items()})
        return found

    lowered = {strength: run(strength, 0.0, "coarse") for strength in STRENGTHS}
    lowering = curve([(row["gram"], row["self_similarity"]) for row in lowered.values()])
    rows = [(strength, 0.0, "", row, "") for strength, row in lowered.items()]
    for strength, keep, way in KEPT:
        row = run(strength, keep, way)
        rows.append((strength, keep, way, row, below(row, lowering)))
    print(f"\n{bench.heading()}; {args.steps} steps; style {args.style}\n")
    print(markdown(HEAD, [[
        f"{strength:g}", f"{keep:g}", way, f"{row['gram']:.3f}", f"{row['self_similarity']:.4f}",
        f"{row['edge_correlation']:.3f}", f"{row['lpips']:.3f}", f"{row['palette_lab']:.2f}", f"{row['pictures']:.0f}",
        f"{row['seconds']:.1f}", said] for strength, keep, way, row, said in rows]))
    return 0
