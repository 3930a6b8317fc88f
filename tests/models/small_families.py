"""Small checkpoints of every model family, in the official formats, filled from a seed.

    python tools/comfyui COMFYUI MODELS small_families

writes them into MODELS/checkpoints and MODELS/diffusion_models.  Each has the numbers by which
ComfyUI recognises its family and is as small as they allow; the names of its tensors are those that ComfyUI itself
gives a checkpoint when it saves one.  The networks are random: they show that a graph runs, nothing else.

Text encoders have three layers instead of up to 32, which stock loader nodes cannot know; the loader functions behind
them are told by ``TEXT_OPTIONS``.
"""
import functools
import math
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from small_models import SEED, TEXT_BRANCH, clip_tensor, save_whole, shapes, vae
from torch import Tensor, nn

T5_WORDS = 8192  # of 32128; enough for the tests' prompts
_CLIP = {"num_hidden_layers": 3, "intermediate_size": 64}
TEXT_OPTIONS = {
    "clip_l_model_config": _CLIP,
    "clip_g_model_config": _CLIP,
    "clip_h_model_config": _CLIP,
    "t5xxl_model_config": {"num_layers": 1, "num_heads": 1, "d_ff": 64, "vocab_size": T5_WORDS},
}

# What the host must find out from the weights. Width 320 and the two or three depths identify a U-Net; the rest is
# free and therefore small. SD 2.x is taken for v-prediction when its twelfth decoder block has an unusual bias.
SD = {"image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": 320, "num_heads": 8,
      "use_spatial_transformer": True, "transformer_depth_middle": 1}
SD1 = {**SD, "num_res_blocks": [1, 1], "channel_mult": [1, 1], "transformer_depth": [1, 1],
       "transformer_depth_output": [1, 1, 1, 1], "context_dim": 768}
SD2 = {**SD, "num_heads": -1, "num_head_channels": 64, "use_linear_in_transformer": True, "num_res_blocks": [1, 1],
       "channel_mult": [1, 1], "transformer_depth": [1, 1], "transformer_depth_output": [1, 1, 1, 1],
       "context_dim": 1024}
SD2_V = {**SD2, "num_res_blocks": [5, 5], "transformer_depth": [1] + [0] * 9,
         "transformer_depth_output": [1] + [0] * 11}
SDXL = {**SD, "num_heads": -1, "num_head_channels": 64, "use_linear_in_transformer": True, "num_res_blocks": [2, 2, 2],
        "channel_mult": [1, 1, 1], "context_dim": 2048, "adm_in_channels": 2816, "num_classes": "sequential",
        "transformer_depth_output": [1] + [0] * 8}
KOALA = {**SDXL, "num_res_blocks": [1, 1, 1], "transformer_depth_output": [1] + [0] * 5}
MMDIT = {"in_channels": 16, "depth": 2, "patch_size": 2, "adm_in_channels": 2048, "num_patches": 32 * 32,
         "pos_embed_max_size": 32, "qk_norm": "rms", "input_size": None,
         "context_embedder_config": {"target": "torch.nn.Linear", "params": {"in_features": 4096, "out_features": 128}}}
FLUX = {"image_model": "flux", "in_channels": 16, "out_channels": 16, "vec_in_dim": 768, "context_in_dim": 4096,
        "hidden_size": 128, "mlp_ratio": 4.0, "num_heads": 1, "depth": 1, "depth_single_blocks": 1,
        "axes_dim": [16, 56, 56], "theta": 10000, "patch_size": 2, "qkv_bias": True, "txt_ids_dims": [],
        "guidance_embed": True}


@dataclass(frozen=True)
class Small:
    """One file.

    Attributes:
        family: the host's model config class that must be recognised.
        network: which of the host's denoisers, and what it is made with.
        text: attribute of the host's text encoder module, for whole checkpoints; "" = a denoiser alone, which uses
            the text encoders and the VAE of ``relative``.
    """

    family: str
    network: str
    config: Mapping
    text: str = ""
    relative: str = ""


