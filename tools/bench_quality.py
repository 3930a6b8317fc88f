"""What learning brings: the held-out denoising loss against samples and seconds, for the released recipe and ours.

The held-out loss is taken on the whole painting with noise that is never learned from, the same for both recipes; the
released one learns from that very picture, ours from crops of it.  Every finished run is kept: call the same command
again after an interruption, and it goes on where it was.
"""
import argparse
import json
import statistics
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from itertools import product
from pathlib import Path

import in_process
import torch
from PIL import Image
from tqdm import tqdm

RELEASED, OURS = "released", "ours"
RELEASED_STEPS = 6100
PICTURES = {".png", ".jpg", ".jpeg", ".webp"}
# Drawn, printed and painted pictures that come with ComfyUI's own packages.
PACKAGED = [
    "comfyui_workflow_templates_media_api/templates/api_openai_dall_e_2_t2i-1.webp",
    "comfyui_workflow_templates_media_api/templates/api_bfl_flux_1_kontext_pro_image-1.webp",
    "comfyui_workflow_templates_media_assets_01/templates/image_qwen_image_edit_2511_int8-1.webp",
    "comfyui_workflow_templates_media_assets_01/templates/image_anima_lllite_any_control_to_image-1.webp",
    "comfyui_workflow_templates_media_image/templates/image_anima_base_v1-1.webp",
]
SMALL = "small"


def paintings_of(folder: Path | None) -> list[Path]:
    """The pictures of a folder; without one, five that come with ComfyUI."""
    if folder is not None:
        return sorted(p for p in folder.iterdir() if p.suffix.lower() in PICTURES)
    roots = {name: Path(next(iter(find_spec(name).submodule_search_locations))) for name, _ in
             (p.split("/", 1) for p in PACKAGED)}
    return [roots[name] / rest for name, rest in (p.split("/", 1) for p in PACKAGED)]


@dataclass(frozen=True)
class Recipe:
    """How a style is learned; what is not said is Learn InST Style's default.

    Attributes:
        settings: of ``learning.Settings``, besides the seed.
        objective: of ``objective.Objective``.
        whole: learn from the whole painting and its mirror image instead of crops.
    """

    encoder: str = "direct"
    tokens: int | None = None
    start: str | None = None
    layers: str = "all"
    whole: bool = False
    settings: Mapping = field(default_factory=dict)
    objective: Mapping = field(default_factory=dict)


RECIPES = {
    RELEASED: Recipe("released", tokens=1, whole=True,
                     settings={"learning_rate": 1e-4, "batch_size": 1, "steps": RELEASED_STEPS}),
    OURS: Recipe(),
}


class Bench:
    """A checkpoint, a size, and what the paintings look like to it."""

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
        self._features: dict[Path, object] = {}

    @torch.inference_mode()
    def painting(self, path: Path, recipe: Recipe, seed: int):
        from torchvision.transforms.functional import pil_to_tensor

        from inst_core import host, learning, preprocess

        picture = pil_to_tensor(Image.open(path).convert("RGB")).permute(1, 2, 0)[None] / 255
        whole = preprocess.fit_area(picture, self.pixels, min(preprocess.MULTIPLE, self.pixels))
        if recipe.whole:
            square = preprocess.resize(picture, self.pixels, self.pixels)
            views = torch.cat([square, square.flip(2)])
        else:
            generator = torch.Generator().manual_seed(seed)
            views = preprocess.random_crops(picture, self.pixels, learning.CROPS, generator)
        features = None
        if recipe.encoder != "direct":
            if (path, recipe.encoder) not in self._features:
                self._features[path, recipe.encoder] = host.picture_features(self.vision, picture,
                                                                             recipe.encoder == "released")
            features = self._features[path, recipe.encoder]
        latents = (host.encode_latent(self.vae, self.model, x).cpu() for x in (views, whole))
        return learning.Painting(*latents, features)

    def learn(self, path: Path, recipe: Recipe, seed: int, progress=lambda *_: None):
        """One style, learned."""
        from inst_core import host
        from inst_core.encoders import ENCODERS, build_encoder
        from inst_core.learning import START_WORDS, TOKENS, Settings, learn_style
        from inst_core.objective import Objective

        tokens = recipe.tokens or TOKENS
        settings = Settings(**{"learning_rate": ENCODERS[recipe.encoder].learning_rate, **recipe.settings},
                            seed=seed, objective=Objective(**recipe.objective))
        painting = self.painting(path, recipe, seed)
        with host.training_mode():
            words = host.word_vectors(self.clip, START_WORDS if recipe.start is None else recipe.start)
            encoder = build_encoder(recipe.encoder, words, tokens, torch.Generator().manual_seed(seed))
            with host.training_session(self.model, self.clip, "*", tokens, recipe.layers) as session:
                return learn_style(session, encoder, painting, settings, progress)


# ---- runs that are kept ----

