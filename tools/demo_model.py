#!/usr/bin/env python3
"""The demo checkpoint: small enough for this repository, put together on first use.

    python tools/demo_model.py SHIPPED TARGET

SHIPPED (``tools/inst-demo.int8.safetensors``) holds the trained U-Net and VAE: matrices as int8 with one scale a row,
the rest as float16.  ``join`` expands them to float16, adds a CLIP-L text encoder made from a fixed seed, and writes
TARGET, an SD1-format file that stock Load Checkpoint opens.  It needs torch and safetensors, no ComfyUI.

The text encoder has CLIP-L's shape (the host knows no other for SD 1.x) and random numbers.  What its residual branches
add is kept small beside the token, so the context at a token is little more than the layer norm of that token plus its
place: the denoiser reads a pseudo-word as it was written, and the gradient comes back to it undistorted.  The U-Net was
trained on these very numbers; the shipped file holds a few of them, so that a torch that draws others is found out.

``docs/demo_model.md`` tells how the model is trained (``train_demo_model.py``) and what from.
"""
import json
import math
import os
import sys
import zlib
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

SHIPPED = Path(__file__).with_name("inst-demo.int8.safetensors")
FORMAT = "inst-demo 1"
UNET, VAE, TEXT = "model.diffusion_model.", "first_stage_model.", "cond_stage_model.transformer.text_model."
SCALE = ".int8_scale"
PROOF = "text_encoder_proof"  # the first numbers of the text encoder's tensors
PROOF_LENGTH = 8

# CLIP-L
LAYERS, WIDTH, HIDDEN, VOCABULARY, POSITIONS = 12, 768, 3072, 49408, 77
# Its numbers. None may change once a model was trained on them.
TEXT_SEED = 20221123
TOKEN_NORM = 0.4  # of the real CLIP-L's token embeddings, on average
POSITION_NORM = 0.1
BRANCH = 0.002  # size of what one branch adds, per channel; a token's is TOKEN_NORM / sqrt(WIDTH) = 0.0144
NEUTRAL_TOKEN = 3086  # "painting": what learning starts from is the middle of the style space


# ---- the text encoder ----

def drawn(key: str, shape: tuple[int, ...], size: float) -> Tensor:
    """Gaussian numbers of this key alone; unit input gives output of about ``size`` per channel."""
    generator = torch.Generator().manual_seed(zlib.crc32(f"{TEXT_SEED}/{key}".encode()))
    return torch.randn(shape, generator=generator) * (size / math.sqrt(shape[-1]))


def neutral_style() -> Tensor:
    """(768,) of length 1: the direction that all styles have in common."""
    return torch.nn.functional.normalize(drawn("neutral", (WIDTH,), 1.0), dim=0)


def text_encoder() -> dict[str, Tensor]:
    """CLIP-L's text transformer in float16, by its keys without prefix."""
    weights = {"embeddings.token_embedding.weight": drawn("token", (VOCABULARY, WIDTH), TOKEN_NORM),
               "embeddings.position_embedding.weight": drawn("position", (POSITIONS, WIDTH), POSITION_NORM)}
    weights["embeddings.token_embedding.weight"][NEUTRAL_TOKEN] = TOKEN_NORM * neutral_style()
    for layer in range(LAYERS):
        at = f"encoder.layers.{layer}."
        for name, shape, size in (("self_attn.q_proj", (WIDTH, WIDTH), 1.0), ("self_attn.k_proj", (WIDTH, WIDTH), 1.0),
                                  ("self_attn.v_proj", (WIDTH, WIDTH), 1.0),
                                  ("self_attn.out_proj", (WIDTH, WIDTH), BRANCH),
                                  ("mlp.fc1", (HIDDEN, WIDTH), 1.0), ("mlp.fc2", (WIDTH, HIDDEN), BRANCH)):
            weights[f"{at}{name}.weight"] = drawn(f"{layer}/{name}", shape, size)
            weights[f"{at}{name}.bias"] = torch.zeros(shape[0])
        for name in ("layer_norm1", "layer_norm2"):
            weights[f"{at}{name}.weight"], weights[f"{at}{name}.bias"] = torch.ones(WIDTH), torch.zeros(WIDTH)
    weights["final_layer_norm.weight"], weights["final_layer_norm.bias"] = torch.ones(WIDTH), torch.zeros(WIDTH)
    return {k: v.half() for k, v in weights.items()}


def proof(text: dict[str, Tensor]) -> Tensor:
    """The first numbers of every matrix, (matrices * 8,)."""
    return torch.cat([text[k].flatten()[:PROOF_LENGTH] for k in sorted(text) if text[k].ndim == 2])


def check(text: dict[str, Tensor], expected: Tensor) -> None:
    """Raises ValueError when a text encoder is not the one that ``expected`` is the proof of."""
    if not torch.allclose(proof(text).float(), expected.float(), rtol=1e-2, atol=1e-6):
        raise ValueError(f"torch {torch.__version__} draws other random numbers than the demo model's text encoder was "
                         "made of. Use another version of torch, or give the demo a real checkpoint.")


# ---- int8 ----

def packed(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Matrices and kernels as int8 with a float16 scale for every output; everything else as float16.

    Rounding changes a Gaussian row by about 1 % of its size, a third of what float8 does.
    """
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


def unpacked(small: dict[str, Tensor]) -> dict[str, Tensor]:
    """What ``packed`` packed, in float16."""
    weights = {}
    for key, value in small.items():
        if key.endswith(SCALE):
            continue
        if value.dtype == torch.int8:
            scale = small[key + SCALE].float().view(-1, *[1] * (value.ndim - 1))
            value = (value.float() * scale).half()
        weights[key] = value
    return weights


# ---- files ----

def save_whole(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """The file is whole or not there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        save_file({k: v.contiguous() for k, v in tensors.items()}, partial, metadata)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def ship(path: Path, weights: dict[str, Tensor], recipe: dict) -> None:
    """Writes the file for the repository.

    Args:
        weights: of U-Net and VAE, by their keys in an SD1-format checkpoint.
        recipe: anything JSON can hold, about how they were made.
    """
    save_whole(path, packed(weights) | {PROOF: proof(text_encoder())}, {"format": FORMAT, "recipe": json.dumps(recipe)})


def join(shipped: Path, target: Path) -> None:
    """Writes the checkpoint that stock loaders open; it is whole or not there.

    Raises:
        ValueError: not a shipped file, or this torch draws another text encoder than the model was trained on.
    """
    with safe_open(shipped, "pt") as file:
        if (file.metadata() or {}).get("format") != FORMAT:
            raise ValueError(f"{shipped.name} is not a demo model of the format {FORMAT!r}.")
        small = {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118 (no dictionary)
        recipe = file.metadata()["recipe"]
    text = text_encoder()
    check(text, small.pop(PROOF))
    weights = unpacked(small)
    weights |= {TEXT + k: v for k, v in text.items()}
    save_whole(target, weights, {"modelspec.title": "InST demo", "inst.recipe": recipe})


def main() -> None:
    if len(sys.argv) != 3:
        sys.exit("usage: python tools/demo_model.py SHIPPED TARGET")
    join(Path(sys.argv[1]), Path(sys.argv[2]))


if __name__ == "__main__":
    main()
