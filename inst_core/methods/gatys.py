"""Image Style Transfer Using Convolutional Neural Networks (Gatys, Ecker & Bethge, CVPR 2016).

A picture is changed by L-BFGS until its VGG features match the content's and their Gram matrices match the style's.
Weights and constants are those of the authors' PyTorch notebook.  The optimised picture is kept in 8-bit levels
(0..255 minus the network's mean), the unit of the authors' network, whatever the weight file.
"""
import copy
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from .. import color
from ..memory import is_out_of_memory
from ..pictures import check_batches, check_pictures, gram, luminance, mean_std, with_luminance
from ..portable import shrink
from .common import Progress
from .vgg import CHANNELS, GATYS, VGG

MINIMUM = 16  # px; below, relu5_1 has no position left
CONTENT_LAYERS: Mapping[str, float] = {"relu4_2": 1.0}
STYLE_LAYERS: Mapping[str, float] = {f"relu{n}_1": 1e3 / c**2 for n, c in enumerate(CHANNELS, 1)}
OFFICIAL_STEPS, OFFICIAL_HIGH_RESOLUTION_STEPS = 500, 200
# Features of networks other than vgg_conv.pth are brought to this mean on the style picture, layer by layer, so that
# the notebook's weights fit them too: style terms grow with its fourth power, content terms with its square.
MEAN_ACTIVATION = 40.0
HISTORY = 100  # L-BFGS updates kept, torch's default
HISTORY_BYTES = 2 * 2**30
LBFGS_ITERATIONS = 20  # per call, torch's default
MAX_ASPECT = 4.0  # longer pictures keep the area of this aspect


@dataclass(frozen=True)
class Settings:
    """How a picture is made.

    Attributes:
        steps: loss evaluations.
        content_weight, style_weight: alpha and beta of Eq. 7, on top of the layers' own weights.
        content_layers, style_layers: {layer: weight}; the style's are w_l of Eq. 5.
        pooling: "max" as in the notebook, "avg" as in the paper.
        start: "content" as in the notebook, "noise" as in the paper.
        size: short side in pixels.
        high_resolution: short side of a second pass that starts from the first result (Gatys et al. 2017); 0 = none.
        preserve_color: "none", "luminance" (only brightness is transferred) or "histogram" (the style picture gets the
            content's colours first); Gatys et al. 2016, Preserving Color in Neural Artistic Style Transfer.
        seed: of the noise start.
    """

    steps: int = OFFICIAL_STEPS
    content_weight: float = 1.0
    style_weight: float = 1.0
    content_layers: Mapping[str, float] = field(default_factory=lambda: CONTENT_LAYERS)
    style_layers: Mapping[str, float] = field(default_factory=lambda: STYLE_LAYERS)
    pooling: str = "max"
    start: str = "content"
    size: int = 512
    high_resolution: int = 0
    preserve_color: str = "none"
    seed: int = 0

    @property
    def high_resolution_steps(self) -> int:
        """The notebook's 200 for 500."""
        return math.ceil(self.steps * OFFICIAL_HIGH_RESOLUTION_STEPS / OFFICIAL_STEPS) if self.high_resolution else 0

    @property
    def total_steps(self) -> int:
        """Loss evaluations for one picture."""
        return self.steps + self.high_resolution_steps


# ---- the loss ----

def content_loss(features: Tensor, target: Tensor) -> Tensor:
    """Eq. 1, as a mean instead of half the sum."""
    return F.mse_loss(features, target)


def layer_style_loss(gram_matrix: Tensor, target: Tensor) -> Tensor:
    """E_l of Eq. 4, as a mean over the C x C entries."""
    return F.mse_loss(gram_matrix, target)


def style_layers(names: str) -> dict[str, float]:
    """``"relu1_1, relu2_1"`` -> {layer: 1000 / C^2}, the notebook's weights.

    Raises:
        ValueError: a name that is no VGG layer, or none at all.
    """
    layers = {}
    for name in names.replace(",", " ").split():
        if not (match := re.fullmatch(r"relu([1-5])_[1-4]", name)):
            raise ValueError(f"style_layers has {name!r}; expected names such as {', '.join(STYLE_LAYERS)}.")
        layers[name] = 1e3 / CHANNELS[int(match.group(1)) - 1] ** 2
    if not layers:
        raise ValueError(f"style_layers is empty; expected names such as {', '.join(STYLE_LAYERS)}.")
    return layers


