"""All measures of one result, at one size, and of batches of results."""
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..methods import vgg
from ..pictures import check_pictures, luminance
from ..portable import average_pool
from . import cfsd, palette, structure, vision
from .alexnet import AlexNet, Features
from .artfid import check_sets, of_sets
from .gram import gram_distance
from .leakage import leakage
from .lpips import grey, load_heads, lpips
from .trivial import resized, trivial_results

SIDE = 512  # px; the usual short side for LPIPS
MINIMUM = 64
MAX_ASPECT = 8.0  # longer pictures are squeezed to it, which bounds memory
ALIKE_ASPECT = 1.25
POSITIONS = 32  # on a side, at most, for self-similarity
RELU3 = 2


class Measure(NamedTuple):
    """A number of the report.

    Attributes:
        key: its name in tables that programs read.
        title: its name for people.
        against: "content" or "style": what the result is compared with.
        higher: whether more is better.
    """

    key: str
    title: str
    against: str
    higher: bool = False


MEASURES = (
    Measure("lpips", "LPIPS", "content"),
    Measure("lpips_grey", "LPIPS, grey", "content"),
    Measure("self_similarity", "self-similarity distance", "content"),
    Measure("ssim_structure", "SSIM structure", "content", higher=True),
    Measure("edge_correlation", "edge correlation", "content", higher=True),
    Measure("cfsd", "CFSD", "content"),
    Measure("clip_content", "CLIP similarity to content", "content", higher=True),
    Measure("gram", "Gram distance", "style"),
    Measure("palette_lab", "palette, Lab", "style"),
    Measure("palette_hellinger", "palette, Hellinger", "style"),
    Measure("clip_style", "CLIP similarity to style", "style", higher=True),
    Measure("csd", "CSD similarity", "style", higher=True),
    Measure("leakage", "leakage alarm", "style"),
)


@dataclass(frozen=True)
class Networks:
    """Eyes of the measures, on one device. Measures whose network is None are left out."""

    alexnet: AlexNet
    heads: tuple[Tensor, ...]
    vgg19: vgg.VGG | None = None
    clip: vision.Embedder | None = None
    csd: vision.Embedder | None = None

    @property
    def device(self) -> torch.device:
        return next(self.alexnet.buffers()).device


def load_networks(lpips_alex: Mapping[str, Tensor], device: torch.device | str = "cpu",
                  vgg19: Mapping[str, Tensor] | None = None, clip: vision.Embedder | None = None,
                  csd: Mapping[str, Tensor] | None = None) -> Networks:
    """Networks from weight files.

    Args:
        lpips_alex: lpips-alex.safetensors, or AlexNet's convolutions and the LPIPS heads together.
        vgg19: a VGG-19, for CFSD.

    Raises:
        ValueError: files that are something else.
    """
    network = None if vgg19 is None else vgg.load(vgg19).to(device)
    if network is not None and network.family != vgg.TORCHVISION_19:
        raise ValueError(f"CFSD is defined with {vgg.TORCHVISION_19.name}; the file is {network.family.name}. Choose "
                         "torchvision's vgg19, or none.")
    heads = tuple(head.to(device) for head in load_heads(lpips_alex))
    return Networks(AlexNet(lpips_alex).to(device), heads, network, clip,
                    None if csd is None else vision.load_csd(csd, device))


def fitted(picture: Tensor, side: int) -> Tensor:
    """(1, 3, H, W) with short side ``side``, the aspect squeezed to MAX_ASPECT where it is beyond."""
    height, width = picture.shape[2:]
    scale = side / min(height, width)
    return resized(picture, tuple(max(1, min(round(s * scale), round(side * MAX_ASPECT))) for s in (height, width)))


@dataclass(frozen=True)
class Seen:
    """A picture (1, 3, H, W) and what the networks see in it."""

    picture: Tensor
    features: Features
    grey_features: Features
    relu3_1: Tensor | None
    clip: Tensor | None
    csd: Tensor | None

    @property
    def luminance(self) -> Tensor:
        return luminance(self.picture)

    @property
    def layout(self) -> Tensor:
        """AlexNet's relu3, at no more than POSITIONS x POSITIONS places or as many in another aspect."""
        features = self.features[RELU3]
        excess = (features.shape[2] * features.shape[3] / POSITIONS**2) ** 0.5
        if excess <= 1:
            return features
        return average_pool(features, [max(1, int(s / excess)) for s in features.shape[2:]])


class Judge:
    """Measures results at one size: short side ``side``, or the content's where that is smaller."""

    def __init__(self, networks: Networks, side: int = SIDE):
        self.networks, self.side = networks, side

    def see(self, picture: Tensor) -> Seen:
        nets = self.networks
        relu3_1 = nets.vgg19 and nets.vgg19(nets.vgg19.normalise(picture), [cfsd.LAYER])[cfsd.LAYER]
        return Seen(picture, nets.alexnet(picture), nets.alexnet(grey(picture)), relu3_1,
                    nets.clip and nets.clip(picture), nets.csd and nets.csd(picture))

    @torch.no_grad()
    def pair(self, content: Tensor, style: Tensor) -> "Pair":
        """What results for one content and one style picture are compared with.

        Args:
            content, style: (1, 3, H, W) in [0, 1], any sizes.

        Raises:
            ValueError: no such pictures, or NaN in them.
        """
        check_pictures(content, "content", 1, "The metrics")
        check_pictures(style, "style", 1, "The metrics")
        side = max(MINIMUM, min(self.side, *content.shape[2:]))
        seen = [self.see(fitted(p.to(self.networks.device, torch.float32), side)) for p in (content, style)]
        return Pair(self, *seen, aspect=content.shape[3] / content.shape[2])


