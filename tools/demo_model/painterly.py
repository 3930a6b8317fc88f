"""Pictures repainted by rule: strokes, hatching, mosaics, prints and so on, in torch, from a seed.

``render`` draws a palette, a technique and a finish at random and applies them to a batch of pictures; the layout of
each picture stays where it was.  All that is random is drawn on the CPU from one generator, everything else runs where
the pictures are.

A technique takes pictures (B, 3, H, W) in [0, 1] and a ``Draw``, and returns pictures of the same shape; values may
leave [0, 1] a little, ``render`` clamps them.  Lengths are in pixels of a 256 px picture.
"""
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms.functional import gaussian_blur

LUMA = (0.299, 0.587, 0.114)


class Draw:
    """Random numbers of one rendering; the same seed gives the same rendering of the same pictures."""

    def __init__(self, seed: int, device: torch.device | str = "cpu"):
        self.generator = torch.Generator().manual_seed(seed)
        self.device = torch.device(device)

    def uniform(self, low: float, high: float) -> float:
        return low + (high - low) * torch.rand((), generator=self.generator).item()

    def chance(self, probability: float) -> bool:
        return self.uniform(0, 1) < probability

    def integer(self, low: int, high: int) -> int:
        """low ... high, both included."""
        return int(torch.randint(low, high + 1, (), generator=self.generator))

    def choice(self, options: Sequence):
        return options[self.integer(0, len(options) - 1)]

    def rand(self, *shape: int) -> Tensor:
        return torch.rand(shape, generator=self.generator).to(self.device)

    def randn(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator).to(self.device)


Technique = Callable[[Tensor, Draw], Tensor]


# ---- small tools ----

def luma(x: Tensor) -> Tensor:
    """(B, 1, H, W)"""
    return (x * x.new_tensor(LUMA).view(1, 3, 1, 1)).sum(1, keepdim=True)


def blur(x: Tensor, radius: float) -> Tensor:
    """Gaussian blur with this standard deviation."""
    size = 2 * min(math.ceil(2.5 * radius), min(x.shape[2:]) - 1) + 1
    return gaussian_blur(gaussian_blur(x, [1, size], radius), [size, 1], radius)  # two passes are many times faster


def grid(x: Tensor) -> tuple[Tensor, Tensor]:
    """Pixel coordinates (y, x), (1, 1, H, W) each."""
    height, width = x.shape[2:]
    y, x = (torch.arange(side, device=x.device, dtype=x.dtype) for side in (height, width))
    return y.view(1, 1, -1, 1).expand(1, 1, height, width), x.expand(1, 1, height, width)


def waves(x: Tensor, angle: float, period: float, bend: Tensor | float = 0.0) -> Tensor:
    """Phase, in radians, of parallel lines that lie ``period`` pixels apart across this direction."""
    y_at, x_at = grid(x)
    return (math.cos(angle) * x_at + math.sin(angle) * y_at + bend) * 2 * math.pi / period


def slopes(x: Tensor) -> tuple[Tensor, Tensor]:
    """Differences over two pixels, (down, right); 0 at the border."""
    return F.pad(x[:, :, 2:] - x[:, :, :-2], (0, 0, 1, 1)), F.pad(x[..., 2:] - x[..., :-2], (1, 1))


def noise(x: Tensor, draw: Draw, scale: float, channels: int = 1) -> Tensor:
    """Smooth noise with features of about ``scale`` pixels and standard deviation 1, (1, channels, H, W)."""
    height, width = x.shape[2:]
    coarse = draw.randn(1, channels, max(2, round(height / scale)) + 2, max(2, round(width / scale)) + 2)
    field = F.interpolate(coarse, (height, width), mode="bicubic", align_corners=False)
    return field / field.std().clamp_min(1e-6)


def sample(x: Tensor, y_at: Tensor, x_at: Tensor) -> Tensor:
    """The picture at other places (in pixels, (B, 1, H, W)); a batch of one goes with any other."""
    height, width = x.shape[2:]
    places = torch.cat([2 * x_at / (width - 1) - 1, 2 * y_at / (height - 1) - 1], 1).permute(0, 2, 3, 1)
    batch = max(len(x), len(places))
    return F.grid_sample(x.expand(batch, -1, -1, -1), places.expand(batch, -1, -1, -1), padding_mode="reflection",
                         align_corners=True)


