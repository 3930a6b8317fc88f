"""What a painting shows, and how much of it comes along: style_mask, content words and the negative branch.

Every painting gets a frame and a figure that are made of another painting, the thing.  A style learned from it should
be as if the thing were not there.  So results are compared with those of the style of the clean painting: how much
closer to the thing they are (Gram distance, 0 to 1) is what leaked.  The content word is ``embedding:NAME`` of the
thing, learned from it alone: words mean nothing to the demo model.  Colours are matched to the clean painting, so that
the style alone makes the difference.  Every style and every result is kept: an interrupted run goes on.
"""
import argparse
import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import evaluate
import torch
from comfyui import in_process
from demo_model.quality import ALONE, Picture, digest
from torch import Tensor

from bench import demo

CLEAN = "clean painting"
FRAME, FIGURE = 0.1, 0.4  # shares of the side
TRIVIAL = {"copy of content", "copy of style"}
Paint = Callable[[Picture], Tensor]


def mask_of_thing(side: int) -> Tensor:
    """(1, side, side), 1 where the thing is: a frame, and a figure of an ellipse in the middle."""
    mask, frame = torch.ones(1, side, side), round(side * FRAME)
    mask[:, frame:-frame, frame:-frame] = 0
    y, x = torch.meshgrid(*[torch.linspace(-1, 1, side)] * 2, indexing="ij")
    mask[0, (x / 0.7).square() + y.square() < FIGURE**2] = 1
    return mask


class Case(NamedTuple):
    """A painting, the thing in it, and both together."""

    clean: Picture
    thing: Picture
    stained: Picture


def case_of(clean: Picture, thing: Picture) -> Case:
    pixels = torch.where(mask_of_thing(clean.pixels.shape[-1]).unsqueeze(1).bool(), thing.pixels, clean.pixels)
    return Case(clean, thing, Picture(f"{clean.name} with {thing.name}", pixels))


@torch.inference_mode()
def learned(bench: demo.Bench, painting: Picture, **more) -> Path:
    """The file of a painting's style, learned through the node from the word *painting*, with further inputs."""
    from inst_pack.inst_core.style import save_style
    from inst_pack.nodes.learn import InSTLearnStyle

    studio = bench.studio
    path = studio.folder / f"{'-'.join(more) or 'plain'}-{painting.digest[:16]}.safetensors"
    if not path.exists():
        save_style(InSTLearnStyle.execute(
            studio.model, studio.clip, studio.vae, painting.pixels.permute(0, 2, 3, 1), ALONE.encoder, ALONE.tokens,
            ALONE.learning_steps, ALONE.learning_rate, ALONE.batch, ALONE.seed,
            resolution=painting.pixels.shape[-1], strongest=ALONE.strongest, **more).result[0], path)
        demo.say(f"learned {painting.name}")
    return path


def row_makers(bench: demo.Bench, case: Case) -> dict[str, Paint]:
    """{row: what paints a photograph} of one painting."""
    @torch.inference_mode()
    def paint(content: Picture, painting: Picture = case.stained, positive: bool = False, negative: bool = False,
              **learning) -> Tensor:
        """``positive``: without what the content word names; ``negative``: that as negative, not an empty prompt."""
        from inst_pack.inst_core.style import load_style
        from inst_pack.nodes.style import InSTStyleConditioning

        word = f"embedding:{bench.learned(case.thing, ALONE).stem}" if positive or negative else ""
        apply = partial(InSTStyleConditioning.execute, bench.studio.clip,
                        load_style(learned(bench, painting, **learning)), "*", 1.0)
        styled = apply(content=word if positive else "").result[0]
        other = apply(content=word, part="content").result[0] if negative else None
        return bench.repainted(content, case.clean, styled, negative=other)

    return {CLEAN: partial(paint, painting=case.clean), "with the thing": paint,
            "style_mask": partial(paint, style_mask=mask_of_thing(case.clean.pixels.shape[-1])),
            "content word": partial(paint, positive=True), "content word as negative": partial(paint, negative=True),
            "content word, and as negative": partial(paint, positive=True, negative=True)}


def measured(bench: demo.Bench, path: Path, content: Picture, case: Case, paint: Paint) -> dict[str, float]:
    """{measure: number} of one picture, painted where ``path`` is not there yet."""
    if not path.exists():
        evaluate.write_bytes(path, evaluate.as_png(paint(content)))
    picture = evaluate.open_picture(path)
    own, other, stained = (bench.judge.pair(content.pixels, p.pixels).measure(picture) for p in case)
    return {"gram": own["gram"], "thing": other["gram"], "lpips": own["lpips"], "leakage": stained["leakage"]}


HEAD = ("", "Gram to the painting", "Gram to the thing", "closer to the thing by", "LPIPS to content", "leakage")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    demo.add_arguments(parser, contents=2, styles=3, pixels=256)
    parser.add_argument("--side", type=int, dest="pixels", help="the same as --pixels")
    parser.set_defaults(work=in_process.ROOT / ".dev" / "content")


def main(args: argparse.Namespace) -> int:
    photographs, paintings = args.count
    args.count = photographs, None
    bench, found = demo.Bench(args), {}
    from inst_core import metrics
    from inst_core.metrics.tables import markdown

    styles = bench.styles
    for clean, thing in list(zip(styles, styles[1:] + styles[:1], strict=True))[:paintings]:
        case = case_of(clean, thing)
        trivial = {name: lambda content, make=make, case=case: make(content.pixels, case.stained.pixels, None)
                   for name, make in metrics.TRIVIAL.items() if name in TRIVIAL}
        for row, paint in (trivial | row_makers(bench, case)).items():
            for content in bench.contents:
                name = f"{content.name}__{case.stained.name}-{digest(content.digest, case.stained.digest)}.png"
                path = args.work / "results" / row.replace(" ", "-") / name
                found.setdefault(row, []).append(measured(bench, path, content, case, paint))
        demo.say(f"done: {case.stained.name}")

    def line(row: str) -> list[str]:
        mean = {key: statistics.mean(one[key] for one in found[row]) for key in found[row][0]}
        closer = statistics.mean(c["thing"] - r["thing"] for c, r in zip(found[CLEAN], found[row], strict=True))
        return [row, *(f"{number:.3f}" for number in (mean["gram"], mean["thing"], closer, mean["lpips"],
                                                      mean["leakage"]))]

    print(f"{len(bench.contents)} photographs x {paintings} paintings, {args.pixels} px\n")
    print(markdown(HEAD, [line(row) for row in found]))
    return 0
