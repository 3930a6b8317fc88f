"""The demo checkpoint's text encoder: CLIP-L's shape, random numbers from a fixed seed, branches of zero.

The host knows no other text encoder for SD 1.x.  What a transformer layer adds is multiplied by zero, so the context at
a token is the layer norm of that token plus its place: the denoiser reads a pseudo-word as it was written, its gradient
comes back undistorted, and training needs no transformer at all.

The numbers are drawn when the checkpoint is put together.  The denoiser was trained on these very numbers, so the
shipped file holds a few of each tensor (``proof``) to find out a torch that draws others.
"""
import math
import zlib
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

LAYERS, WIDTH, HIDDEN, VOCABULARY, POSITIONS = 12, 768, 3072, 49408, 77  # of CLIP-L
# None of these may change once a model was trained on them.
SEED = 20221123
TOKEN_NORM = 0.4  # of the real CLIP-L's token embeddings, on average
POSITION_NORM = 0.1
NEUTRAL_TOKEN = 3086  # "painting": what learning starts from is the middle of the style space
PROOF_LENGTH = 32

TOKENS, PLACES = "embeddings.token_embedding.weight", "embeddings.position_embedding.weight"
READING = {"self_attn.q_proj": (WIDTH, WIDTH), "self_attn.k_proj": (WIDTH, WIDTH), "self_attn.v_proj": (WIDTH, WIDTH),
           "mlp.fc1": (HIDDEN, WIDTH)}
ADDING = {"self_attn.out_proj": (WIDTH, WIDTH), "mlp.fc2": (WIDTH, HIDDEN)}


def drawn(key: str, shape: tuple[int, ...], size: float) -> Tensor:
    """Gaussian numbers of this key alone, whose rows have a length of about ``size``."""
    generator = torch.Generator().manual_seed(zlib.crc32(f"{SEED}/{key}".encode()))
    return torch.randn(shape, generator=generator) * (size / math.sqrt(shape[-1]))


def neutral_style() -> Tensor:
    """(768,) of length 1: the direction that all styles have in common."""
    return F.normalize(drawn("neutral", (WIDTH,), 1.0), dim=0)


def embeddings() -> dict[str, Tensor]:
    """The tables of tokens (49408, 768) and places (77, 768), in float32."""
    tokens = drawn("token", (VOCABULARY, WIDTH), TOKEN_NORM)
    tokens[NEUTRAL_TOKEN] = TOKEN_NORM * neutral_style()
    return {TOKENS: tokens, PLACES: drawn("position", (POSITIONS, WIDTH), POSITION_NORM)}


def text_encoder() -> dict[str, Tensor]:
    """CLIP-L's text transformer in float16, by its keys without prefix."""
    weights = embeddings()
    for layer in range(LAYERS):
        at = f"encoder.layers.{layer}."
        for name, shape in (READING | ADDING).items():
            read = name in READING
            weights[f"{at}{name}.weight"] = drawn(f"{layer}/{name}", shape, 1.0) if read else torch.zeros(shape)
            weights[f"{at}{name}.bias"] = torch.zeros(shape[0])
        for name in ("layer_norm1", "layer_norm2"):
            weights |= _norm(f"{at}{name}")
    weights |= _norm("final_layer_norm")
    return {k: v.half() for k, v in weights.items()}


def _norm(name: str) -> dict[str, Tensor]:
    return {f"{name}.weight": torch.ones(WIDTH), f"{name}.bias": torch.zeros(WIDTH)}


def proof(weights: Mapping[str, Tensor]) -> Tensor:
    """Numbers from all over every matrix, (matrices * PROOF_LENGTH,) in float16."""
    matrices = [weights[k].flatten() for k in sorted(weights) if weights[k].ndim == 2]
    return torch.cat([m[::m.numel() // PROOF_LENGTH][:PROOF_LENGTH] for m in matrices]).half()


def check(weights: Mapping[str, Tensor], expected: Tensor) -> None:
    """Raises ValueError when these are not the numbers that ``expected`` is the proof of."""
    found = proof(weights)
    if found.shape != expected.shape or not torch.allclose(found.float(), expected.float(), rtol=1e-2, atol=1e-5):
        raise ValueError(f"torch {torch.__version__} draws other random numbers than the demo model's text encoder was "
                         "made of. Use another version of torch (tools/dev.py names one), or give the demo a real "
                         "checkpoint with --checkpoint.")
