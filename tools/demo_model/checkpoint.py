"""The demo checkpoint: small enough for this repository, put together on first use.

``ship`` writes the file of this repository: the narrow U-Net as int8 with one scale a row, the autoencoder and the
space of styles as float16, a checksum, and the recipe.  ``join`` writes from it the SD1-format file that stock Load
Checkpoint opens: widened, padded, with the text encoder drawn from its seed.  Both need torch and safetensors, no
ComfyUI.
"""
import argparse
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from whole import read_tensors, save_tensors

from . import text, widen

SHIPPED = Path(__file__).with_name("inst-demo.int8.safetensors")
FORMAT = "inst-demo 2"
UNET, VAE, TEXT = "model.diffusion_model.", "first_stage_model.", "cond_stage_model.transformer.text_model."
TAESD = "taesd_"  # what the host calls the two halves of the autoencoder
LATENT_SCALE = 0.18215  # of SD 1.x: the host divides by it, and the autoencoder's latents already have unit size
SPACE = "style_space."
SCALE = ".int8_scale"
SIDE = 256  # px; of the pictures it was trained on
PROOF = "text_encoder_proof"
AGAIN = "Fetch it again: 'git checkout -- tools/demo_model/inst-demo.int8.safetensors'."


# ---- int8 ----

def packed(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Matrices and kernels as int8 with a float16 scale for every output; everything else as float16."""
    small = {}
    for key, value in weights.items():
        if value.ndim < 2:
            small[key] = value.half()
            continue
        rows = value.float().flatten(1)
        scale = (rows.abs().amax(1, keepdim=True) / 127).clamp_min(1e-7).half()
        small[key] = (rows / scale.float()).round().clamp(-127, 127).to(torch.int8).view_as(value)
        small[key + SCALE] = scale.flatten()
    return small


def unpacked(small: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What ``packed`` packed: float32 tensors of numbers that float16 can hold."""
    weights = {}
    for key, value in small.items():
        if key.endswith(SCALE):
            continue
        value = value.float()
        if key + SCALE in small:
            value = value * small[key + SCALE].float().view(-1, *[1] * (value.ndim - 1))
        weights[key] = value.half().float()
    return weights


# ---- the shipped file ----

def checksum(tensors: Mapping[str, Tensor], *texts: str) -> str:
    """SHA-256 over names, shapes, types and bytes of all tensors, and over the texts."""
    digest = hashlib.sha256("\n".join(texts).encode())
    for key in sorted(tensors):
        value = tensors[key].contiguous()
        digest.update(f"{key} {tuple(value.shape)} {value.dtype}".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


@dataclass(frozen=True)
class Shipped:
    """What the file of this repository holds, as float32 tensors.

    Attributes:
        unet, autoencoder: the narrow networks, by their own keys.
        space: ``mean`` and ``map`` of the space of styles, for telling a style by the teacher's numbers.
        proof: of the text encoder.
        recipe: JSON text, how all was made.
    """

    unet: dict[str, Tensor]
    autoencoder: dict[str, Tensor]
    space: dict[str, Tensor]
    proof: Tensor
    recipe: str


def ship(path: Path, unet: Mapping[str, Tensor], autoencoder: Mapping[str, Tensor], space: Mapping[str, Tensor],
         recipe: Mapping) -> None:
    """Writes the file for the repository: see ``Shipped``; ``recipe`` is anything that JSON can hold."""
    tensors = packed({UNET + k: v for k, v in unet.items()})
    tensors |= {VAE + k: v.half() for k, v in autoencoder.items()} | {SPACE + k: v.half() for k, v in space.items()}
    tensors[PROOF] = text.proof(text.text_encoder())
    told = json.dumps(recipe, sort_keys=True)
    save_tensors(path, tensors, {"format": FORMAT, "recipe": told, "sha256": checksum(tensors, FORMAT, told)})


def open_shipped(path: Path = SHIPPED) -> Shipped:
    """
    Raises:
        ValueError: not there, another file, cut, or altered.
    """
    tensors, metadata = read_tensors(path)
    if metadata.get("format") != FORMAT:
        raise ValueError(f"{path} is no demo model of the format {FORMAT!r}. {AGAIN}")
    if metadata.get("sha256") != checksum(tensors, FORMAT, metadata.get("recipe", "")):
        raise ValueError(f"{path} was altered: its checksum does not fit. {AGAIN}")
    proof = tensors.pop(PROOF)
    weights = unpacked(tensors)
    parts = [{k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)}
             for prefix in (UNET, VAE, SPACE)]
    return Shipped(*parts, proof, metadata["recipe"])


# ---- the checkpoint ----

def join(shipped: Path, target: Path) -> None:
    """Writes the checkpoint that stock loaders open.

    Raises:
        ValueError: no whole shipped file, or this torch draws another text encoder than the model was trained on.
    """
    held, encoder = open_shipped(shipped), text.text_encoder()
    text.check(encoder, held.proof)
    weights = {UNET + k: v for k, v in widen.widened(held.unet).items()}
    weights |= {f"{VAE}{TAESD}{k}": v for k, v in widen.padded(held.autoencoder).items()}
    weights |= {VAE + "vae_scale": torch.tensor(LATENT_SCALE), VAE + "vae_shift": torch.tensor(0.0)}
    weights |= {TEXT + k: v for k, v in encoder.items()}
    save_tensors(target, {k: v if in_full(k, v) else v.half() for k, v in weights.items()},
                 {"modelspec.title": "InST demo", "modelspec.resolution": f"{SIDE}x{SIDE}", "inst.recipe": held.recipe})


def make(options: argparse.Namespace) -> None:
    """The stage that writes the checkpoint."""
    join(options.shipped, options.target)
    print(f"[join] {options.target}")


def export(options: argparse.Namespace) -> None:
    """The stage that writes the file for the repository, from the weights of a folder."""
    parts, about = zip(*(read_tensors(options.folder / f"{name}.safetensors") for name in ("unet", "vae", "space")),
                       strict=True)
    ship(SHIPPED, *parts, {"unet": about[0], "vae": about[1]})
    print(f"[export] {SHIPPED}: {SHIPPED.stat().st_size / 1e6:.1f} MB")


def in_full(key: str, weight: Tensor) -> bool:
    """Whether rounding to float16 would change what is computed: scalars, and queries, which widening divides by a
    number that is no power of two."""
    return weight.ndim == 0 or key.startswith(UNET) and key.endswith(".to_q.weight")
