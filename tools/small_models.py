"""Small models in the official formats, filled from a seed, so that real graphs run without a download.

    python tools/small_models.py COMFYUI MODELS

writes into the folder MODELS: an SD1-format checkpoint (a U-Net with two levels instead of four, a TAESD-shaped VAE,
a full CLIP-L), a CLIP ViT-L/14 vision model, a LoRA and a ControlNet.  Stock loaders open them.  The weights mean
nothing: a picture made with them only proves the wiring.

The tensors' names and shapes come from ComfyUI's own modules; only the numbers are made here.
"""
import math
import os
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

SEED = 0
UNET = dict(image_size=32, in_channels=4, model_channels=320, num_res_blocks=[1, 1], channel_mult=[1, 1], num_heads=8,
            use_spatial_transformer=True, transformer_depth=[1, 1], transformer_depth_middle=1, context_dim=768)
RESIDUAL = 0.02  # scale of the branches that CLIP's layers add: gradients then reach the token through 12 of them
TOKEN_NORM = 0.4  # mean norm of the real CLIP-L's token embeddings
VERSION = "1"  # change it when the numbers below change: it is part of the stamp


def generator(key: str):
    import torch

    return torch.Generator().manual_seed(zlib.crc32(f"{SEED}/{key}".encode()))


def filled(key: str, shape, gain: float = 1.0):
    """Norms 1, biases 0, everything else Gaussian with unit gain."""
    import torch

    if len(shape) <= 1:
        return torch.ones(shape) if key.endswith("weight") else torch.zeros(shape)
    fan_in = math.prod(shape[1:])
    return torch.randn(shape, generator=generator(key)) * (gain / math.sqrt(fan_in))


def text_tensor(key: str, shape):
    import torch

    if "embedding" in key:
        norm = TOKEN_NORM if "token" in key else TOKEN_NORM / 4
        return torch.randn(shape, generator=generator(key)) * (norm / math.sqrt(shape[-1]))
    return filled(key, shape, RESIDUAL if key.endswith(("out_proj.weight", "fc2.weight")) else 1.0)


def shapes(module, prefix: str = "") -> dict:
    return {prefix + k: tuple(v.shape) for k, v in module.state_dict().items()}


def checkpoint() -> dict:
    """SD1 format: ``model.diffusion_model``, ``cond_stage_model.transformer``, ``first_stage_model``."""
    import comfy.ops
    import comfy.sd1_clip
    import torch
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
    from comfy.taesd.taesd import TAESD

    with torch.device("meta"):
        unet = UNetModel(**UNET, out_channels=4, transformer_depth_output=[1, 1, 1, 1], dtype=torch.float16,
                         operations=comfy.ops.disable_weight_init)
        text = comfy.sd1_clip.SD1ClipModel(device="meta", dtype=torch.float16).clip_l.transformer.text_model
    vae = TAESD(latent_channels=4)
    weights = {k: filled(k, s) for k, s in shapes(unet, "model.diffusion_model.").items()}
    weights |= {k: text_tensor(k, s) for k, s in shapes(text, "cond_stage_model.transformer.text_model.").items()}
    vae_weights = {f"first_stage_model.{k}": v for k, v in vae.state_dict().items()}
    weights |= {k: v if "vae_s" in k else filled(k, tuple(v.shape)) for k, v in vae_weights.items()}
    return {k: v.half().contiguous() for k, v in weights.items()}


def clip_vision() -> dict:
    """CLIP ViT-L/14 in ``transformers`` naming. The host knows this size only, so it is full-sized."""
    import json

    import comfy.clip_model
    import comfy.clip_vision
    import comfy.ops
    import torch

    config = json.loads(Path(comfy.clip_vision.__file__).with_name("clip_vision_config_vitl.json").read_text())
    with torch.device("meta"):
        model = comfy.clip_model.CLIPVisionModelProjection(config, torch.float16, "meta", comfy.ops.disable_weight_init)
    return {k: text_tensor(k, s).half() for k, s in shapes(model).items()}


def lora(rank: int = 4) -> dict:
    """kohya naming, on two U-Net and two text encoder layers."""
    layers = {
        "lora_unet_input_blocks_1_1_transformer_blocks_0_attn2_to_v": (320, 768),
        "lora_unet_middle_block_1_transformer_blocks_0_attn1_to_q": (320, 320),
        "lora_te_text_model_encoder_layers_0_mlp_fc1": (3072, 768),
        "lora_te_text_model_encoder_layers_3_self_attn_v_proj": (768, 768),
    }
    weights = {}
    for name, (rows, columns) in layers.items():
        weights[f"{name}.lora_up.weight"] = filled(f"{name}.up", (rows, rank), 2.0).half()
        weights[f"{name}.lora_down.weight"] = filled(f"{name}.down", (rank, columns)).half()
    return weights


def controlnet() -> dict:
    """cldm naming, for the small U-Net; its zero convolutions are not zero, so it acts."""
    import comfy.cldm.cldm
    import comfy.ops
    import torch

    with torch.device("meta"):
        model = comfy.cldm.cldm.ControlNet(**UNET, hint_channels=3, dtype=torch.float16,
                                           operations=comfy.ops.disable_weight_init)
    return {f"control_model.{k}": filled(k, s, 0.5).half() for k, s in shapes(model).items()}


FILES: dict[str, Callable[[], dict]] = {
    "checkpoints/inst-small.safetensors": checkpoint,
    "clip_vision/inst-small-vit-l.safetensors": clip_vision,
    "loras/inst-small-lora.safetensors": lora,
    "controlnet/inst-small-controlnet.safetensors": controlnet,
}


def write(models: Path) -> None:
    """Makes the files that are not there yet; each is whole or not there."""
    from safetensors.torch import save_file

    for name, make in FILES.items():
        path = models / name
        if path.exists():
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        save_file({k: v.contiguous() for k, v in make().items()}, partial)
        os.replace(partial, path)


def main() -> None:
    comfyui, models = sys.argv[1:]
    sys.path.insert(0, comfyui)
    from comfy.cli_args import args

    args.cpu = True
    write(Path(models))


if __name__ == "__main__":
    main()