FILES = {
    "sd1": Small("SD15", "unet", SD1, text="sd1"),
    "sd1-no-middle": Small("SD15", "unet", {**SD1, "transformer_depth_middle": -2}, relative="sd1"),
    "sd2-v": Small("SD20", "unet", SD2_V, text="sd2"),
    "sd2-eps": Small("SD20", "unet", SD2, relative="sd2-v"),
    "sdxl": Small("SDXL", "unet", {**SDXL, "transformer_depth": [0, 0, 2, 2, 10, 10]}, text="sdxl"),
    "ssd-1b": Small("SSD1B", "unet", {**SDXL, "transformer_depth": [0, 0, 2, 2, 4, 4]}, relative="sdxl"),
    "segmind-vega": Small("Segmind_Vega", "unet", {**SDXL, "transformer_depth": [0, 0, 1, 1, 2, 2]}, relative="sdxl"),
    "koala-700m": Small("KOALA_700M", "unet", {**KOALA, "transformer_depth": [0, 2, 5]}, relative="sdxl"),
    "koala-1b": Small("KOALA_1B", "unet", {**KOALA, "transformer_depth": [0, 2, 6]}, relative="sdxl"),
    "sd3": Small("SD3", "mmdit", MMDIT, text="sd3"),
    "flux": Small("Flux", "flux", FLUX, text="flux"),
    "flux-schnell": Small("FluxSchnell", "flux", {**FLUX, "guidance_embed": False}, relative="flux"),
}


@functools.cache
def pool() -> Tensor:
    """Normal numbers that all tensors share; their count is prime, so that no two rows of a matrix are alike."""
    return torch.randn(1_000_003, generator=torch.Generator().manual_seed(SEED)).half()


def filled(key: str, shape: tuple[int, ...], gain: float = 1.0) -> Tensor:
    """Like ``small_models.filled``, ten times faster: numbers from the pool, starting at a place named by the key."""
    if len(shape) <= 1:
        return torch.full(shape, float(key.endswith("weight")), dtype=torch.float16)
    start, count = zlib.crc32(key.encode()) % len(pool()), math.prod(shape)
    numbers = pool().repeat(-(-(start + count) // len(pool())))[start:start + count]
    return numbers.view(shape) * (gain / math.sqrt(math.prod(shape[1:])))


def denoiser(small: Small) -> dict[str, Tensor]:
    """The random denoiser; it depends on its prompt."""
    import comfy.ldm.flux.model
    import comfy.ldm.modules.diffusionmodules.mmdit as mmdit
    import comfy.ldm.modules.diffusionmodules.openaimodel as openaimodel
    import comfy.ops

    kinds = {"unet": openaimodel.UNetModel, "mmdit": mmdit.MMDiT, "flux": comfy.ldm.flux.model.Flux}
    with torch.device("meta"):
        module = kinds[small.network](**small.config, dtype=torch.float16, operations=comfy.ops.disable_weight_init)
    return {k: filled(k, s) for k, s in shapes(module).items()}


def text_encoders(kind: str, options: Mapping = TEXT_OPTIONS) -> dict[str, Tensor]:
    """The text encoders of a family, in the names of the host's modules."""
    import comfy.sd1_clip
    import comfy.sdxl_clip
    import comfy.text_encoders.flux
    import comfy.text_encoders.sd2_clip
    import comfy.text_encoders.sd3_clip

    kinds: dict[str, Callable[..., nn.Module]] = {
        "sd1": comfy.sd1_clip.SD1ClipModel,
        "sd2": comfy.text_encoders.sd2_clip.SD2ClipModel,
        "sdxl": comfy.sdxl_clip.SDXLClipModel,
        "sd3": comfy.text_encoders.sd3_clip.SD3ClipModel,
        "flux": comfy.text_encoders.flux.FluxClipModel,
    }
    module = kinds[kind](device="meta", dtype=torch.float16, model_options=dict(options))
    return {k: text_tensor(k, s) for k, s in shapes(module).items() if not k.endswith("logit_scale")}


def text_tensor(key: str, shape: tuple[int, ...]) -> Tensor:
    if key.endswith("shared.weight"):
        return filled(key, shape, shape[1] ** 0.5)
    return clip_tensor(key, shape, TEXT_BRANCH, filled)


def weights(name: str) -> dict[str, Tensor]:
    """The tensors of one file of ``FILES``."""
    import comfy.supported_models

    small = FILES[name]
    config = getattr(comfy.supported_models, small.family)({"in_channels": 4})
    found = config.process_unet_state_dict_for_saving(denoiser(small))
    if small.text:
        found |= config.process_vae_state_dict_for_saving(vae(config.latent_format))
        found |= config.process_clip_state_dict_for_saving(text_encoders(small.text))
    if small.config is SD2_V:
        found["model.diffusion_model.output_blocks.11.1.transformer_blocks.0.norm1.bias"][::2] = 0.5
    return {k: v.half() for k, v in found.items()}


def file_of(name: str) -> str:
    folder = "checkpoints" if FILES[name].text else "diffusion_models"
    return f"{folder}/inst-small-{name}.safetensors"


def write(models: Path, names=tuple(FILES)) -> None:
    """Makes the files that are not there yet."""
    for name in names:
        save_whole(models / file_of(name), lambda name=name: weights(name))
