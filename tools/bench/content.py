"""What a painting shows, and how much of it comes along: style_mask, content words and the negative branch.

Every painting gets a frame and a figure that are made of another painting, the thing.  A style learned from it should
be as if the thing were not there.  So results are compared with those of the style of the clean painting: how much
closer to the thing they are (Gram distance, 0 to 1) is what leaked.  The content word is ``embedding:NAME`` of the
thing, learned from it alone: words mean nothing to the demo model.  Colours are matched to the clean painting, so that
the style alone makes the difference.  Every style and every result is kept: an interrupted run goes on.
"""
import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from comfyui import in_process
from torch import Tensor

from bench import demo

CLEAN, STAINED, MASKED = "clean painting", "with the thing", "style_mask"
CONTENT, NEGATIVE, BOTH = "content word", "content word as negative", "content word, and as negative"
FRAME, FIGURE = 0.1, 0.4  # shares of the side


def mask_of_thing(side: int) -> Tensor:
    """(1, side, side), 1 where the thing is: a frame, and a figure of an ellipse in the middle."""
    mask, frame = torch.ones(1, side, side), round(side * FRAME)
    mask[:, frame:-frame, frame:-frame] = 0
    y, x = torch.meshgrid(*[torch.linspace(-1, 1, side)] * 2, indexing="ij")
    mask[0, (x / 0.7).square() + y.square() < FIGURE**2] = 1
    return mask


@dataclass(frozen=True)
class Case:
    """A painting, the thing in it, and both together; ``word``: the thing at the size that the demo model likes."""

    clean: object
    thing: object
    stained: object
    word: object


def case_of(paintings: Sequence, index: int, side: int) -> Case:
    from demo_model.quality import Picture

    word = paintings[(index + 1) % len(paintings)]
    clean, thing = (demo.of_side(p, side) for p in (paintings[index], word))
    pixels = torch.where(mask_of_thing(side).unsqueeze(1).bool(), thing.pixels, clean.pixels)
    return Case(clean, thing, Picture(f"{clean.name} with {thing.name}", pixels), word)


