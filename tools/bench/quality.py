"""What learning brings: the held-out denoising loss against samples and seconds, for each encoder's recipe.

The held-out loss is taken on the whole painting with noise that is never learned from; paper and released learn from
that very picture, direct and attention from crops of it.  Every finished run is kept: call the same command again after
an interruption, and it goes on where it was.
"""
import argparse
import statistics
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from importlib.util import find_spec
from itertools import product
from pathlib import Path

import evaluate
import torch
from comfyui import in_process
from kept import Kept
from pages import write_between
from tqdm import tqdm

# Drawn, printed and painted pictures that come with ComfyUI's own packages.
PACKAGED = [
    "comfyui_workflow_templates_media_api/templates/api_openai_dall_e_2_t2i-1.webp",
    "comfyui_workflow_templates_media_api/templates/api_bfl_flux_1_kontext_pro_image-1.webp",
    "comfyui_workflow_templates_media_assets_01/templates/image_qwen_image_edit_2511_int8-1.webp",
    "comfyui_workflow_templates_media_assets_01/templates/image_anima_lllite_any_control_to_image-1.webp",
    "comfyui_workflow_templates_media_image/templates/image_anima_base_v1-1.webp",
]


def paintings_of(folder: Path | None) -> list[Path]:
    """The pictures of a folder; without one, five that come with ComfyUI."""
    if folder is not None:
        return list(evaluate.pictures_in(folder).values())
    parts = (name.split("/", 1) for name in PACKAGED)
    return [Path(find_spec(package).submodule_search_locations[0], rest) for package, rest in parts]


class Bench:
    """A checkpoint and a size at which paintings are learned on it."""

    def __init__(self, checkpoint: Path | None, vision: Path, pixels: int):
        import comfy.clip_vision
        import comfy.sd
        import small_families

        options = {}
        if checkpoint is None:
            small_families.write(in_process.MODELS, ("sd1",))
            checkpoint, options = in_process.MODELS / small_families.file_of("sd1"), small_families.TEXT_OPTIONS
        self.pixels = pixels
        with torch.inference_mode():
            self.model, self.clip, self.vae = comfy.sd.load_checkpoint_guess_config(
                str(checkpoint), embedding_directory=[""], te_model_options=options)[:3]
            self.vision = comfy.clip_vision.load(str(vision))

    def look_at(self, path: Path, recipe):
        from inst_core import host

        picture = evaluate.open_picture(path).permute(0, 2, 3, 1)
        return host.learning.look_at(picture, recipe, self.model, self.vae, self.vision, self.pixels)


@torch.inference_mode()
def learn(bench, path: Path, recipe, layers: str = "all", report: Callable = lambda step: None, rank: int = 0):
    """One style of a painting, learned as Learn InST Style does, with an adapter of this rank (0 = none)."""
    from inst_core import host

    encoder = host.learning.make_encoder(bench.clip, recipe)
    encoder = host.adapter.with_adapter(encoder, bench.model, rank, recipe, layers)
    return host.learning.learn(bench.model, bench.clip, encoder, bench.look_at(path, recipe), recipe, "*", layers,
                               report)


# ---- runs that are kept ----

def run(bench: Bench, kept: Kept, name: str, recipe, path: Path, seed: int, layers: str = "all") -> dict:
    """{"checks": [(samples, seconds, held-out loss), ...], "kept": loss, "verdict": ...} of one style."""
    def make() -> dict:
        with tqdm(desc=f"{name}, {path.stem}, seed {seed}", unit=" steps", total=recipe.steps, file=sys.stderr) as bar:
            learned = learn(bench, path, replace(recipe, seed=seed), layers, lambda step: bar.update(1))
        return {"checks": [list(c) for c in learned.checks], "kept": learned.kept, "verdict": learned.verdict}

    return kept.get((name, repr(recipe), layers, path.name, seed, bench.pixels), make)


# ---- the table and the plot ----

HEAD = ("painting", "encoder", "seeds", "start", "kept", "fell by", "steps", "seconds")


