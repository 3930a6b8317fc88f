"""Whether colours go where they belong: Match Latent Color by mk, semantic and masks, on the demo checkpoint.

Pairs of drawn pictures show sky, hair, coat, water and a face, at different places and in exchanged colours.  Delta E
is the distance between the mean L*a*b* colour that a region has afterwards and that of the same region in the other
picture.  With --contents and --styles, also how far the palettes of photographs are from those of paintings.
"""
import argparse
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from bench import demo

SIDE = 256
REGIONS = "sky", "hair", "coat", "water"  # and the face, whose colour is the same in all
Colour = tuple[float, float, float]
SKIN: Colour = (0.85, 0.68, 0.58)
PAIRS_OF_COLOURS: Sequence[tuple[Sequence[Colour], Sequence[Colour]]] = (
    (((0.55, 0.70, 0.90), (0.42, 0.27, 0.15), (0.70, 0.20, 0.18), (0.15, 0.45, 0.45)),
     ((0.15, 0.45, 0.45), (0.70, 0.20, 0.18), (0.42, 0.27, 0.15), (0.55, 0.70, 0.90))),
    (((0.55, 0.42, 0.16), (0.36, 0.62, 0.36), (0.62, 0.62, 0.20), (0.30, 0.30, 0.55)),
     ((0.30, 0.30, 0.55), (0.62, 0.62, 0.20), (0.36, 0.62, 0.36), (0.55, 0.42, 0.16))))
SHIFTS = ((-0.07, 0.07), (0.04, -0.04)), ((-0.10, 0.03), (0.06, -0.08))  # of the figure, for each pair of colours


def drawn(colours: Sequence[Colour], shift: float, seed: int, side: int = SIDE) -> tuple[Tensor, Tensor]:
    """(picture (1, side, side, 3), number of the region at each place): each region with a texture of its own."""
    y, x = torch.meshgrid(torch.arange(side).float(), torch.arange(side).float(), indexing="ij")
    noise = torch.rand(side, side, generator=torch.Generator().manual_seed(seed)) - 0.5
    middle = side * (0.5 + shift)

    def oval(height: float, half_width: float, half_height: float) -> Tensor:
        return ((x - middle) / (half_width * side)) ** 2 + ((y - height * side) / (half_height * side)) ** 2 < 1

    region = torch.zeros(side, side, dtype=torch.long)
    region[y > side * (0.62 + 0.3 * shift)] = 3
    region[(y > 0.54 * side) & ((x - middle).abs() < 0.14 * side + 0.35 * (y - 0.54 * side))] = 2
    region[oval(0.38, 0.15, 0.20)] = 1
    region[oval(0.42, 0.08, 0.12)] = 4
    textures = torch.stack([
        0.02 * (3 * y / side).sin() + 0.01 * noise,
        0.18 * (1.6 * x + 2 * (y / 17).sin()).sin() + 0.05 * noise,
        0.15 * ((0.7 * x).sin() * (0.7 * y).sin()).sign() + 0.03 * noise,
        0.12 * (0.9 * y + 2 * (x / 11).sin()).sin() + 0.03 * noise,
        0.02 * noise])
    texture = textures.gather(0, region[None])[0]
    return (torch.tensor([*colours, SKIN])[region] * (1 + texture[..., None])).clamp(0, 1)[None], region


def mean_colours(picture: Tensor, region: Tensor) -> Tensor:
    """(4, 3) mean L*a*b* of the regions of a picture (1, H, W, 3)."""
    from inst_core.metrics.palette import lab

    colours = lab(picture.permute(0, 3, 1, 2))[0]
    return torch.stack([colours[:, region == k].mean(1) for k in range(len(REGIONS))])


def masks_of(region: Tensor) -> Tensor:
    return F.one_hot(region).permute(2, 0, 1).float()[:len(REGIONS)]


def matched(bench, content: dict, style: dict, method: str, **masks: Tensor) -> Tensor:
    from inst_pack.nodes.color import InSTMatchColor

    made = InSTMatchColor.execute(content, style, method, 1.0, model=bench.model, **masks).result[0]
    return bench.vae.decode(made["samples"]).clamp(0, 1)


@torch.inference_mode()
def delta_e(studio, way: str) -> Tensor:
    """(pairs, regions)"""
    rows, seed = [], 0
    for (first, second), shifts in zip(PAIRS_OF_COLOURS, SHIFTS, strict=True):
        for one, other in shifts:
            (content, in_content), (style, in_style) = drawn(first, one, seed), drawn(second, other, seed + 1)
            seed += 2
            masks = {"content_mask": masks_of(in_content), "style_mask": masks_of(in_style)} if way == "masks" else {}
            latents = [{"samples": studio.vae.encode(p)} for p in (content, style)]
            made = matched(studio, *latents, "mk" if way == "masks" else way, **masks)
            rows.append((mean_colours(made, in_content) - mean_colours(style, in_style)).norm(dim=1))
    return torch.stack(rows)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    demo.add_arguments(parser, pixels=SIDE)


def main(args: argparse.Namespace) -> int:
    bench = demo.Bench(args)
    from inst_core.metrics.palette import lab_distance
    from inst_core.metrics.tables import markdown

    rows = []
    for way in ("mk", "semantic", "masks"):
        errors, palettes = delta_e(bench.studio, way), []
        with torch.inference_mode():
            for content in bench.contents if way != "masks" else ():
                for style in bench.styles:
                    made = matched(bench.studio, bench.encode(content), bench.encode(style), way)
                    palettes.append(float(lab_distance(made.permute(0, 3, 1, 2), style.pixels)))
        rows.append([way, f"{errors.mean():.1f}", *(f"{e:.1f}" for e in errors.mean(0)), f"{errors.max():.1f}",
                     f"{sum(palettes) / len(palettes):.2f}" if palettes else ""])
        demo.say(rows[-1], [f"{p:.1f}" for p in palettes])
    print(f"\n{bench.heading()}; {len(errors)} drawn pairs\n")
    print(markdown(("method", "Delta E", *REGIONS, "worst", "palette, Lab"), rows))
    return 0
