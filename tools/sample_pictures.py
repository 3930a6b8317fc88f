"""The photographs and the paintings that ship with the pack, drawn from a seed: nobody else has a right to them.

    python tools/sample_pictures.py [FOLDER]     (default: samples/)

The photographs are landscapes of layered noise; the paintings are other landscapes that the demo model's painter
(``demo_model/painterly.py``) repaints by rule.
"""
import sys
from pathlib import Path

import numpy as np
import torch
from demo_model.painterly import Draw, blur, canvas_weave, strokes, swirls, watercolour
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
WIDTH, HEIGHT = 768, 576  # of the photograph, px
SIDE = 512  # of the paintings, px


def fractal(random: np.random.Generator, height: int, width: int, octaves: int, lowest: float) -> np.ndarray:
    """(height, width) in [0, 1]: sums of smooth noise, each finer and weaker than the one before."""
    total = torch.zeros(1, 1, height, width)
    for octave in range(octaves):
        rows, columns = (max(2, round(lowest * 2**octave * side / height)) for side in (height, width))
        cells = torch.from_numpy(random.standard_normal((1, 1, rows, columns)).astype("float32"))
        total += torch.nn.functional.interpolate(cells, (height, width), mode="bicubic", align_corners=True) / 2**octave
    total = (total - total.min()) / (total.max() - total.min())
    return total[0, 0].numpy()


def mixed(a: np.ndarray, b: np.ndarray, share: np.ndarray | float) -> np.ndarray:
    """(H, W, 3) or a colour, from ``a`` at share 0 to ``b`` at share 1."""
    share = share[..., None] if isinstance(share, np.ndarray) else share
    return a * (1 - share) + b * share