class Bench:
    """The demo checkpoint, the pack's nodes, and what is kept of them in ``work``."""

    def __init__(self, options: argparse.Namespace):
        import evaluate
        from demo_model.quality import ALONE, Studio

        from inst_core import metrics

        self.base, self.studio = ALONE, Studio(options, options.work / "styles")
        networks = metrics.load_networks(evaluate.read_weights(options.models / "lpips-alex.safetensors"))
        self.judge, self.folder = metrics.Judge(networks, options.side), options.work / "results"

    def learned(self, painting, **more) -> Path:
        """The file of a painting's style, learned through the node from the word *painting*, with further
        inputs."""
        from inst_pack.inst_core.style import save_style
        from inst_pack.nodes.learn import InSTLearnStyle

        base, studio = self.base, self.studio
        path = studio.folder / f"{'-'.join(more) or 'plain'}-{painting.digest[:16]}.safetensors"
        if not path.exists():
            start = time.perf_counter()
            with torch.inference_mode():
                save_style(InSTLearnStyle.execute(
                    studio.model, studio.clip, studio.vae, painting.pixels.permute(0, 2, 3, 1), base.encoder,
                    base.tokens, base.learning_steps, base.learning_rate, base.batch, base.seed,
                    resolution=painting.pixels.shape[-1], strongest=base.strongest, **more).result[0], path)
            print(f"learned {painting.name} in {time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True)
        return path

    def result(self, row: str, content, case: Case, paint: Callable[[], Tensor]) -> dict[str, float]:
        """{measure: number} of one picture, painted where it is not kept."""
        import evaluate
        from demo_model.quality import digest

        name = f"{content.name}__{case.stained.name}-{digest(content.digest, case.stained.digest)}.png"
        path = self.folder / row.replace(" ", "-") / name
        if not path.exists():
            with torch.no_grad():
                evaluate.write_bytes(path, evaluate.as_png(paint()))
        picture = evaluate.open_picture(path)
        own, other, stained = (self.judge.pair(content.pixels, p.pixels).measure(picture)
                               for p in (case.clean, case.thing, case.stained))
        return {"gram": own["gram"], "thing": other["gram"], "lpips": own["lpips"], "leakage": stained["leakage"]}


def row_makers(bench: Bench, case: Case) -> dict[str, Callable]:
    """{row: content -> picture} of one painting."""
    mask = mask_of_thing(case.clean.pixels.shape[-1])

    def applied(learn: Callable[[], Path], positive: bool = False, negative: bool = False) -> Callable:
        """``positive``: without what the content word names; ``negative``: that as negative, not an empty prompt."""
        from inst_pack.inst_core.style import load_style
        from inst_pack.nodes.style import InSTStyleConditioning

        def paint(content) -> Tensor:
            word = f"embedding:{bench.studio.learn(case.word, bench.base).stem}" if positive or negative else ""
            with torch.inference_mode():
                styled, other = (
                    InSTStyleConditioning.execute(bench.studio.clip, load_style(learn()), "*", 1.0, **more).result[0]
                    for more in ({"content": word if positive else ""},
                                 {"content": word, "part": "content"} if negative else {}))
                return bench.studio.paint(bench.base, content, case.clean, styled, other if negative else None)
        return paint

    stained = partial(bench.learned, case.stained)
    return {CLEAN: applied(partial(bench.learned, case.clean)), STAINED: applied(stained),
            MASKED: applied(partial(bench.learned, case.stained, style_mask=mask)),
            CONTENT: applied(stained, positive=True), NEGATIVE: applied(stained, negative=True),
            BOTH: applied(stained, positive=True, negative=True)}


HEAD = ("", "Gram to the painting", "Gram to the thing", "closer to the thing by", "LPIPS to content", "leakage")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--contents", type=Path, required=True, metavar="FOLDER", help="photographs")
    parser.add_argument("--styles", type=Path, required=True, metavar="FOLDER", help="paintings")
    parser.add_argument("--count", type=int, nargs=2, default=(2, 3), metavar=("PHOTOGRAPHS", "PAINTINGS"))
    parser.add_argument("--side", type=int, default=256, help="pixels of all pictures")
    parser.add_argument("--rows", nargs="*", help="only these")
    parser.add_argument("--checkpoint", type=Path, default=in_process.MODELS / "checkpoints" / "inst-demo.safetensors")
    parser.add_argument("--models", type=Path, default=in_process.MODELS / "style_transfer",
                        help="folder with the weights of AlexNet")
    parser.add_argument("--work", type=Path, default=in_process.ROOT / ".dev" / "content", help="where all is kept")
    parser.add_argument("--comfyui", type=Path, help="a ComfyUI checkout (default: the one of tools/dev.py)")


def main(args: argparse.Namespace) -> int:
    args.device, args.clip_vision = torch.device("cuda" if torch.cuda.is_available() else "cpu"), None
    args.comfyui = args.comfyui or in_process.ROOT / ".dev" / "ComfyUI"
    from demo_model.networks import host

    host(args.device.type == "cpu", args.comfyui)
    from demo_model.quality import pictures_in

    from inst_core.metrics import TRIVIAL
    from inst_core.metrics.tables import markdown

    contents = [demo.of_side(p, args.side) for p in pictures_in(args.contents, args.count[0])]
    paintings = pictures_in(args.styles, None)
    bench, found = Bench(args), {}
    for index in range(min(args.count[1], len(paintings))):
        case = case_of(paintings, index, args.side)
        trivial = {name: lambda content, make=make, case=case: make(content.pixels, case.stained.pixels, None)
                   for name, make in TRIVIAL.items() if name in ("copy of content", "copy of style")}
        for row, paint in (trivial | row_makers(bench, case)).items():
            if args.rows and row not in args.rows:
                continue
            for content in contents:
                measured = bench.result(row, content, case, lambda content=content, paint=paint: paint(content))
                found.setdefault(row, []).append(measured)
        print(f"{index + 1} of {args.count[1]}: {case.stained.name}", file=sys.stderr, flush=True)

    def line(row: str) -> list[str]:
        mean = {key: statistics.mean(one[key] for one in found[row]) for key in found[row][0]}
        closer = statistics.mean(c["thing"] - r["thing"] for c, r in zip(found[CLEAN], found[row], strict=True))
        return [row, *(f"{number:.3f}" for number in (mean["gram"], mean["thing"], closer, mean["lpips"],
                                                      mean["leakage"]))]

    print(f"{len(contents)} photographs x {args.count[1]} paintings, {args.side} px\n")
    print(markdown(HEAD, [line(row) for row in found]))
    return 0
