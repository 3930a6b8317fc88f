"""Small models in the official formats, filled from a seed, so that real graphs run without a download.

    python tools/comfyui COMFYUI MODELS small_models

writes into the folder MODELS: an SD1-format checkpoint (a U-Net with two levels instead of four, a TAESD-shaped VAE,
a full CLIP-L), a CLIP ViT-L/14 vision model, a LoRA and a ControlNet; and a ControlNet in the shape of the demo
checkpoint's U-Net (``tools/demo_model``), which the LoRA fits as well.  Stock loaders open them.

The tensors' names and shapes come from ComfyUI's own modules; only the numbers are made here.  Most are random, and
no picture made with them is a style transfer.  Two things are built by hand, so that what goes in can be seen in what
comes out and a wire that is missing shows: the VAE turns 8 x 8 pixels into their mean colour and back, and the U-Net's
prediction is its own input (the noise, where noise dominates) plus a random network that listens to the prompt.
"""
import math
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from whole import save_tensors

SEED = 0
UNET = dict(image_size=32, in_channels=4, model_channels=320, num_res_blocks=[1, 1], channel_mult=[1, 1], num_heads=8,
            use_spatial_transformer=True, transformer_depth=[1, 1], transformer_depth_middle=1, context_dim=768)
DEMO_UNET = UNET | dict(num_res_blocks=[1, 1, 1], channel_mult=[1, 1, 1], transformer_depth=[0, 1, 1])
# Scales of the branches that a transformer's layers add. In the text encoder gradients reach the token through
# twelve of them; in the vision model the picture reaches the class token through them.
TEXT_BRANCH, VISION_BRANCH = 0.02, 1.0
VAE_BRANCH = 0.02
TOKEN_NORM = 0.4  # mean norm of the real CLIP-L's token embeddings
PASSING = 40  # U-Net channels that carry the input to the output: four whole groups of the last GroupNorm
RANDOM_PART = 0.25  # size of the random network in the prediction, beside the input's 1


def filled(key: str, shape: tuple[int, ...], gain: float = 1.0) -> Tensor:
    """Norms 1, biases 0, everything else Gaussian such that unit input gives output of size ``gain``."""
    if len(shape) <= 1:
        return torch.ones(shape) if key.endswith("weight") else torch.zeros(shape)
    generator = torch.Generator().manual_seed(zlib.crc32(f"{SEED}/{key}".encode()))
    return torch.randn(shape, generator=generator) * (gain / math.sqrt(math.prod(shape[1:])))


def clip_tensor(key: str, shape: tuple[int, ...], branch: float, fill: Callable = filled) -> Tensor:
    """One tensor of a CLIP text or vision transformer."""
    if key.endswith("token_embedding.weight"):
        return fill(key, shape, TOKEN_NORM)
    if key.endswith("position_embedding.weight"):
        return fill(key, shape, TOKEN_NORM / 4)
    return fill(key, shape, branch if key.endswith(("out_proj.weight", "fc2.weight")) else 1.0)


def shapes(module: torch.nn.Module, prefix: str = "") -> dict[str, tuple[int, ...]]:
    return {prefix + k: tuple(v.shape) for k, v in module.state_dict().items()}


def unet() -> dict[str, Tensor]:
    """A U-Net whose prediction is its input plus ``RANDOM_PART`` of a random network's.

    The input rides through the last block in pairs of channels of opposite sign: SiLU(x) - SiLU(-x) = x.
    """
    import comfy.ops
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

    with torch.device("meta"):
        model = UNetModel(**UNET, out_channels=4, transformer_depth_output=[1, 1, 1, 1], dtype=torch.float16,
                          operations=comfy.ops.disable_weight_init)
    weights = {k: filled(k, s) for k, s in shapes(model).items()}
    weights["out.2.weight"] *= RANDOM_PART
    last, copies = "output_blocks.3.", PASSING // 8
    for added in ("0.out_layers.3.weight", "0.skip_connection.weight", "1.proj_out.weight"):
        weights[last + added][:PASSING] = 0
    for channel in range(PASSING):
        latent, sign = channel // 2 % 4, (-1) ** channel
        weights["input_blocks.0.0.weight"][channel] = 0
        weights["input_blocks.0.0.weight"][channel, latent, 1, 1] = sign
        weights[last + "0.skip_connection.weight"][channel, UNET["model_channels"] + channel] = 1
        weights["out.2.weight"][:, channel] = 0
        weights["out.2.weight"][latent, channel, 1, 1] = sign / copies
    return weights