class Kept:
    """Finished runs, one line of JSON each."""

    def __init__(self, path: Path):
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        self.found = {tuple(run["key"]): run for run in map(json.loads, lines)}

    def __contains__(self, key: tuple) -> bool:
        return key in self.found

    def get(self, key: tuple, make) -> dict:
        if key not in self.found:
            self.found[key] = {"key": list(key), **make()}
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(self.found[key]) + "\n")
        return self.found[key]


def key_of(bench: Bench, name: str, recipe: Recipe, path: Path, seed: int) -> tuple:
    return name, repr(recipe), path.name, seed, bench.pixels


def run(bench: Bench, kept: Kept, name: str, recipe: Recipe, path: Path, seed: int) -> dict:
    """{"checks": [(samples, seconds, held-out loss), ...], "kept": loss, "verdict": ...} of one style."""
    def make() -> dict:
        with tqdm(desc=f"{name}, {path.stem}, seed {seed}", unit=" samples", file=sys.stderr) as bar:
            learned = bench.learn(path, recipe, seed, lambda step, samples, *_: bar.update(samples - bar.n))
        return {"checks": [list(c) for c in learned.checks], "kept": learned.kept, "verdict": learned.verdict}

    return kept.get(key_of(bench, name, recipe, path, seed), make)


# ---- the table and the plot ----

HEAD = ("painting", "seeds", "start", "released", "ours", "samples", "seconds, released", "seconds, ours",
        "ours as good after")


def spread(values: list[float]) -> str:
    sd = f" ± {statistics.stdev(values):.4f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.4f}{sd}"


def as_good_after(runs: list[dict], goal: float) -> str:
    """When the last of the runs was at its first check as low as ``goal``."""
    firsts = [next((samples for samples, _, loss in run["checks"] if loss <= goal), None) for run in runs]
    reached = [samples for samples in firsts if samples is not None]
    if len(reached) < len(firsts):
        return f"{len(reached)} of {len(firsts)} were"
    return f"{max(reached)} samples"


def table_rows(runs: Mapping[str, Mapping[Path, list[dict]]]) -> Iterator[list[str]]:
    for path, ours in runs[OURS].items():
        released = runs[RELEASED][path]
        if not (ours and released):
            continue
        goal = statistics.mean(r["kept"] for r in released)
        yield [path.stem[:24], f"{len(released)} / {len(ours)}", spread([r["checks"][0][2] for r in ours]),
               spread([r["kept"] for r in released]), spread([r["kept"] for r in ours]),
               " ".join(str(r["checks"][-1][0]) for r in ours),
               f"{statistics.mean(r['checks'][-1][1] for r in released):.0f}",
               f"{statistics.mean(r['checks'][-1][1] for r in ours):.0f}", as_good_after(ours, goal)]


def plot(runs: Mapping[str, Mapping[Path, list[dict]]], output: Path) -> None:
    """Held-out loss against samples and against seconds, a line for each run."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(11, 4), sharey=True)
    for axis, (column, label) in zip(axes, ((0, "samples"), (1, "seconds")), strict=True):
        for (name, by_path), colour in zip(runs.items(), ("tab:gray", "tab:red"), strict=True):
            for i, one in enumerate(r for found in by_path.values() for r in found):
                at, loss = [max(c[column], 1e-1) for c in one["checks"]], [c[2] for c in one["checks"]]
                axis.plot(at, loss, color=colour, lw=0.9, alpha=0.7, label=name if i == 0 else None)
        axis.set(xscale="symlog" if column == 0 else "log", xlabel=label)
    axes[0].set_ylabel("held-out loss")
    axes[0].legend()
    figure.tight_layout()
    figure.savefig(output, dpi=110)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    shared_arguments(parser)
    parser.add_argument("--released-steps", type=int, default=RELEASED_STEPS)
    parser.add_argument("--released-seeds", type=int, help="fewer seeds for the long recipe")
    parser.add_argument("--finished", action="store_true", help="only show the runs that are finished")


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

    bench, kept = Bench(args.checkpoint, args.clip_vision, args.pixels), Kept(args.output / "quality.jsonl")
    recipes = dict(RECIPES)
    recipes[RELEASED] = Recipe("released", 1, whole=True, settings={**RECIPES[RELEASED].settings,
                                                                     "steps": args.released_steps})
    seeds = {RELEASED: args.released_seeds or args.seeds, OURS: args.seeds}
    paintings = paintings_of(args.paintings)[:args.count]
    runs = {name: {path: [] for path in paintings} for name in recipes}
    # All paintings with one seed come first: when this is interrupted, there is something of each.
    for seed, (name, recipe), path in product(range(args.seeds), recipes.items(), paintings):
        missing = key_of(bench, name, recipe, path, seed) not in kept
        if seed < seeds[name] and not (missing and args.finished):
            runs[name][path].append(run(bench, kept, name, recipe, path, seed))
    print(f"{args.checkpoint or 'small random checkpoint'}, {args.pixels} px, released: {args.released_steps} steps\n")
    print(markdown(HEAD, list(table_rows(runs))))
    plot(runs, args.output / "quality.png")
    print(f"\nplot: {args.output / 'quality.png'}")
    return 0
