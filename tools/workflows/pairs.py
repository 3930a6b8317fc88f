"""Makes the before-and-after pictures of help pages on the demo checkpoint, of the sample pictures alone.

``keep_structure.jpg``: photograph, painting, repainted at a high strength without and with keep_structure.
``semantic_color.jpg``: two drawn pictures of the same things, the colours of the first matched by mk and by semantic.
"""
import argparse
from pathlib import Path

import torch
from bench import color
from comfyui import in_process
from demo_model.quality import BASE, Studio, middle_square
from PIL import Image
from torch import Tensor

from workflows.thumbnail import strip

DOCS, SAMPLES, STYLES = (in_process.ROOT / part for part in ("web/docs", "samples", "styles/inst-demo"))
PHOTOGRAPH = "inst_photograph.jpg"
PAINTING, STYLE, STRENGTH = "inst_painting.jpg", "van_gogh.safetensors", 0.9


def image(made: Tensor) -> Image.Image:
    return Image.fromarray((made[0].clamp(0, 1) * 255).round().byte().numpy())


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--checkpoint", type=Path, default=in_process.MODELS / "checkpoints" / "inst-demo.safetensors")
    parser.set_defaults(device=torch.device("cpu"), comfyui=None, clip_vision=None,
                        models=in_process.MODELS / "style_transfer")


def main(args: argparse.Namespace) -> None:
    studio = Studio(args, in_process.ROOT / ".dev" / "pairs")
    from inst_pack.inst_core.style import load_style
    from inst_pack.nodes.color import InSTMatchColor
    from inst_pack.nodes.inversion import InSTSample
    from inst_pack.nodes.style import InSTStyleConditioning

    from nodes import CLIPTextEncode

    with torch.inference_mode():
        pictures = [middle_square(SAMPLES / name).permute(0, 2, 3, 1) for name in (PHOTOGRAPH, PAINTING)]
        latent, style = ({"samples": studio.vae.encode(p)} for p in pictures)
        matched = InSTMatchColor.execute(latent, style, BASE.color, 1.0).result[0]
        negative = CLIPTextEncode().encode(studio.clip, "")[0]

        def painted(style, keep: float) -> Tensor:
            positive = InSTStyleConditioning.execute(studio.clip, style, "*", 1.0).result[0]
            made = InSTSample.execute(studio.model, positive, negative, matched, BASE.steps, BASE.cfg,
                                      BASE.sampler, BASE.scheduler, STRENGTH, BASE.seed, "matched", keep_structure=keep)
            return studio.vae.decode(made.result[0]["samples"])

        scenes = [color.drawn(colours, shift, seed)[0] for seed, (colours, shift) in enumerate(
            zip(color.PAIRS_OF_COLOURS[0], color.SHIFTS[0][1], strict=True))]
        latents = [{"samples": studio.vae.encode(p)} for p in scenes]
        recoloured = [color.matched(studio, *latents, way) for way in ("mk", "semantic")]
        shipped = load_style(STYLES / STYLE)
        held = [painted(shipped, keep) for keep in (0.0, 1.0)]
        for name, shown in (("semantic_color", [*scenes, *recoloured]), ("keep_structure", [*pictures, *held])):
            strip([image(p) for p in shown]).save(DOCS / f"{name}.jpg", quality=88)
            print(f"[pairs] {DOCS / name}.jpg", flush=True)
