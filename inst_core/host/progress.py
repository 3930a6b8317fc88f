"""What the user sees while a node works, and how they stop it."""
from collections.abc import Iterator
from contextlib import contextmanager

import comfy.model_management
import comfy.utils
import latent_preview
import torch
from PIL import Image
from server import PromptServer
from torch import Tensor

PREVIEW_PIXELS = 512
STRIP_PICTURES = 4


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