class Objective:
    """L_total of Eq. 7 for one content and one style picture, both (1, 3, H, W) in [0, 1]."""

    def __init__(self, vgg: VGG, content: Tensor, style: Tensor, settings: Settings):
        self.vgg, self.settings = vgg, settings
        self.recompute = False
        black, dark = vgg.normalise(style.new_tensor([0, 1 / 255]).view(2, 1, 1, 1).expand(2, 3, 1, 1)).chunk(2)
        self._level = dark - black  # network input per 8-bit level
        with torch.no_grad():
            style_features = self._features(self.levels(style))
            self._grams = {layer: gram(style_features[layer]) for layer in settings.style_layers}
            content_features = self._features(self.levels(content))
            self._content = {layer: content_features[layer] for layer in settings.content_layers}
        unit = {layer: 1.0 if vgg.family == GATYS else MEAN_ACTIVATION / max(float(features.mean()), 1e-6)
                for layer, features in style_features.items()}
        self._style_weights = {layer: settings.style_weight * weight * unit[layer]**4
                               for layer, weight in settings.style_layers.items()}
        self._content_weights = {layer: settings.content_weight * weight * unit[layer]**2
                                 for layer, weight in settings.content_layers.items()}

    def levels(self, picture: Tensor) -> Tensor:
        """RGB in [0, 1] -> what is optimised."""
        return self.vgg.normalise(picture) / self._level

    def picture(self, levels: Tensor) -> Tensor:
        """What is optimised -> RGB in [0, 1]."""
        return self.vgg.denormalise(levels * self._level).clamp(0, 1)

    def _features(self, levels: Tensor) -> dict[str, Tensor]:
        layers = [*self.settings.style_layers, *self.settings.content_layers]
        return self.vgg(levels * self._level, layers, self.settings.pooling, self.recompute)

    def terms(self, levels: Tensor) -> dict[str, Tensor]:
        """Weighted terms: ``style relu1_1`` ... (beta w_l E_l of Eq. 5) and ``content relu4_2`` (alpha L_content)."""
        features = self._features(levels)
        style = {f"style {layer}": weight * layer_style_loss(gram(features[layer]), self._grams[layer])
                 for layer, weight in self._style_weights.items()}
        content = {f"content {layer}": weight * content_loss(features[layer], self._content[layer])
                   for layer, weight in self._content_weights.items()}
        return style | content

    def loss_and_gradient(self, levels: Tensor) -> tuple[Tensor, Tensor]:
        """L_total and dL/d(levels); when memory runs out, activations are recomputed instead of kept from then on."""
        while True:
            try:
                with torch.enable_grad():
                    variable = levels.detach().requires_grad_()
                    loss = torch.stack(list(self.terms(variable).values())).sum()
                    return loss.detach(), torch.autograd.grad(loss, variable)[0].contiguous()
            except RuntimeError as error:
                if self.recompute or not is_out_of_memory(error):
                    raise
            self.recompute = True