def gain_of(starts: list[float], ends: list[float]) -> list[str]:
    """How many runs there are, their held-out losses before and after, and by how much these fell."""
    def spread(values: list[float]) -> str:
        sd = f" ± {statistics.stdev(values):.4f}" if len(values) > 1 else ""
        return f"{statistics.mean(values):.4f}{sd}"

    fell = statistics.mean(1 - end / start for start, end in zip(starts, ends, strict=True))
    return [str(len(starts)), spread(starts), spread(ends), f"{fell:.2%}"]


def table_rows(runs: Mapping[str, Mapping[Path, list[dict]]], batches: Mapping[str, int]) -> Iterator[list[str]]:
    """A row for each painting and encoder. ``batches``: samples a step."""
    for path, name in product(next(iter(runs.values())), runs):
        found = runs[name][path]
        yield [path.stem[:24], name, *gain_of([r["checks"][0][2] for r in found], [r["kept"] for r in found]),
               " ".join(str(r["checks"][-1][0] // batches[name]) for r in found),
               f"{statistics.mean(r['checks'][-1][1] for r in found):.0f}"]


MARKS = "<!-- quality: begin -->", "<!-- quality: end -->"
COLOURS = "tab:red", "tab:blue", "tab:gray", "tab:olive"


def plot(runs: Mapping[str, Mapping[Path, list[dict]]], output: Path) -> None:
    """Held-out loss against samples and against seconds, a line for each run."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(11, 4), sharey=True)
    for column, (axis, label) in enumerate(zip(axes, ("samples", "seconds"), strict=True)):
        for (name, by_path), colour in zip(runs.items(), COLOURS, strict=False):
            for i, one in enumerate(r for found in by_path.values() for r in found):
                at, loss = [c[column] for c in one["checks"]], [c[2] for c in one["checks"]]
                axis.plot(at, loss, color=colour, lw=0.9, alpha=0.7, label=name if i == 0 else None)
        axis.set(xscale="symlog", xlabel=label, ylabel="held-out loss")
    axes[0].legend()
    figure.tight_layout()
    figure.savefig(output, dpi=110)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    shared_arguments(parser)
    parser.add_argument("--encoders", nargs="*", default=["direct", "attention", "paper"],
                        choices=["direct", "attention", "paper", "released"])
    parser.add_argument("--paper-steps", type=int, help="fewer than the 6100 steps of paper and released")
    parser.add_argument("--into", type=Path, metavar="FILE", help="also writes the table between the marks of a page, "
                        f"{' and '.join(MARKS)}")


def shared_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--checkpoint", type=Path, help="an SD 1.x checkpoint; without one a small random one")
    parser.add_argument("--clip-vision", type=Path,
                        default=in_process.MODELS / "clip_vision" / "inst-small-vit-l.safetensors")
    parser.add_argument("--paintings", type=Path, help="a folder; without it five pictures that come with ComfyUI")
    parser.add_argument("--count", type=int, default=5, help="how many of them")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--pixels", type=int, default=64, help="side of the paintings")
    parser.add_argument("--output", type=Path, default=in_process.ROOT / ".dev" / "benchmark")


def main(args: argparse.Namespace) -> int:
    in_process.use_comfyui(not torch.cuda.is_available())
    from inst_core.metrics.tables import markdown
    from inst_core.recipes import FAITHFUL, choose_recipe

    bench, kept = Bench(args.checkpoint, args.clip_vision, args.pixels), Kept(args.output / "quality.jsonl")
    recipes = {name: choose_recipe(name, steps=(args.paper_steps or 0) * (name in FAITHFUL)) for name in args.encoders}
    paintings = paintings_of(args.paintings)[:args.count]
    runs = {name: {path: [run(bench, kept, name, recipe, path, seed) for seed in range(args.seeds)]
                   for path in paintings} for name, recipe in recipes.items()}
    title = f"{args.checkpoint.stem if args.checkpoint else 'small random checkpoint'}, {args.pixels} px"
    table = markdown(HEAD, list(table_rows(runs, {name: recipe.batch for name, recipe in recipes.items()})))
    print(f"{title}\n\n{table}")
    if args.into:
        write_between(args.into, f"{title}\n\n{table}", MARKS)
    plot(runs, args.output / "quality.png")
    print(f"\nplot: {args.output / 'quality.png'}")
    return 0