@dataclass(frozen=True)
class Pair:
    """One content and one style picture, seen."""

    judge: Judge
    content: Seen
    style: Seen
    aspect: float

    @torch.no_grad()
    def measure(self, result: Tensor) -> dict[str, float]:
        """{key of MEASURES: value}, for the networks that are loaded.

        Args:
            result: (1, 3, H, W) in [0, 1]; brought to the content's size.

        Raises:
            ValueError: NaN, or a picture of quite another aspect than the content.
        """
        check_pictures(result, "result", 1, "The metrics")
        height, width = result.shape[2:]
        if not 1 / ALIKE_ASPECT <= (ratio := width / height / self.aspect) <= ALIKE_ASPECT and min(height, width) > 1:
            raise ValueError(f"result is {width} x {height} px, whose aspect is {ratio:.2f} times the content's. "
                             "Compare a result with the content that it was made from.")
        seen = self.judge.see(resized(result.to(self.content.picture), tuple(self.content.picture.shape[2:])))
        found = self._to_content(seen) | self._to_style(seen)
        return {measure.key: float(found[measure.key]) for measure in MEASURES if measure.key in found}

    def _to_content(self, result: Seen) -> dict[str, Tensor]:
        content, heads = self.content, self.judge.networks.heads
        found = {
            "lpips": lpips(result.features, content.features, heads),
            "lpips_grey": lpips(result.grey_features, content.grey_features, heads),
            "self_similarity": structure.self_similarity_distance(result.layout, content.layout),
            "ssim_structure": structure.ssim_structure(result.luminance, content.luminance),
            "edge_correlation": structure.edge_correlation(result.luminance, content.luminance),
        }
        if content.relu3_1 is not None:
            found["cfsd"] = cfsd.cfsd(content.relu3_1, result.relu3_1)
        if content.clip is not None:
            found["clip_content"] = vision.cosine(result.clip, content.clip)
        return found

    def _to_style(self, result: Seen) -> dict[str, Tensor]:
        style = self.style
        found = {
            "gram": gram_distance(result.features, style.features),
            "palette_lab": palette.lab_distance(result.picture, style.picture),
            "palette_hellinger": palette.hellinger(result.picture, style.picture),
            "leakage": leakage(self.content.luminance, style.luminance, result.luminance),
        }
        if style.clip is not None:
            found["clip_style"] = vision.cosine(result.clip, style.clip)
        if style.csd is not None:
            found["csd"] = vision.cosine(result.csd, style.csd)
        return found


# ---- batches ----

class Measured(NamedTuple):
    """Values of each result, of the trivial results of each, and of the set."""

    results: list[dict[str, float]]
    trivial: list[dict[str, dict[str, float]]]
    of_set: dict[str, float]


def _check_batches(content: Tensor, style: Tensor, result: Tensor) -> None:
    for name, batch in (("content", content), ("style", style)):
        if len(batch) not in (1, len(result)):
            raise ValueError(f"{name} has {len(batch)} pictures, result has {len(result)}. Give one {name} picture, or "
                             "one for each result.")


def _unrelated(content: Tensor, given: Tensor | None, i: int) -> Tensor | None:
    """A picture that is neither content nor style of result ``i``: the given ones in turn, or the next content."""
    if given is not None:
        return given[i % len(given), None]
    return content[(i + 1) % len(content), None] if len(content) > 1 else None


@torch.no_grad()
def measure_batches(judge: Judge, content: Tensor, style: Tensor, result: Tensor, unrelated: Tensor | None = None,
                    inception: nn.Module | None = None,
                    progress: Callable[[int], None] = lambda done: None) -> Measured:
    """Every result with its content and style, and the trivial results of the same pair.

    Args:
        content, style: (1 or B, 3, ...) in [0, 1].
        result: (B, 3, H, W) in [0, 1].
        unrelated: pictures for the trivial result of that name.
        inception: for FID and ArtFID of the batch, from ``artfid.load_inception``.
        progress: called with the number of results done.

    Raises:
        ValueError: batches that do not fit, NaN, results of another aspect than their content.
    """
    _check_batches(content, style, result)
    if inception is not None:
        check_sets(style, result)
    measured = Measured([], [], {})
    for i in range(len(result)):
        pictures = content[i % len(content), None], style[i % len(style), None]
        pair = judge.pair(*pictures)
        measured.results.append(pair.measure(result[i, None]))
        others = trivial_results(*pictures, _unrelated(content, unrelated, i))
        measured.trivial.append({name: pair.measure(picture) for name, picture in others.items()})
        progress(i + 1)
    if inception is not None:
        lpips_mean = sum(values["lpips"] for values in measured.results) / len(measured.results)
        measured.of_set.update(of_sets(inception, style.split(1), result.split(1), lpips_mean))
    return measured