def minimise(objective: Objective, levels: Tensor, steps: int,
             progress: Callable[[int, Tensor], None]) -> tuple[Tensor, list[float]]:
    """``steps`` loss evaluations of torch's L-BFGS with its defaults, started at ``levels``.

    Returns:
        The picture in levels, and the loss of every evaluation.

    Raises:
        ValueError: the loss is not finite any more.
    """
    variable = levels.clone(memory_format=torch.contiguous_format).requires_grad_()
    history = max(10, min(HISTORY, HISTORY_BYTES // (2 * 4 * levels.numel())))
    optimiser = torch.optim.LBFGS([variable], history_size=history)
    losses: list[float] = []

    def closure() -> Tensor:
        loss, variable.grad = objective.loss_and_gradient(variable)
        losses.append(float(loss))
        if not math.isfinite(losses[-1]):
            raise ValueError(f"The optimisation diverged after {len(losses)} steps. Lower style_weight, or start from "
                             "content.")
        progress(len(losses), variable.detach())
        return loss

    while len(losses) < steps:
        optimiser.param_groups[0]["max_iter"] = min(LBFGS_ITERATIONS, steps - len(losses))
        optimiser.step(closure)
    return variable.detach(), losses


# ---- pictures ----

def resized(picture: Tensor, short_side: int) -> Tensor:
    """Short side to ``short_side``, antialiased bilinear; beyond MAX_ASPECT the area decides, which bounds memory."""
    height, width = picture.shape[2:]
    scale = min(short_side / min(height, width), short_side * math.sqrt(MAX_ASPECT / (height * width)))
    size = [max(MINIMUM, int(side * scale + 1e-6)) for side in (height, width)]
    return shrink(picture, size)


def match_luminance(content: Tensor, style: Tensor) -> tuple[Tensor, Tensor]:
    """Grey content, and the grey style shifted and scaled to the content's mean and spread; 3 channels each."""
    (content_mean, content_std), (style_mean, style_std) = mean_std(luminance(content)), mean_std(luminance(style))
    grey = (luminance(style) - style_mean) / style_std * content_std + content_mean
    return luminance(content).expand(-1, 3, -1, -1), grey.expand(-1, 3, -1, -1)


def _prepared(content: Tensor, style: Tensor, preserve_color: str) -> tuple[Tensor, Tensor]:
    """The pair to optimise for."""
    if preserve_color == "luminance":
        return match_luminance(content, style)
    if preserve_color == "histogram":
        return content, color.whitening_colouring(style, content).clamp(0, 1)
    return content, style


def _one_pass(vgg: VGG, content: Tensor, style: Tensor, size: int, steps: int, start: Tensor | None, settings: Settings,
              progress: Callable[[int, Tensor], None]) -> tuple[Tensor, list[float]]:
    """(1, 3, h, w) pictures -> result with short side ``size``, and its losses; ``start`` None means noise."""
    content, style = resized(content, size), resized(style, size)
    objective = Objective(vgg, *_prepared(content, style, settings.preserve_color), settings)
    if start is None:
        generator = torch.Generator().manual_seed(settings.seed)
        levels = torch.randn(content.shape, generator=generator).to(content.device)
    else:
        levels = objective.levels(F.interpolate(start, content.shape[2:], mode="bilinear", align_corners=False))

    def shown(levels: Tensor) -> Tensor:
        picture = objective.picture(levels)
        return with_luminance(content, luminance(picture)) if settings.preserve_color == "luminance" else picture

    levels, losses = minimise(objective, levels, steps, lambda done, current: progress(done, shown(current)))
    return shown(levels), losses


@dataclass(frozen=True)
class Result:
    """Pictures (B, 3, H, W) in [0, 1], and of each the L_total of every evaluation."""

    pictures: Tensor
    losses: list[list[float]]

    def report(self, network: str) -> str:
        """How far the loss of each picture fell, for people."""
        height, width = self.pictures.shape[2:]
        return "\n".join([f"{network}, {width} x {height} px",
                          *(f"picture {i}: {len(losses)} steps, loss {losses[0]:.3g} -> {losses[-1]:.3g}"
                            for i, losses in enumerate(self.losses, 1))])


def _later(progress: Progress, done: int, more: int, picture: Tensor) -> None:
    """Progress of a part of the work that begins after ``done`` evaluations."""
    progress(done + more, picture)


def _both_passes(vgg: VGG, content: Tensor, style: Tensor, settings: Settings,
                 progress: Progress) -> tuple[Tensor, list[float]]:
    """The picture at ``size``, then if wanted at ``high_resolution``, started from the first result."""
    start = content if settings.start == "content" else None
    picture, losses = _one_pass(vgg, content, style, settings.size, settings.steps, start, settings, progress)
    if settings.high_resolution:
        picture, more = _one_pass(vgg, content, style, settings.high_resolution, settings.high_resolution_steps,
                                  picture, settings, partial(_later, progress, settings.steps))
        losses += more
    return picture, losses


def stylize(vgg: VGG, content: Tensor, style: Tensor, settings: Settings = Settings(),
            progress: Progress = lambda done, picture: None) -> Result:
    """Content pictures painted in the manner of style pictures.

    Works inside ``torch.inference_mode`` (which it leaves for itself) and leaves the global random generator alone.

    Args:
        vgg: on the device to compute on.
        content: (B, 3, H, W) in [0, 1].
        style: (1 or B, 3, h, w) in [0, 1].
        progress: called after every loss evaluation with (evaluations so far, the current picture (1, 3, h, w) in
            [0, 1]); an exception from it ends the run.

    Returns:
        Pictures on the content's device, short side ``size`` or ``high_resolution``, with their losses.

    Raises:
        ValueError: pictures under 16 px or not finite, batches that do not fit, layers the network lacks, divergence.
    """
    check_pictures(content, "content", MINIMUM, "Gatys style transfer")
    check_pictures(style, "style", MINIMUM, "Gatys style transfer")
    check_batches(content, style)
    results = []
    with torch.inference_mode(False), torch.no_grad():
        network = copy.deepcopy(vgg)  # weights made in inference mode cannot be differentiated through
        device = next(network.parameters()).device
        for i in range(content.shape[0]):
            # Channels first, as the authors' pictures lie: otherwise rounding decides other ties in max pooling.
            pair = [p.to(device, torch.float32, copy=True, memory_format=torch.contiguous_format)
                    for p in (content[i:i + 1], style[i % style.shape[0], None])]
            results.append(_both_passes(network, *pair, settings, partial(_later, progress, i * settings.total_steps)))
    pictures, losses = zip(*results, strict=True)
    return Result(torch.cat(pictures).to(content.device), list(losses))
