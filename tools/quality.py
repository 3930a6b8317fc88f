#!/usr/bin/env python3
"""How good the style transfer of a small checkpoint is, and what each part of InST brings to it.

    .dev/venv/bin/python tools/quality.py --checkpoint FILE --contents FOLDER --styles FOLDER --output FOLDER

Learns every style and repaints every content through the pack's own nodes in the real host, in this process; once as it
is meant, and once for each change (``VARIANTS``: encoder, inversion, strength, colour matching, guidance, no style,
wrong style, ``embedding:``).  Everything is measured as ``evaluate.py`` measures it, beside the trivial results.
A style is learned once for each encoder and kept; finished pairs are kept too: the same command goes on.

OUTPUT/quality.md    the table, and whether the demo's promises hold       OUTPUT/metrics.csv   every pair
OUTPUT/sheet.jpg     content | style | each variant                        OUTPUT/styles        what was learned
"""
import argparse
import hashlib
import sys
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[1]
MODELS = ROOT / ".dev" / "home" / "models"
CONTENT_COPY, STYLE_COPY, COLOURS, UNRELATED = "copy of content", "copy of style", "colours only", "unrelated picture"
NEAREST_WANTED, GRAM_WANTED = 0.8, 2.0
CLEARLY = 0.9  # times another number
ALARM = 0.5  # of the leakage that a copy of the painting has


@dataclass(frozen=True)
class Variant:
    """One way to run InST.

    Attributes:
        style: "own", the style of the pair; "wrong", that of the next painting; "none", an empty prompt.
        invert: stochastic inversion; else the start is the photograph plus plain noise (SDEdit).
        color: method of Match Latent Color before, or "none".
        reuse: the style comes as ``embedding:name`` in a stock prompt.
    """

    encoder: str = "direct"
    tokens: int = 4
    learn_steps: int = 100
    batch: int = 4
    learning_rate: float = 0.0
    resolution: int = 256
    strength: float = 0.7
    invert: bool = True
    color: str = "adain"
    cfg: float = 3.0
    steps: int = 20
    style: str = "own"
    reuse: bool = False
    seed: int = 0


VARIANTS: dict[str, dict[str, object]] = {
    "InST": {},
    "embedding:": {"reuse": True},
    "no style": {"style": "none"},
    "wrong style": {"style": "wrong"},
    "no inversion": {"invert": False},
    "no colour matching": {"color": "none"},
    "colour mk": {"color": "mk"},
    "strength 0.5": {"strength": 0.5},
    "strength 0.6": {"strength": 0.6},
    "strength 0.8": {"strength": 0.8},
    "cfg 1": {"cfg": 1.0},
    "cfg 5": {"cfg": 5.0},
    "1 token": {"tokens": 1},
    "encoder attention": {"encoder": "attention"},
    "encoder paper": {"encoder": "paper", "tokens": 1},
}
NEED_VISION = ("attention", "paper", "released")


def pack() -> types.ModuleType:
    """The pack under a name of its own: its ``nodes`` is also the name of a module of the host."""
    module = sys.modules.setdefault("inst_pack", types.ModuleType("inst_pack"))
    module.__path__ = [str(ROOT)]
    return module


