"""Similarity of whole pictures: CLIP (Radford et al. 2021) and CSD (Measuring Style Similarity, Somepalli et al. 2024).

Both are the same vision transformer; CSD's was tuned so that pictures of one artist come close.
"""
import re
from collections.abc import Callable, Mapping

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from ..preprocess import clip_square
from .alexnet import check_tensors

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
HEAD = 64  # channels of an attention head

StateDict = Mapping[str, Tensor]
Embedder = Callable[[Tensor], Tensor]

# OpenAI's names of what torch's own transformer layer has, then transformers' names of the same.
_LAYER = {"self_attn.in_proj_": "attn.in_proj_", "self_attn.out_proj.": "attn.out_proj.", "norm1.": "ln_1.",
          "norm2.": "ln_2.", "linear1.": "mlp.c_fc.", "linear2.": "mlp.c_proj."}
_TRANSFORMERS = {
    "embeddings.class_embedding": "class_embedding",
    "embeddings.position_embedding.weight": "positional_embedding",
    "embeddings.patch_embedding.weight": "conv1.weight",
    "pre_layrnorm.": "ln_pre.",
    "post_layernorm.": "ln_post.",
    "encoder.layers.": "transformer.resblocks.",
    "layer_norm1.": "ln_1.",
    "layer_norm2.": "ln_2.",
    "mlp.fc1.": "mlp.c_fc.",
    "mlp.fc2.": "mlp.c_proj.",
    "self_attn.out_proj.": "attn.out_proj.",
}


def quick_gelu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(1.702 * x)


def openai_names(state_dict: StateDict) -> dict[str, Tensor]:
    """The vision half of a ``transformers`` CLIP file with OpenAI's names; the projection is called ``proj``."""
    found: dict[str, Tensor] = {}
    for key, value in state_dict.items():
        if not key.startswith("vision_model."):
            continue
        name = key.removeprefix("vision_model.")
        for theirs, ours in _TRANSFORMERS.items():
            name = name.replace(theirs, ours)
        found[name] = value
    for prefix, kind in {(m[1], m[2]) for k in found if (m := re.match(r"(.*\.)self_attn\.q_proj\.(weight|bias)", k))}:
        parts = [found.pop(f"{prefix}self_attn.{part}_proj.{kind}") for part in "qkv"]
        found[f"{prefix}attn.in_proj_{kind}"] = torch.cat(parts)
    if "visual_projection.weight" in state_dict:
        found["proj"] = state_dict["visual_projection.weight"].T
    return found


class VisionTransformer(nn.Module):
    """CLIP's picture encoder with any depth, width and patch size: (B, 3, S, S), normalised -> (B, width).

    Args:
        state_dict: OpenAI's names.

    Raises:
        ValueError: tensors that are missing.
    """

    def __init__(self, state_dict: StateDict, source: str):
        super().__init__()
        depth = len({k.split(".")[2] for k in state_dict if k.startswith("transformer.resblocks.")})
        width = state_dict["conv1.weight"].shape[0] if "conv1.weight" in state_dict else HEAD
        with torch.device("meta"):
            layer = nn.TransformerEncoderLayer(width, max(1, width // HEAD), 4 * width, 0.0, quick_gelu,
                                               batch_first=True, norm_first=True)
            self.layers = nn.TransformerEncoder(layer, depth, enable_nested_tensor=False)
            self.ln_pre, self.ln_post = nn.LayerNorm(width), nn.LayerNorm(width)
        renamed = {self._name(k): v.detach().float() for k, v in state_dict.items()}
        expected = {k: tuple(v.shape) for k, v in self.state_dict().items()}
        kernel = tuple(renamed["conv1.weight"].shape) if "conv1.weight" in renamed else (width, 3, 14, 14)
        expected |= {"class_embedding": (width,), "conv1.weight": kernel}
        check_tensors(renamed, expected, "a CLIP vision transformer", source)
        self.load_state_dict({k: renamed[k] for k in self.state_dict()}, assign=True)
        for name in ("class_embedding", "positional_embedding"):
            self.register_buffer(name, renamed[name])
        self.register_buffer("patches", renamed["conv1.weight"])
        self.eval().requires_grad_(False)

    @staticmethod
    def _name(key: str) -> str:
        key = key.replace("transformer.resblocks.", "layers.layers.")
        for ours, theirs in _LAYER.items():
            key = key.replace(theirs, ours)
        return key

    @property
    def size(self) -> int:
        """Side in pixels of the square pictures that it takes."""
        return round((len(self.positional_embedding) - 1) ** 0.5) * self.patches.shape[-1]

    def forward(self, x: Tensor) -> Tensor:
        x = rearrange(F.conv2d(x, self.patches, stride=self.patches.shape[-1]), "b c h w -> b (h w) c")
        x = torch.cat([self.class_embedding.expand(len(x), 1, -1), x], 1) + self.positional_embedding
        return self.ln_post(self.layers(self.ln_pre(x))[:, 0])


def _embedder(transformer: VisionTransformer, projection: Tensor) -> Embedder:
    """Pictures (B, 3, H, W) in [0, 1] -> unit vectors (B, D)."""
    def embed(pictures: Tensor) -> Tensor:
        squares = clip_square(rearrange(pictures, "b c h w -> b h w c"), transformer.size)
        x = rearrange(squares, "b h w c -> b c h w").to(projection)
        mean, std = (x.new_tensor(values).view(1, 3, 1, 1) for values in (MEAN, STD))
        return F.normalize(transformer((x - mean) / std) @ projection, dim=1)
    return embed


def load_clip(state_dict: StateDict, device: torch.device | str = "cpu") -> Embedder:
    """CLIP's picture embedding from a CLIP vision file, in OpenAI's or in ``transformers``' names.

    Raises:
        ValueError: not such a file.
    """
    source = "clip-vit-large-patch14.safetensors"
    weights = {k.removeprefix("visual."): v for k, v in state_dict.items()}
    weights = openai_names(weights) if any(k.startswith("vision_model.") for k in weights) else weights
    transformer = VisionTransformer(weights, source)
    check_tensors(weights, {"proj": (transformer.patches.shape[0], *weights["proj"].shape[1:])} if "proj" in weights
                  else {"proj": ()}, "CLIP's projection", source)
    return _embedder(transformer.to(device), weights["proj"].detach().float().to(device))


def load_csd(state_dict: StateDict, device: torch.device | str = "cpu") -> Embedder:
    """CSD's style descriptor from the authors' checkpoint (its ``model_state_dict``).

    Raises:
        ValueError: not such a file.
    """
    source = "CSD's checkpoint.pth, or pytorch_model.bin of tomg-group-umd/CSD-ViT-L"
    weights = {k.removeprefix("module."): v for k, v in state_dict.items()}
    backbone = {k.removeprefix("backbone."): v for k, v in weights.items() if k.startswith("backbone.")}
    transformer, head = VisionTransformer(backbone, source), "last_layer_style"
    width = transformer.patches.shape[0]
    outputs = weights[head].shape[1:] if head in weights else ()
    check_tensors(weights, {head: (width, *outputs)}, "CSD's style head", source)
    return _embedder(transformer.to(device), weights[head].detach().float().to(device))


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """Similarity of embeddings (B, D), (B,) in [-1, 1]."""
    return F.cosine_similarity(a, b, dim=1)