def warp(x: Tensor, draw: Draw, scale: float, amount: float) -> Tensor:
    """Wobbles the picture by ``amount`` pixels."""
    y_at, x_at = grid(x)
    field = noise(x, draw, scale, 2) * amount
    return sample(x, y_at + field[:, :1], x_at + field[:, 1:])


def flow(x: Tensor, draw: Draw, smooth: float) -> Tensor:
    """Angles (B, 1, H, W) of strokes: along the picture's contours, a drifting direction where it has none."""
    grad_y, grad_x = slopes(blur(luma(x), 1.0))
    # Double angles, so that opposite gradients do not cancel (structure tensor).
    double = blur(torch.cat([grad_x.square() - grad_y.square(), 2 * grad_x * grad_y], 1), smooth)
    base = draw.uniform(0, 2 * math.pi) + draw.uniform(0, 1.5) * noise(x, draw, draw.uniform(50, 140))
    drift = draw.uniform(1e-4, 2e-3)
    double = double + drift * torch.cat([base.cos(), base.sin()], 1)
    return 0.5 * torch.atan2(double[:, 1:], double[:, :1]) + math.pi / 2


def along(x: Tensor, angle: Tensor, length: int) -> Tensor:
    """Mean over ``2 length + 1`` steps along the flow (line integral convolution; Cabral & Leedom 1993)."""
    y_at, x_at = grid(x)
    total = x
    for sign in (1.0, -1.0):
        y_now, x_now, before = y_at, x_at, angle
        for _ in range(length):
            turned = sample(torch.cat([before.cos(), before.sin()], 1), y_now, x_now)
            y_now, x_now = y_now + sign * turned[:, 1:], x_now + sign * turned[:, :1]
            total = total + sample(x, y_now, x_now)
    return total / (2 * length + 1)


def lit(height: Tensor, draw: Draw, strength: float) -> Tensor:
    """Relief light of a height field, about 0, (B, 1, H, W)."""
    angle, (down, right) = draw.uniform(0, 2 * math.pi), slopes(height)
    return strength * (math.sin(angle) * down + math.cos(angle) * right)


def colour(draw: Draw, low: float = 0.0, high: float = 1.0) -> Tensor:
    """A colour (1, 3, 1, 1) of a luminance between low and high."""
    hue = draw.rand(3)
    hue = hue - (hue * hue.new_tensor(LUMA)).sum()
    level, vivid = draw.uniform(low, high), draw.uniform(0.1, 1.0)
    return (level + vivid * hue).clamp(0, 1).view(1, 3, 1, 1)