class Studio:
    """The loaded checkpoint and the pack's nodes."""

    def __init__(self, checkpoint: Path, vision: Path | None, styles: Path, on_cpu: bool, comfyui: Path):
        sys.path.insert(0, str(comfyui))
        from comfy.cli_args import args

        args.cpu = on_cpu
        import comfy.sd
        import folder_paths

        pack()
        from inst_pack.inst_core import host

        folder_paths.output_directory = str(styles)
        folder_paths.models_dir = str(styles / "models")
        host.register_folders()
        self.folder = styles
        with torch.inference_mode():
            self.model, self.clip, self.vae = comfy.sd.load_checkpoint_guess_config(
                str(checkpoint), embedding_directory=[str(styles)])[:3]
            self.vision = comfy.clip_vision.load(str(vision)) if vision else None

    def learned(self, painting: Tensor, variant: Variant):
        """The style of a painting; learned once for the same settings."""
        from inst_pack.inst_core.style import load_style, save_style
        from inst_pack.nodes.learn import InSTLearnStyle

        settings = {k: getattr(variant, k) for k in ("encoder", "tokens", "learn_steps", "batch", "learning_rate",
                                                     "resolution")}
        pixels = hashlib.sha256(painting.numpy().tobytes()).hexdigest()
        name = hashlib.sha256(f"{pixels} {settings}".encode()).hexdigest()[:16]
        path = self.folder / f"{name}.safetensors"
        if not path.exists():
            style = InSTLearnStyle.execute(
                self.model, self.clip, self.vae, painting.permute(0, 2, 3, 1), variant.encoder, variant.tokens,
                variant.learn_steps, variant.learning_rate, variant.batch, 0, clip_vision=self.vision,
                resolution=variant.resolution, name=f"learned-{name}").result[0]
            save_style(style, path)
        return load_style(path), name

    @torch.inference_mode()
    def paint(self, variant: Variant, content: Tensor, painting: Tensor) -> Tensor:
        """(1, 3, H, W) in [0, 1] from (1, 3, H, W) each."""
        from inst_pack.nodes.color import InSTMatchColor
        from inst_pack.nodes.inversion import InSTSample
        from inst_pack.nodes.style import InSTStyleConditioning

        from nodes import CLIPTextEncode

        negative = CLIPTextEncode().encode(self.clip, "")[0]
        if variant.style == "none":
            positive = negative
        else:
            style, name = self.learned(painting, variant)
            positive = (CLIPTextEncode().encode(self.clip, f"embedding:{name}")[0] if variant.reuse
                        else InSTStyleConditioning.execute(self.clip, style, "*", 1.0).result[0])
        latent, other = ({"samples": self.vae.encode(p.permute(0, 2, 3, 1))} for p in (content, painting))
        if variant.color != "none":
            latent = InSTMatchColor.execute(latent, other, variant.color, 1.0).result[0]
        noise = None if variant.invert else self.plain_noise(variant.seed)
        made = InSTSample.execute(self.model, positive, negative, latent, variant.steps, variant.cfg, "ddim",
                                  "ddim_uniform", variant.strength, variant.seed, "matched", noise=noise).result[0]
        return self.vae.decode(made["samples"]).permute(0, 3, 1, 2).clamp(0, 1).clone()

    @staticmethod
    def plain_noise(seed: int):
        from comfy_extras.nodes_custom_sampler import Noise_RandomNoise

        return Noise_RandomNoise(seed)


# ---- what the numbers say ----

def nearest_share(distances: Tensor) -> float:
    """Share of results whose own style is the nearest.

    Args:
        distances: (results, styles); the own style first.
    """
    return (distances.argmin(1) == 0).float().mean().item()


def promises(means: Mapping[str, Mapping[str, float]], nearest: float, alarms: float) -> list[tuple[str, bool]]:
    """What is asked of the demo, and whether it holds. The last ones only where their variants were run."""
    own, content, colours, unrelated = (means[k] for k in ("InST", CONTENT_COPY, COLOURS, UNRELATED))
    nearer = content["gram"] / max(own["gram"], 1e-9)
    return [
        (f"Gram distance to the style {own['gram']:.3f}: {nearer:.2f} times closer than the content's "
         f"{content['gram']:.3f} (wanted {GRAM_WANTED})", nearer >= GRAM_WANTED),
        (f"Gram distance {own['gram']:.3f} below colour transfer's {colours['gram']:.3f}",
         own["gram"] < colours["gram"]),
        (f"LPIPS to the content {own['lpips']:.3f} clearly below an unrelated picture's {unrelated['lpips']:.3f}",
         own["lpips"] < CLEARLY * unrelated["lpips"]),
        (f"the right style is nearest for {100 * nearest:.0f} % (wanted {100 * NEAREST_WANTED:.0f} %)",
         nearest >= NEAREST_WANTED),
        (f"leakage alarms: {100 * alarms:.0f} % of results", alarms == 0),
        *((f"Gram distance {own['gram']:.3f} clearly below that with {name}, {means[name]['gram']:.3f}",
           own["gram"] < CLEARLY * means[name]["gram"]) for name in ("no style", "wrong style") if name in means),
        *(("embedding:NAME in a stock prompt measures the same in everything", means["embedding:"] == own)
          for _ in range("embedding:" in means)),
    ]


def alarm_share(leaks: Sequence[float], copies: Sequence[float]) -> float:
    """Share of results that show half as much of the painting's content as a copy of it does."""
    return sum(leak > ALARM * copy for leak, copy in zip(leaks, copies, strict=True)) / len(leaks)


