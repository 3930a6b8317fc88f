"""What measurements on the demo checkpoint share: its pictures, its styles, and repainting through the pack's nodes."""
import argparse
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import evaluate
import torch
from comfyui import in_process
from demo_model import quality
from demo_model.quality import BASE, Picture, Studio, Variant
from torch import Tensor

QUALITY = in_process.ROOT / ".dev" / "quality"


def add_arguments(parser: argparse.ArgumentParser, contents: int = 3, styles: int = 3, pixels: int = 128) -> None:
    parser.add_argument("--contents", type=Path, required=True, metavar="FOLDER", help="photographs")
    parser.add_argument("--styles", type=Path, required=True, metavar="FOLDER", help="paintings")
    parser.add_argument("--count", type=int, nargs=2, default=(contents, styles), metavar="N",
                        help=f"how many photographs and paintings ({contents} {styles})")
    parser.add_argument("--pixels", type=int, default=pixels, help=f"side of the pictures ({pixels})")
    parser.add_argument("--checkpoint", type=Path, default=in_process.MODELS / "checkpoints" / "inst-demo.safetensors")
    parser.add_argument("--work", type=Path, default=QUALITY, help="where learned styles are kept")
    parser.set_defaults(device=torch.device("cpu"), comfyui=None, clip_vision=None,
                        models=in_process.MODELS / "style_transfer")


class Bench:
    """The demo checkpoint, test pictures of one size (``contents`` and ``styles``), and the styles learned from the
    paintings."""

    def __init__(self, args: argparse.Namespace):
        torch.set_num_threads(1)
        self.studio = Studio(args, args.work / "styles" / evaluate.sha256(args.checkpoint)[:16])
        from inst_core import metrics

        alexnet = evaluate.read_weights(args.models / evaluate.LPIPS_FILE)
        self.judge = metrics.Judge(metrics.load_networks(alexnet), args.pixels)
        self.contents, whole = ([*_spread(quality.pictures_in(folder, None), count)]
                                for folder, count in zip((args.contents, args.styles), args.count, strict=True))
        self.contents = [of_side(p, args.pixels) for p in self.contents]
        self.styles = [of_side(p, args.pixels) for p in whole]
        self._learned_from = dict(zip((s.digest for s in self.styles), whole, strict=True))

    def learned(self, painting: Picture, variant: Variant) -> Path:
        """The file of the style that is learned from a painting, once."""
        return self.studio.learn(self._learned_from[painting.digest], variant)

    def conditioning(self, painting: Picture, **changes):
        """Of that style."""
        return self.studio.positive(replace(BASE, **changes), self._learned_from[painting.digest])

    def encode(self, picture: Picture) -> dict:
        """LATENT"""
        return {"samples": self.studio.vae.encode(picture.pixels.permute(0, 2, 3, 1))}

    def decode(self, samples: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1], as 8-bit pictures have it."""
        return (self.studio.vae.decode(samples).permute(0, 3, 1, 2).clamp(0, 1) * 255).round() / 255

    @torch.inference_mode()
    def repainted(self, content: Picture, painting: Picture, positive, model=None, steps: int = BASE.steps,
                  strength: float = BASE.strength, negative=None, **more) -> Tensor:
        """(1, 3, H, W): colours matched, inverted and sampled with the demo's settings; ``more`` for InST Sample."""
        from inst_pack.nodes.color import InSTMatchColor
        from inst_pack.nodes.inversion import InSTSample

        from nodes import CLIPTextEncode

        negative = negative or CLIPTextEncode().encode(self.studio.clip, "")[0]
        latent = InSTMatchColor.execute(self.encode(content), self.encode(painting), BASE.color, 1.0).result[0]
        made = InSTSample.execute(model or self.studio.model, positive, negative, latent, steps, BASE.cfg, BASE.sampler,
                                  BASE.scheduler, strength, BASE.seed, "matched", **more).result[0]
        return self.decode(made["samples"])

    def measure(self, make: Callable[[Picture, Picture], Tensor]) -> dict[str, float]:
        """Means of the measures over all pairs, and ``seconds`` of the processor for one."""
        from inst_core.metrics import tables

        rows, seconds = [], 0.0
        for style in self.styles:
            for content in self.contents:
                start = time.process_time()
                made = make(content, style)
                seconds += time.process_time() - start
                with torch.inference_mode():
                    rows.append(self.judge.pair(content.pixels, style.pixels).measure(made))
        return {**tables.means(rows), "seconds": seconds / len(rows)}

    def heading(self) -> str:
        names = (", ".join(p.name for p in part) for part in (self.contents, self.styles))
        return "{} px; photographs {}; paintings {}".format(self.contents[0].pixels.shape[-1], *names)


def _spread(pictures: Sequence[Picture], count: int | None) -> Sequence[Picture]:
    """So many of them, spread over all; None = all."""
    count = count or len(pictures)
    return [pictures[round(i * (len(pictures) - 1) / max(count - 1, 1))] for i in range(min(count, len(pictures)))]


def of_side(picture: Picture, side: int) -> Picture:
    """The picture, shrunk to a square of this side."""
    from inst_core.metrics.trivial import resized

    return Picture(picture.name, resized(picture.pixels, (side, side)))


def counted(model) -> tuple[object, list[int]]:
    """The MODEL, and the number of pictures of each call of its network, filled in as it is called."""
    calls: list[int] = []

    def count(apply: Callable, call: Mapping) -> Tensor:
        calls.append(len(call["input"]))
        return apply(call["input"], call["timestep"], **call["c"])

    model = model.clone()
    model.set_model_unet_function_wrapper(count)
    return model, calls


say = partial(print, flush=True)