def landscape(seed: int, height: int, width: int, sky: tuple, sun: tuple, land: tuple) -> np.ndarray:
    """(H, W, 3) in [0, 1]: a sky with clouds and a low sun, three ridges in haze, a lake that mirrors them, a meadow
    with firs.

    Args:
        sky: colours at the top and at the horizon; ``sun``: colour; ``land``: colours of the far and the near ridge.
    """
    random = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width].astype("float32") / height
    horizon, centre = 0.56, 0.62 * width / height
    top, low, glow, far, near = (np.array(c, "float32") for c in (*sky, sun, *land))
    picture = mixed(np.broadcast_to(top, (height, width, 3)), low, np.clip(y / horizon, 0, 1) ** 1.3)
    distance = np.hypot(x - centre, y - 0.36)
    picture = mixed(picture, glow, np.exp(-distance * 5) * 0.8)
    picture = mixed(picture, np.minimum(glow * 1.15, 1), np.clip((0.06 - distance) * 160, 0, 1))
    clouds = np.clip(fractal(random, height, width, 6, 3) * 2.4 - 1.25, 0, 1) * np.clip(1.3 - y / horizon, 0, 1)
    picture = mixed(picture, mixed(np.ones(3, "float32"), glow, 0.35), clouds * 0.8)
    for ridge in range(3):
        line = horizon - (0.27, 0.17, 0.07)[ridge] * (0.35 + fractal(random, height, width, 6, 2 + ridge)[height // 2])
        colour = mixed(mixed(far, near, ridge / 2), low, (0.45, 0.25, 0.05)[ridge])
        rock = fractal(random, height, width, 6, 7)
        lit = np.clip(1 + (np.gradient(rock, axis=1) - np.gradient(rock, axis=0))[..., None] * height / 14, 0.6, 1.5)
        picture = np.where((y > line)[..., None], colour * (0.75 + 0.5 * rock[..., None]) * lit, picture)
    picture = blur(torch.from_numpy(picture.transpose(2, 0, 1)[None].copy()), 0.5)[0].numpy().transpose(1, 2, 0)
    picture = _lake(picture, random, y, horizon, low)
    picture = _meadow(picture, random, x, y, near)
    return np.clip(picture, 0, 1)


def _lake(picture: np.ndarray, random: np.random.Generator, y: np.ndarray, horizon: float,
          low: np.ndarray) -> np.ndarray:
    height, width = y.shape
    depth = np.clip((y - horizon) / (1 - horizon), 0, 1)
    waves = (fractal(random, height, width, 5, 4)[:, :1] - 0.5) * 40 * depth
    waves = waves + (fractal(random, height, width, 4, 24) - 0.5) * 26 * depth
    rows = np.clip((2 * horizon - y) * height + waves, 0, horizon * height - 1).astype(int)
    mirrored = picture[rows, np.arange(width)[None, :]]
    return np.where((y > horizon)[..., None], mixed(mirrored * 0.8, low * 0.55, 0.25 + 0.3 * depth), picture)


def _meadow(picture: np.ndarray, random: np.random.Generator, x: np.ndarray, y: np.ndarray,
            near: np.ndarray) -> np.ndarray:
    height, width = y.shape
    shore = 0.86 + 0.07 * np.sin(x[0] * 2.1 + 0.6) - 0.05 * fractal(random, height, width, 5, 5)[0]
    grass = near * (0.45 + 0.9 * fractal(random, height, width, 7, 30)[..., None])
    picture = np.where((y > shore)[..., None], grass, picture)
    for _ in range(16):
        place, tall = random.uniform(0, width / height), random.uniform(0.12, 0.36)
        if abs(place - 0.62 * width / height) < 0.16:
            continue  # the sun stays in sight
        foot = shore[min(width - 1, int(place * height))] + 0.03
        down = (y - (foot - tall)) / tall
        ragged = 0.6 + 0.6 * fractal(random, height, width, 5, 60)
        inside = (np.abs(x - place) < 0.17 * tall * np.clip(down, 0, 1) * ragged) & (down > 0) & (down < 1)
        shade = near * (0.25 + 0.25 * fractal(random, height, width, 5, 50)[..., None])
        picture = np.where(inside[..., None], shade, picture)
    return picture


def painted(picture: np.ndarray, *techniques, seed: int) -> np.ndarray:
    """(H, W, 3) -> the same, repainted by each technique in turn."""
    x, draw = torch.from_numpy(picture.transpose(2, 0, 1)[None].copy()), Draw(seed)
    for technique in techniques:
        x = technique(x, draw).clamp(0, 1)
    return x[0].numpy().transpose(1, 2, 0)


def pictures() -> dict[str, np.ndarray]:
    """File name -> (H, W, 3) in [0, 1]."""
    def scene(seed: int, *colours: tuple) -> np.ndarray:
        return landscape(seed, SIDE, SIDE, *colours)

    ember = scene(8, ((0.42, 0.08, 0.10), (0.98, 0.55, 0.16)), (1.0, 0.90, 0.55),
                  ((0.48, 0.16, 0.14), (0.16, 0.07, 0.10)))
    dusk = scene(21, ((0.10, 0.12, 0.42), (0.95, 0.62, 0.28)), (1.0, 0.83, 0.30),
                 ((0.25, 0.22, 0.55), (0.08, 0.20, 0.34)))
    rose = scene(5, ((0.45, 0.72, 0.86), (0.98, 0.84, 0.76)), (1.0, 0.95, 0.78),
                 ((0.58, 0.48, 0.74), (0.26, 0.52, 0.40)))
    return {
        "inst_photograph.jpg": landscape(
            3, HEIGHT, WIDTH, ((0.30, 0.52, 0.82), (0.86, 0.88, 0.88)), (1.0, 0.95, 0.82),
            ((0.42, 0.50, 0.60), (0.22, 0.32, 0.18))),
        "inst_photograph_2.jpg": landscape(
            12, HEIGHT, WIDTH, ((0.42, 0.50, 0.72), (0.96, 0.80, 0.70)), (1.0, 0.88, 0.70),
            ((0.46, 0.44, 0.56), (0.30, 0.27, 0.20))),
        "inst_painting.jpg": painted(ember, strokes, seed=9),
        "inst_painting_2.jpg": painted(dusk, swirls, strokes, canvas_weave, seed=4),
        "inst_painting_3.jpg": painted(rose, watercolour, seed=2),
    }


def main() -> None:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "samples"
    folder.mkdir(parents=True, exist_ok=True)
    for name, picture in pictures().items():
        Image.fromarray((picture * 255).round().astype("uint8")).save(folder / name, quality=88)


if __name__ == "__main__":
    main()