def report(means: Mapping[str, Mapping[str, float]], nearest: Mapping[str, float], alarms: Mapping[str, float],
           seconds: Mapping[str, float]) -> str:
    """The table in Markdown, and the promises."""
    columns = (("Gram to style", "gram"), ("palette, Lab", "palette_lab"), ("LPIPS to content", "lpips"),
               ("LPIPS, grey", "lpips_grey"), ("edge correlation", "edge_correlation"), ("leakage", "leakage"))
    head = ["", *(title for title, _ in columns), "nearest style right", "alarms", "seconds"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for name, values in means.items():
        cells = [name, *(f"{values[key]:.3f}" for _, key in columns), f"{100 * nearest[name]:.0f} %",
                 f"{100 * alarms[name]:.0f} %", f"{seconds[name]:.1f}"]
        lines.append("| " + " | ".join(cells) + " |")
    held = [f"- {'holds' if ok else 'FAILS'}: {text}" for text, ok in
            (promises(means, nearest["InST"], alarms["InST"]) if "InST" in means else ())]
    return "\n".join([*lines, "", *held]) + "\n"


# ---- the run ----

def methods(studio: Studio, options: argparse.Namespace, styles: Mapping[str, Path], open_picture: Callable) -> list:
    import evaluate

    base = replace(Variant(), **{k: v for k, v in vars(options).items() if k in asdict(Variant()) and v is not None})
    following = dict(zip(styles, [*list(styles)[1:], next(iter(styles))], strict=True))
    by_pixels = {hashlib.sha256(open_picture(path).numpy().tobytes()).hexdigest(): open_picture(styles[following[name]])
                 for name, path in styles.items()}

    def painter(variant: Variant):
        def paint(content: Tensor, painting: Tensor, unrelated: Tensor | None) -> Tensor:
            if variant.style == "wrong":
                painting = by_pixels[hashlib.sha256(painting.numpy().tobytes()).hexdigest()]
            return studio.paint(variant, content, painting)

        return paint

    def trivial(make):
        return lambda content, painting, unrelated: make(
            content, painting, content.flip(2, 3) if unrelated is None else unrelated)

    found = [evaluate.Method(name, {}, trivial(make), trivial=True) for name, make in evaluate.metrics.TRIVIAL.items()]
    wanted = options.variants or [v for v, c in VARIANTS.items()
                                  if options.clip_vision or c.get("encoder") not in NEED_VISION]
    for name in wanted:
        variant = replace(base, **VARIANTS[name])
        found.append(evaluate.Method(name, asdict(variant), painter(variant)))
    return found


def style_distances(run, method, networks) -> Tensor:
    """(pairs, styles) Gram distances of results, the own style first."""
    import evaluate

    from inst_core.metrics.gram import gram_distance

    with torch.no_grad():
        seen = {name: networks.alexnet(run.open(path)) for name, path in run.styles.items()}
        rows = []
        for content, style in run.pairs():
            result = networks.alexnet(evaluate.open_picture(run.picture_path(method, content, style)))
            others = [style, *(name for name in run.styles if name != style)]
            rows.append([gram_distance(result, seen[name]).item() for name in others])
    return torch.tensor(rows)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, default=MODELS / "checkpoints" / "inst-demo.safetensors")
    parser.add_argument("--clip-vision", type=Path, help="for the encoders attention and paper")
    parser.add_argument("--contents", type=Path, required=True)
    parser.add_argument("--styles", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--comfyui", type=Path, default=ROOT / ".dev" / "ComfyUI")
    parser.add_argument("--weights", type=Path, default=MODELS / "style_transfer" / "lpips-alex.safetensors")
    parser.add_argument("--variants", nargs="+", choices=list(VARIANTS), help="only these (default: all that can run)")
    parser.add_argument("--size", type=int, default=256, help="short side of all pictures")
    parser.add_argument("--most", type=int, help="only so many contents and styles, for a try")
    parser.add_argument("--gpu", action="store_true")
    for name, value in asdict(Variant()).items():
        if isinstance(value, int | float) and not isinstance(value, bool):
            parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), help=f"default {value}")
    return parser.parse_args()


def main() -> int:
    options = parse()
    (options.output / "styles").mkdir(parents=True, exist_ok=True)
    studio = Studio(options.checkpoint, options.clip_vision, options.output / "styles", not options.gpu,
                    options.comfyui)
    import evaluate

    contents, styles = (dict(list(evaluate.pictures_in(folder).items())[:options.most])
                        for folder in (options.contents, options.styles))
    networks = evaluate.metrics.load_networks(evaluate.read_weights(options.weights))

    def opened(path: Path) -> Tensor:
        return evaluate.open_picture(path, options.size)

    chosen = methods(studio, options, styles, opened)
    run = evaluate.Run(contents, styles, chosen, evaluate.metrics.Judge(networks, options.size), options.output,
                       options.size, False)
    run.check_settings({"lpips": options.weights.name, "checkpoint": evaluate.sha256(options.checkpoint)})
    run.evaluate()
    evaluate.write_results(run, None)
    records = {m.name: [run.record(m, *pair) for pair in run.pairs()] for m in chosen}
    means = {name: evaluate.metrics.means([r["measures"] for r in rows]) for name, rows in records.items()}
    copies = [r["measures"]["leakage"] for r in records[STYLE_COPY]]
    alarms = {name: alarm_share([r["measures"]["leakage"] for r in rows], copies) for name, rows in records.items()}
    nearest = {m.name: nearest_share(style_distances(run, m, networks)) for m in chosen}
    seconds = {name: sum(r["seconds"] for r in rows) / len(rows) for name, rows in records.items()}
    text = report(means, nearest, alarms, seconds)
    evaluate.write_whole(options.output / "quality.md", text.encode())
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