def vae(latent_format) -> dict[str, Tensor]:
    """A VAE whose latent is the mean colour of 8 x 8 pixels, in the basis of the host's own latent previews.

    Red, green and blue travel in the first three channels, which no ReLU touches since they are in [0, 1].
    """
    from comfy.taesd.taesd import TAESD

    to_rgb = torch.tensor(latent_format.latent_rgb_factors)  # (C, 3): model-space latent -> colour in [-1, 1]
    from_rgb = torch.linalg.pinv(to_rgb)  # (3, C)
    with torch.device("meta"):
        model = TAESD(latent_channels=latent_format.latent_channels)
    weights = {k: filled(k, s, VAE_BRANCH if k.endswith("conv.4.weight") else 1.0) for k, s in shapes(model).items()}
    for key, weight in weights.items():
        if weight.ndim == 4 and ".conv." not in key:  # the layers between the residual blocks
            weight.zero_()
            weight[range(3), range(3), 1, 1] = 1
    for key in ("taesd_encoder.2.weight", "taesd_encoder.6.weight", "taesd_encoder.10.weight"):  # halve the picture
        weights[key].zero_()
        weights[key][range(3), range(3), 1:, 1:] = 1 / 4
    weights["taesd_encoder.14.weight"].zero_()[:, :3, 1, 1] = 2 * from_rgb.T
    weights["taesd_encoder.14.bias"] = -from_rgb.sum(0)
    weights["taesd_decoder.1.weight"].zero_()[:3, :, 1, 1] = to_rgb.T / 2
    weights["taesd_decoder.1.bias"][:3] = 0.5
    shift = getattr(latent_format, "shift_factor", 0.0)
    return weights | {"vae_scale": torch.tensor(latent_format.scale_factor), "vae_shift": torch.tensor(shift)}


def checkpoint() -> dict[str, Tensor]:
    """SD1 format: ``model.diffusion_model``, ``cond_stage_model.transformer``, ``first_stage_model``."""
    import comfy.sd1_clip
    from comfy.latent_formats import SD15

    text = comfy.sd1_clip.SD1ClipModel(device="meta", dtype=torch.float16).clip_l.transformer.text_model
    return {
        **{f"model.diffusion_model.{k}": v.half() for k, v in unet().items()},
        **{f"first_stage_model.{k}": v.half() for k, v in vae(SD15()).items()},
        **{k: clip_tensor(k, s, TEXT_BRANCH).half()
           for k, s in shapes(text, "cond_stage_model.transformer.text_model.").items()},
    }


def clip_vision() -> dict[str, Tensor]:
    """CLIP ViT-L/14 in ``transformers`` naming. The host knows this size only, so it is full-sized."""
    import json

    import comfy.clip_model
    import comfy.clip_vision
    import comfy.ops

    config = json.loads(Path(comfy.clip_vision.__file__).with_name("clip_vision_config_vitl.json").read_text())
    with torch.device("meta"):
        model = comfy.clip_model.CLIPVisionModelProjection(config, torch.float16, "meta", comfy.ops.disable_weight_init)
    return {k: clip_tensor(k, s, VISION_BRANCH).half() for k, s in shapes(model).items()}


def lora(rank: int = 4) -> dict[str, Tensor]:
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


def controlnet(unet: dict = UNET) -> dict[str, Tensor]:
    """cldm naming, for a U-Net of this shape; its zero convolutions are not zero, so it acts."""
    import comfy.cldm.cldm
    import comfy.ops

    with torch.device("meta"):
        model = comfy.cldm.cldm.ControlNet(**unet, hint_channels=3, dtype=torch.float16,
                                           operations=comfy.ops.disable_weight_init)
    return {f"control_model.{k}": filled(k, s, 0.5).half() for k, s in shapes(model).items()}


FILES: dict[str, Callable[[], dict[str, Tensor]]] = {
    "checkpoints/inst-small.safetensors": checkpoint,
    "clip_vision/inst-small-vit-l.safetensors": clip_vision,
    "loras/inst-small-lora.safetensors": lora,
    "controlnet/inst-small-controlnet.safetensors": controlnet,
    "controlnet/inst-small-demo-controlnet.safetensors": partial(controlnet, DEMO_UNET),
}


def save_whole(path: Path, make: Callable[[], dict[str, Tensor]]) -> None:
    """Makes a file unless it is there; it is whole or not there."""
    if not path.exists():
        save_tensors(path, make())


def write(models: Path) -> None:
    """Makes the files that are not there yet."""
    for name, make in FILES.items():
        save_whole(models / name, make)
