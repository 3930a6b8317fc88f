"""What the user sees while a node works, and how they stop it."""
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import comfy.model_management
import comfy.utils
import latent_preview
import torch
from PIL import Image, ImageDraw, ImageFont
from server import PromptServer
from torch import Tensor

from ..learning import Step, percent
from ..recipes import Recipe

PREVIEW_PIXELS = 512
STRIP_PICTURES = 4
PREVIEWS = 20  # shown while a style is learned
CAPTION = "the painting as the model sees it, from little to much noise"
CAPTION_HEIGHT, CAPTION_SIZE = 20, 13  # px


def check_interrupted() -> None:
    """Raises the host's interrupt (a BaseException) when the user pressed cancel."""
    comfy.model_management.throw_exception_if_processing_interrupted()


class Progress:
    """The node's progress bar. ``total`` and ``done`` share a unit of the caller's choice."""

    def __init__(self, total: int):
        self._total = total
        self._bar = comfy.utils.ProgressBar(total)

    def update(self, done: int, preview: Image.Image | None = None) -> None:
        """Moves the bar, shows a preview if there is one, and stops here if the user cancelled."""
        check_interrupted()
        self._bar.update_absolute(done, self._total, preview and ("JPEG", preview, PREVIEW_PIXELS))


class LatentPreview:
    """Latents as small pictures, by the preview method the user chose for ComfyUI."""

    def __init__(self, model):
        self._previewer = latent_preview.get_previewer(model.load_device, model.get_model_object("latent_format"))

    def __call__(self, latents: Tensor) -> Image.Image | None:
        """(B, C, h, w) in model space -> the first few side by side, or None when previews are off."""
        if self._previewer is None:
            return None
        pictures = [self._previewer.decode_latent_to_preview_image("JPEG", latent)[1]
                    for latent in latents.detach()[:STRIP_PICTURES].split(1)]
        strip = Image.new("RGB", (sum(p.width for p in pictures), pictures[0].height))
        left = 0
        for picture in pictures:
            strip.paste(picture, (left, 0))
            left += picture.width
        return strip


def caption(picture: Image.Image, text: str) -> Image.Image:
    """The picture at ``PREVIEW_PIXELS`` wide with a line of text below it."""
    height = max(1, round(picture.height * PREVIEW_PIXELS / picture.width))
    captioned = Image.new("RGB", (PREVIEW_PIXELS, height + CAPTION_HEIGHT), "white")
    captioned.paste(picture.resize((PREVIEW_PIXELS, height)), (0, 0))
    place = PREVIEW_PIXELS // 2, height + CAPTION_HEIGHT // 2
    ImageDraw.Draw(captioned).text(place, text, "black", ImageFont.load_default(CAPTION_SIZE), anchor="mm")
    return captioned


class LearningView:
    """What one sees while a style is learned: every step in the progress bar; now and then a picture and a line.

    Args:
        model: MODEL, for the previews.
        say: shows a line of text in the node.
        stages: of the style.
    """

    def __init__(self, model, recipe: Recipe, say: Callable[[str], object], stages: int = 1):
        self._bar, self._preview, self._say = Progress(stages * recipe.steps), LatentPreview(model), say

    def tell(self, text: str) -> None:
        """Says what goes on before the first step, and stops here if the user cancelled."""
        check_interrupted()
        self._say(text)

    def report(self, step: Step) -> None:
        """Takes what is known after a step, and stops here if the user cancelled."""
        due = step.done in (1, step.steps) or step.done % max(1, step.steps // PREVIEWS) == 0
        strip = self._preview(step.denoised) if due else None
        self._bar.update(step.done, strip and caption(strip, CAPTION))
        if due:
            self._say(f"{percent(max(0.0, step.gain))} closer to the painting by held-out loss, step {step.done} of "
                      f"{step.steps}, at most {describe_time(step.seconds_left)} left")


def describe_time(seconds: float) -> str:
    """40 s, 12 min, 1 h 40 min."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


def show_text(text: str, node_id: str | None) -> None:
    """A line of text under a running node. Without a server (tests) or node id it does nothing."""
    server = getattr(PromptServer, "instance", None)
    if server is not None and node_id is not None:
        server.send_progress_text(text, node_id)


@contextmanager
def global_rng_kept() -> Iterator[None]:
    """Some host samplers reseed torch's global generator; here it is put back."""
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=devices):
        yield