def cells(x: Tensor, draw: Draw, size: float, jitter: float = 1.0, stretch: float = 1.0,
          power: float = 2.0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A Voronoi diagram of jittered grid points.

    Args:
        stretch: cells are this many times longer than wide, in one direction.
        power: of the norm: 2 = straight walls, 1 or large = bent ones.

    Returns:
        seed y, seed x (pixels), number of the cell, and distance to its wall, (1, 1, H, W) each.
    """
    y_at, x_at = grid(x)
    step_y, step_x = size, size * stretch
    rows, columns = math.ceil(x.shape[2] / step_y) + 4, math.ceil(x.shape[3] / step_x) + 4
    shift = draw.rand(2, rows * columns) - 0.5
    row, column = (y_at / step_y).floor().long() + 2, (x_at / step_x).floor().long() + 2
    best = second = torch.full_like(y_at, 1e9)
    seed_y, seed_x, number = torch.zeros_like(y_at), torch.zeros_like(y_at), torch.zeros_like(row)
    for i in range(-2, 3):
        for j in range(-2, 3):
            index = (row + i).clamp(0, rows - 1) * columns + (column + j).clamp(0, columns - 1)
            there_y = ((row + i - 2) + 0.5 + jitter * shift[0][index]) * step_y
            there_x = ((column + j - 2) + 0.5 + jitter * shift[1][index]) * step_x
            far = (((y_at - there_y).abs() / step_y) ** power + ((x_at - there_x).abs() / step_x) ** power)
            far = far ** (1 / power)
            nearer = far < best
            second = torch.where(nearer, best, torch.minimum(second, far))
            seed_y, seed_x = torch.where(nearer, there_y, seed_y), torch.where(nearer, there_x, seed_x)
            number, best = torch.where(nearer, index, number), torch.where(nearer, far, best)
    return seed_y, seed_x, number, (second - best) * size / 2


def of_cells(number: Tensor, draw: Draw, channels: int) -> Tensor:
    """Random numbers that every cell has for itself, (1, channels, H, W)."""
    return draw.randn(channels, int(number.max()) + 1)[:, number[0, 0]][None]


def at_seeds(x: Tensor, seed_y: Tensor, seed_x: Tensor) -> Tensor:
    """Each cell in the colour that the picture has at its seed."""
    return sample(x, seed_y.clamp(0, x.shape[2] - 1), seed_x.clamp(0, x.shape[3] - 1))


# ---- palettes ----

def random_palette(draw: Draw, count: int) -> Tensor:
    """Colours (count, 3) from dark to light, of a few hues."""
    hues = [colour(draw, 0.5, 0.5).flatten() - 0.5 for _ in range(draw.integer(1, 5))]
    vivid, dark, light = draw.uniform(0.2, 2.0), draw.uniform(0.0, 0.3), draw.uniform(0.65, 1.0)
    levels = torch.linspace(dark, light, count, device=draw.device)
    return torch.stack([(level + vivid * draw.choice(hues) * (1.2 - (2 * level - 1) ** 2)).clamp(0, 1)
                        for level in levels])


def ramp(x: Tensor, draw: Draw) -> Tensor:
    """Luminance becomes a place on a line of colours."""
    palette = random_palette(draw, draw.integer(2, 6))
    place = luma(x).clamp(0, 1) * (len(palette) - 1)
    low = place.floor().long().clamp(max=len(palette) - 2)
    part = place - low
    picture = palette[low[:, 0]] * (1 - part[:, 0, ..., None]) + palette[low[:, 0] + 1] * part[:, 0, ..., None]
    return picture.permute(0, 3, 1, 2)


def few_colours(x: Tensor, draw: Draw) -> Tensor:
    """Every pixel drawn to the nearest of a few colours, softly or fully; which one may change over the picture."""
    palette = random_palette(draw, draw.integer(4, 12))
    seen = shifted(x, draw) + draw.uniform(0, 0.25) * noise(x, draw, draw.uniform(20, 80), 3)
    difference = seen[:, None] - palette.view(1, -1, 3, 1, 1)
    weight = draw.uniform(0.1, 1.0)  # of hue beside luminance
    by_luma = (luma(x) - luma(palette.view(-1, 3, 1, 1)).view(1, -1, 1, 1)).square()
    nearness = torch.softmax(-(weight * difference.square().sum(2) + 2 * by_luma) * draw.uniform(20, 150), 1)
    return (nearness[:, :, None] * palette.view(1, -1, 3, 1, 1)).sum(1)


def shifted(x: Tensor, draw: Draw) -> Tensor:
    """Another mean, contrast and mixture of the channels: an affine map of colours."""
    turn, _ = torch.linalg.qr(torch.eye(3, device=x.device) + draw.uniform(0.1, 0.6) * draw.randn(3, 3))
    turn = turn * turn.diagonal().sign()  # near the identity, never inverted
    spread = torch.diag(0.5 + 0.8 * draw.rand(3))
    mean = x.mean((2, 3), keepdim=True)
    goal = torch.lerp(mean, colour(draw, 0.25, 0.75).expand_as(mean), draw.uniform(0.2, 0.9))
    return goal + torch.einsum("ij,bjhw->bihw", turn @ spread, x - mean) * draw.uniform(0.8, 1.6)


def toned(x: Tensor, draw: Draw) -> Tensor:
    """Saturation and tone curve."""
    grey = luma(x)
    return (grey + draw.uniform(0, 2.2) * (x - grey)).clamp(0, 1) ** draw.uniform(0.6, 1.6)


PALETTES: tuple[Technique, ...] = (ramp, few_colours, few_colours, shifted, shifted, toned)


def levelled(x: Tensor, draw: Draw) -> Tensor:
    """Every picture with the same middle and range of brightness, as painters choose them."""
    grey = luma(x)
    mean, spread = grey.mean((2, 3), keepdim=True), grey.std((2, 3), keepdim=True)
    return (x - mean) * (draw.uniform(0.17, 0.27) / (spread + 0.03)) + draw.uniform(0.4, 0.6)


# ---- techniques ----

def strokes(x: Tensor, draw: Draw) -> Tensor:
    """Brush strokes along the contours, coarse ones first, with bristles and relief."""
    size, long, jitter = draw.uniform(5, 15), draw.uniform(1.2, 3.0), draw.uniform(0.0, 0.12)
    angle = flow(x, draw, draw.uniform(3, 10))
    relief, bristles = draw.uniform(0, 0.5), draw.uniform(0, 0.3)
    canvas = blur(x, size)
    y_at, x_at = grid(x)
    for layer in range(draw.integer(2, 3)):
        step = max(3.0, size / 2**layer)
        rows, columns = math.ceil(x.shape[2] / step) + 6, math.ceil(x.shape[3] / step) + 6
        shift, rank, tint = (draw.rand(rows * columns) for _ in range(3))
        shift_x, tints = draw.rand(rows * columns), draw.randn(3, rows * columns) * jitter
        row, column = (y_at / step).floor().long() + 3, (x_at / step).floor().long() + 3
        # Per picture: colour and direction of each seed.
        seeds_y = (torch.arange(rows, device=x.device).repeat_interleave(columns) - 3 + shift) * step
        seeds_x = (torch.arange(columns, device=x.device).repeat(rows) - 3 + shift_x) * step
        places = seeds_y.view(1, 1, rows, columns), seeds_x.view(1, 1, rows, columns)
        colours = (at_seeds(blur(x, step / 3), *places).flatten(2) + tints).flatten(2)  # (B, 3, seeds)
        turns = at_seeds(torch.cat([angle.cos(), angle.sin()], 1), *places).flatten(2)
        top, found = torch.zeros_like(angle), torch.zeros(angle.shape, dtype=torch.long, device=x.device)
        across_found = torch.zeros_like(angle)
        for i in range(-2, 3):
            for j in range(-2, 3):
                index = (row + i).clamp(0, rows - 1) * columns + (column + j).clamp(0, columns - 1)
                down, right = y_at - seeds_y[index], x_at - seeds_x[index]
                cosine, sine = turns[:, 0][:, index[0, 0]][:, None], turns[:, 1][:, index[0, 0]][:, None]
                forward, across = right * cosine + down * sine, down * cosine - right * sine
                inside = (forward / (step * long * 0.75)).square() + (across / (step * 0.5)).square() < 1
                above = inside & (rank[index] + 1e-3 > top)
                top = torch.where(above, rank[index] + 1e-3, top)
                found, across_found = torch.where(above, index, found), torch.where(above, across / step, across_found)
        painted = colours.gather(2, found.flatten(2).expand(-1, 3, -1)).view_as(x)
        stripe = (across_found * draw.uniform(15, 30) + 6 * tint[found]).sin()
        painted = painted * (1 + bristles * 0.5 * stripe)
        painted = painted + lit(blur((top > 0) * (1 - 2 * across_found.abs()) + 0.3 * top, 0.6), draw, relief * 0.3)
        # Finer strokes only where the picture has detail.
        detail = blur((x - blur(x, step)).abs().mean(1, keepdim=True), step)
        where = (top > 0) if layer == 0 else (top > 0) & (detail > draw.uniform(0.01, 0.04))
        canvas = torch.where(where, painted, canvas)
    return canvas


def swirls(x: Tensor, draw: Draw) -> Tensor:
    """Paint dragged along the flow, with ridges of light and dark colour."""
    angle = flow(x, draw, draw.uniform(4, 12))
    length = draw.integer(5, 12)
    colours = along(blur(x, 1.0), angle, length)
    ridges = along(noise(x, draw, draw.uniform(1.0, 2.5), 3), angle, length) * math.sqrt(length)
    ridges = torch.lerp(ridges.mean(1, keepdim=True), ridges, draw.uniform(0, 0.8))
    return colours + draw.uniform(0.04, 0.16) * ridges + lit(ridges.mean(1, keepdim=True), draw, draw.uniform(0, 0.1))


def kuwahara(x: Tensor, draw: Draw) -> Tensor:
    """Flat patches with sharp edges: each pixel takes the calmest of its four quadrants (Kuwahara et al. 1976)."""
    radius = draw.integer(2, 6)
    size = radius + 1
    padded = F.pad(x, (radius,) * 4, "reflect")
    mean = F.avg_pool2d(padded, size, 1)
    spread = (F.avg_pool2d(padded.square(), size, 1) - mean.square()).sum(1, keepdim=True)
    height, width = x.shape[2:]
    means, spreads = (torch.stack([of[:, :, i:i + height, j:j + width] for i in (0, radius) for j in (0, radius)])
                      for of in (mean, spread))
    calmest = spreads.argmin(0, keepdim=True).expand(1, *x.shape)
    return means.gather(0, calmest)[0]


def watercolour(x: Tensor, draw: Draw) -> Tensor:
    """Pale washes with dark rims on grainy paper."""
    wash = kuwahara(warp(blur(x, draw.uniform(1, 3)), draw, draw.uniform(6, 20), draw.uniform(1, 3)), draw)
    rims = blur((wash - blur(wash, 2)).abs().mean(1, keepdim=True), 0.7)
    pigment = 1 + draw.uniform(0.05, 0.2) * noise(x, draw, draw.uniform(8, 40)) + 0.05 * noise(x, draw, 1.2)
    paper = colour(draw, 0.9, 1.0)
    depth = (1 - wash) * pigment * draw.uniform(0.6, 1.0) + draw.uniform(1, 4) * rims
    return paper - depth * paper


def hatching(x: Tensor, draw: Draw) -> Tensor:
    """Pen lines in up to four directions; darker parts get more of them."""
    paper, ink = colour(draw, 0.75, 1.0), colour(draw, 0.0, 0.3)
    colours = torch.lerp(paper, x.clamp(0, 1) * 0.5 + 0.5, draw.uniform(0, 0.8))
    y_off, x_off = noise(x, draw, 30), noise(x, draw, 30)
    dark = 1 - blur(luma(x), 1)
    spacing, turn = draw.uniform(3, 7), draw.uniform(0, math.pi)
    covered = torch.zeros_like(dark)
    for i in range(draw.integer(2, 4)):
        angle = turn + i * math.pi / 4
        wave = waves(x, angle, spacing, math.cos(angle) * x_off + math.sin(angle) * y_off).sin()
        wide = (dark - 0.15 - 0.18 * i).clamp(0, 0.6) * 2.2 - 1
        covered = torch.maximum(covered, ((wide - wave) * 3).sigmoid() * (wide > -1))
    return colours * (1 - covered) + ink * covered


def engraving(x: Tensor, draw: Draw) -> Tensor:
    """Parallel lines that swell with darkness, straight or following the forms."""
    angle, spacing = draw.uniform(0, math.pi), draw.uniform(3.5, 8)
    bend = draw.uniform(0, 20) * blur(luma(x), 4) + draw.uniform(0, 4) * noise(x, draw, 60)
    wave = waves(x, angle, spacing, bend).sin()
    covered = ((1 - 2 * luma(x) - wave + draw.uniform(-0.3, 0.3)) * 3).sigmoid()
    return torch.lerp(colour(draw, 0.7, 1.0), colour(draw, 0.0, 0.35), covered)


def woodcut(x: Tensor, draw: Draw) -> Tensor:
    """Two inks, edges cut along the flow."""
    angle = flow(x, draw, 5)
    grain = along(noise(x, draw, 1.5), angle, 8) * 3
    level = blur(luma(x), 1.0)
    level = (level - level.mean((1, 2, 3), keepdim=True)) * 4 + draw.uniform(0.3, 0.9) * grain
    covered = (-level * 4).sigmoid()
    light = torch.lerp(colour(draw, 0.7, 1.0), x, draw.uniform(0, 0.7))
    return torch.lerp(light, colour(draw, 0.0, 0.3), covered)


def mosaic(x: Tensor, draw: Draw) -> Tensor:
    """Tiles of one colour with joints between them: mosaics, or leaded glass when large and dark between."""
    size, glass = draw.uniform(6, 22), draw.chance(0.4)
    *seed, number, wall = cells(x, draw, size, draw.uniform(0.2, 1.0), draw.uniform(1, 1.6))
    tiles = at_seeds(blur(x, size / 4), *seed) + of_cells(number, draw, 3) * draw.uniform(0, 0.08)
    if glass:
        tiles = luma(tiles) + 1.6 * (tiles - luma(tiles)) + 0.06 * noise(x, draw, 12)
    joint = colour(draw, 0.0, 0.15) if glass else colour(draw, 0.2, 0.95)
    width = draw.uniform(0.6, 1.8)
    return torch.lerp(joint, tiles, ((wall - width) * 2).sigmoid())


def facets(x: Tensor, draw: Draw) -> Tensor:
    """Shaded planes with broken edges."""
    size = draw.uniform(12, 40)
    *seed, number, wall = cells(x, draw, size, 1.0, draw.uniform(1, 2), draw.choice((1.0, 2.0, 5.0)))
    amount = draw.rand(2, int(number.max()) + 1)[:, number[0, 0]][None] - 0.5
    y_at, x_at = grid(x)
    # Every plane shows its part of the picture a little displaced, and shaded from one side to the other.
    shade = (amount[:, :1] * (y_at - seed[0]) + amount[:, 1:] * (x_at - seed[1])) / size
    push = draw.uniform(0, size / 3)
    planes = sample(kuwahara(x, draw), y_at + push * amount[:, :1], x_at + push * amount[:, 1:])
    planes = torch.lerp(planes, at_seeds(blur(x, size / 4), *seed), draw.uniform(0.2, 0.9))
    edge = draw.uniform(0, 0.6) * (-(wall - 0.8) * 2).sigmoid()
    return planes + draw.uniform(0.2, 0.7) * shade - edge


def pointillism(x: Tensor, draw: Draw) -> Tensor:
    """Dots of pure colour over a ground."""
    canvas = torch.lerp(blur(x, 4), colour(draw, 0.3, 0.95), draw.uniform(0.1, 0.8))
    size, jitter = draw.uniform(3.5, 9), draw.uniform(0.05, 0.25)
    y_at, x_at = grid(x)
    for _ in range(draw.integer(2, 4)):
        *seed, number, _ = cells(x, draw, size, 1.0)
        dots = at_seeds(x, *seed) + of_cells(number, draw, 3) * jitter
        radius = size * draw.uniform(0.3, 0.5)
        inside = (y_at - seed[0]).square() + (x_at - seed[1]).square() < radius**2
        canvas = torch.where(inside, dots, canvas)
    return canvas


def halftone(x: Tensor, draw: Draw) -> Tensor:
    """Rows of dots whose size is the darkness: one ink, or cyan, magenta, yellow and black."""
    spacing, turn = draw.uniform(4, 8), draw.uniform(0, math.pi)
    paper = colour(draw, 0.85, 1.0)

    def dots(dark: Tensor, angle: float) -> Tensor:
        both = waves(x, angle, spacing).cos() + waves(x, angle + math.pi / 2, spacing).cos()
        return ((dark * 2.4 - 1.2 - both / 2) * 4).sigmoid()

    if draw.chance(0.5):
        ink = colour(draw, 0.0, 0.4)
        return torch.lerp(paper, ink, dots(1 - luma(x), turn))
    inked = torch.cat([dots(1 - x[:, i:i + 1], turn + i * 0.52) for i in range(3)], 1)
    return paper * (1 - inked * draw.uniform(0.75, 1.0))


def poster(x: Tensor, draw: Draw) -> Tensor:
    """Flat areas with smooth borders, outlined or not."""
    flat = kuwahara(blur(x, draw.uniform(1, 3)), draw)
    levels = draw.integer(2, 5)
    place = flat.clamp(0, 1) * levels
    flat = (place.floor() + ((place - place.floor() - 0.5) * 12).sigmoid()) / levels
    if draw.chance(0.6):
        flat = torch.lerp(flat, colour(draw, 0, 0.2), outlines(x, draw) * draw.uniform(0.6, 1))
    return flat


def outlines(x: Tensor, draw: Draw) -> Tensor:
    """Dark lines where the picture has edges, (B, 1, H, W) in [0, 1] (difference of Gaussians, Winnemoeller 2012)."""
    fine = draw.uniform(0.8, 2.0)
    edges = blur(luma(x), fine) - 0.98 * blur(luma(x), 1.6 * fine)
    return ((-edges + 0.002) * draw.uniform(80, 250)).sigmoid()


def line_drawing(x: Tensor, draw: Draw) -> Tensor:
    """Outlines on paper, over a faint wash."""
    paper = torch.lerp(colour(draw, 0.7, 1.0), blur(x, 4), draw.uniform(0, 0.6))
    lines = outlines(warp(x, draw, 8, draw.uniform(0, 1.5)), draw) * (1 + 0.3 * noise(x, draw, 3)).clamp(0, 1)
    return torch.lerp(paper, colour(draw, 0, 0.4), lines)


def chalk(x: Tensor, draw: Draw) -> Tensor:
    """Crayon on rough paper: the paper shows where its grain is low."""
    paper = colour(draw, 0.1, 0.95)
    grain = along(noise(x, draw, draw.uniform(1, 2)), flow(x, draw, 8), draw.integer(0, 5))
    grain = grain / grain.std((1, 2, 3), keepdim=True) + 0.7 * noise(x, draw, 1.3)
    covered = ((grain + draw.uniform(0.2, 1.0)) * draw.uniform(1.5, 4)).sigmoid()
    return torch.lerp(paper, blur(x, draw.uniform(0.5, 2.5)), covered)


def ink_wash(x: Tensor, draw: Draw) -> Tensor:
    """Diluted ink that runs, in one hue, with a few firm lines."""
    dark = 1 - luma(warp(blur(x, draw.uniform(1, 4)), draw, draw.uniform(10, 30), draw.uniform(1, 4)))
    dark = (dark * draw.uniform(0.9, 1.4) - draw.uniform(0, 0.3)).clamp(0, 1)
    dark = dark + 0.12 * dark * noise(x, draw, 15) + draw.uniform(0, 0.8) * outlines(x, draw)
    return torch.lerp(colour(draw, 0.8, 1.0), colour(draw, 0.0, 0.3), dark.clamp(0, 1))


def stitches(x: Tensor, draw: Draw) -> Tensor:
    """Square stitches or weave."""
    size = draw.integer(4, 8)
    small = F.interpolate(x, scale_factor=1 / size, mode="area")
    blocks = F.interpolate(small, x.shape[2:], mode="nearest")
    y_at, x_at = grid(x)
    u, v = y_at % size / size - 0.5, x_at % size / size - 0.5
    thread = draw.choice((lambda: (u - v).abs().minimum((u + v).abs()),
                          lambda: u.abs().maximum(v.abs()),
                          lambda: torch.where((y_at // size + x_at // size) % 2 < 1, u.abs(), v.abs())))()
    return blocks * (1.1 - draw.uniform(0.4, 1.0) * thread) + 0.03 * noise(x, draw, 1)


def dithering(x: Tensor, draw: Draw) -> Tensor:
    """Few colours in an ordered pattern (Bayer 1973)."""
    quarter = x.new_tensor([[0, 2], [3, 1]])
    pattern = (torch.kron(quarter.new_ones(2, 2), 4 * quarter) + torch.kron(quarter, quarter.new_ones(2, 2))) / 16
    dot, levels = draw.integer(2, 3), draw.integer(1, 3)
    y_at, x_at = (at.long() // dot % 4 for at in grid(x))
    tiled = pattern[y_at, x_at]
    small = F.interpolate(x, scale_factor=1 / dot, mode="area")
    return ((F.interpolate(small, x.shape[2:], mode="nearest").clamp(0, 1) * levels + tiled).floor() / levels)


def patterned(x: Tensor, draw: Draw) -> Tensor:
    """Areas of like brightness filled with ornaments: rings, stripes, spirals."""
    flat = kuwahara(blur(x, 2), draw)
    *seed, number, _ = cells(x, draw, draw.uniform(18, 40))
    y_at, x_at = grid(x)
    u, v = y_at - seed[0], x_at - seed[1]
    radius, around = (u.square() + v.square() + 1e-6).sqrt(), torch.atan2(u, v)
    period = draw.uniform(5, 11)
    wave = draw.choice((radius, radius + around * period / (2 * math.pi), u + v))
    ornament = (wave * 2 * math.pi / period).sin()
    accent = at_seeds(x, *seed)
    return torch.lerp(flat, accent, draw.uniform(0.2, 0.7) * (ornament * 4).sigmoid()) + 0.08 * ornament


# {word for the prompt: technique}
TECHNIQUES: dict[str, Technique] = {
    "oil painting": strokes, "impressionism": swirls, "gouache": kuwahara, "watercolor": watercolour,
    "hatching": hatching, "engraving": engraving, "woodcut": woodcut, "mosaic": mosaic, "cubism": facets,
    "pointillism": pointillism, "halftone": halftone, "poster": poster, "drawing": line_drawing, "chalk": chalk,
    "ink": ink_wash, "embroidery": stitches, "pixels": dithering, "ornament": patterned,
}


# ---- finishes ----

def canvas_weave(x: Tensor, draw: Draw) -> Tensor:
    """Threads of a canvas."""
    period = draw.uniform(2.5, 4)
    weave = waves(x, 0, period).sin() * waves(x, math.pi / 2, period).sin()
    return x * (1 + draw.uniform(0.03, 0.12) * weave)


def paper_grain(x: Tensor, draw: Draw) -> Tensor:
    return x * (1 + draw.uniform(0.02, 0.1) * noise(x, draw, draw.uniform(1, 2.5)))


def cracks(x: Tensor, draw: Draw) -> Tensor:
    """Old varnish."""
    *_, wall = cells(x, draw, draw.uniform(14, 40))
    wobble = wall + 0.6 * noise(x, draw, 3)
    return x * (1 - draw.uniform(0.15, 0.5) * (-(wobble - 0.5) * 3).sigmoid())


def relief(x: Tensor, draw: Draw) -> Tensor:
    """Thick paint."""
    return x + lit(blur(luma(x), 0.7) + 0.05 * noise(x, draw, 3), draw, draw.uniform(0.2, 0.7))


def plain(x: Tensor, draw: Draw) -> Tensor:
    return x


FINISHES: tuple[Technique, ...] = (plain, plain, canvas_weave, paper_grain, cracks, relief)


@torch.no_grad()
def render(pictures: Tensor, seed: int, technique: str | None = None) -> tuple[Tensor, str]:
    """One style, drawn from the seed, over all pictures.

    Args:
        pictures: (B, 3, H, W) in [0, 1].
        technique: a key of TECHNIQUES; None draws one.

    Returns:
        Pictures of the same shape in [0, 1], and the technique's word.
    """
    draw = Draw(seed, pictures.device)
    word = technique or draw.choice(tuple(TECHNIQUES))
    x = levelled(pictures, draw).clamp(0, 1) if draw.chance(0.6) else pictures
    if draw.chance(0.85):
        x = draw.choice(PALETTES)(x, draw).clamp(0, 1)
    x = TECHNIQUES[word](x, draw).clamp(0, 1)
    x = draw.choice(FINISHES)(x, draw)
    return x.clamp(0, 1), word
