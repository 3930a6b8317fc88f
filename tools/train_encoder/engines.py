"""The frozen models that an encoder is trained through: the host's own, or the demo model as narrow as it was trained.

An engine knows the starting words, encodes pictures, and gives the denoiser's loss under pseudo-words.
"""
import argparse
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Protocol

import torch
from comfyui.in_process import use_comfyui
from demo_model import checkpoint, networks, prompts
from torch import Tensor

DEMO = "demo"
THINGS = prompts.THINGS  # words for what pictures show, which a style is not to hold


class Engine(Protocol):
    """
    Attributes:
        family, base_model: what it guesses for.
        widths: {text encoder key: width}.
    """

    family: str
    base_model: str
    widths: dict[str, int]

    def words(self, text: str) -> dict[str, Tensor]:
        """Starting words, {key: (1, width)}."""

    def encode(self, pictures: Tensor) -> Tensor:
        """Latents in model space of pictures (P, H, W, 3) in [0, 1], all of one size."""

    def losses(self, latent: Tensor, noise: Tensor, time: Tensor, vectors: Mapping[str, Tensor],
               captions: Sequence[str]) -> Tensor:
        """(B,) mean squared errors of the denoiser, each under its own pseudo-words {key: (B, n, width)}."""

    def recording(self) -> AbstractContextManager:
        """In which ``losses`` and its backward pass run."""


class NarrowDemo:
    """The demo model before it was widened: same numbers, a quarter of the work (``docs/demo_model.md``)."""

    family, base_model, widths = "SD15", "inst-demo.safetensors", {"clip_l": prompts.text.WIDTH}

    def __init__(self, device: torch.device):
        networks.host(device.type == "cpu")
        shipped = checkpoint.open_shipped()
        self.space, self._device = prompts.StyleSpace.read(shipped.space), device
        self._reader = prompts.Reader(self.space)
        self._unet = networks.build_unet(own_places=self._reader.prompts.own_places)
        self._unet.load_state_dict(shipped.unet)
        self._unet.requires_grad_(False).to(device)
        self._autoencoder = networks.build_autoencoder()
        self._autoencoder.load_state_dict(shipped.autoencoder)
        self._autoencoder.requires_grad_(False)

    def words(self, text: str) -> dict[str, Tensor]:
        ids = [i for i in self._reader.prompts.tokens_of(text) if i not in (49406, 49407)]
        mean = self._reader.tokens[ids].mean(0) if ids else self.space.neutral_word()
        return {"clip_l": prompts.text.TOKEN_NORM * torch.nn.functional.normalize(mean, dim=0)[None]}

    def told(self, numbers: Tensor) -> Tensor:
        """(B, 768) words that the teacher's numbers (B, 100) are told as."""
        return self.space.words(numbers)

    @torch.no_grad()
    def encode(self, pictures: Tensor) -> Tensor:
        return networks.encoded(self._autoencoder, pictures.permute(0, 3, 1, 2))

    def losses(self, latent: Tensor, noise: Tensor, time: Tensor, vectors: Mapping[str, Tensor],
               captions: Sequence[str] = ()) -> Tensor:
        timestep = (1000 * time).long().clamp(max=999)
        rows = torch.full((len(latent),), self._reader.prompts.star)
        context = self._reader.of_rows(rows, vectors["clip_l"].cpu()).to(self._device)
        x = latent + networks.noise_levels().to(latent)[timestep].view(-1, 1, 1, 1) * noise
        predicted = networks.predicted_noise(self._unet, x, timestep, context)
        return (predicted - noise).square().mean((1, 2, 3))

    recording = staticmethod(nullcontext)


class Host:
    """Any checkpoint, through the host's own code as Learn InST Style uses it."""

    def __init__(self, session, clip, parts):
        from inst_core import host

        self._session, self._clip, (self._model, self._vae, self._text_of) = session, clip, parts
        self.family, self.base_model = host.families.family_of(self._model), host.families.source_of(self._model)
        self.widths = host.text.text_widths(clip)

    def words(self, text: str) -> dict[str, Tensor]:
        from inst_core import host

        return host.text.word_vectors(self._clip, text)

    @torch.no_grad()
    def encode(self, pictures: Tensor) -> Tensor:
        from inst_core import host

        return host.vision.encode_latent(self._vae, self._model, pictures)

    def losses(self, latent: Tensor, noise: Tensor, time: Tensor, vectors: Mapping[str, Tensor],
               captions: Sequence[str] = ()) -> Tensor:
        from inst_core.bank import Batch
        from inst_core.objective import squared_error

        parts = []
        for i in range(len(latent)):  # prompts of some text encoders differ in length
            text = self._text_of(captions[i] if captions else "")
            conditioning = text.encode({k: v[i] for k, v in vectors.items()})
            parts.append(squared_error(self._session.denoiser, Batch(latent[i:i + 1], noise[i:i + 1], time[i:i + 1]),
                                       conditioning, self._session.device)[0].flatten(1).mean(1))
        return torch.cat(parts)

    def recording(self) -> AbstractContextManager:
        return self._session.text.recording()


@contextmanager
def opened(options: argparse.Namespace, device: torch.device) -> Iterator[Engine]:
    """The engine of ``--model``: "demo", or a checkpoint file."""
    if str(options.model) == DEMO:
        yield NarrowDemo(device)
        return
    use_comfyui(device.type == "cpu")
    import comfy.sd

    from inst_core import host
    from inst_core.host.training import TextEncoder

    model, clip, vae = comfy.sd.load_checkpoint_guess_config(str(options.model))[:3]
    host.parts.check_learnable(model, clip, vae)
    with host.training.training_session(model, clip, "*", options.tokens) as session:
        copy = session.text._clip

        def text_of(caption: str) -> TextEncoder:
            return TextEncoder(copy, f"{caption}, *" if caption else "*", options.tokens, session.text._load)

        yield Host(session, clip, (model, vae, text_of))

