"""A small StyleShot in the official names, filled from a seed, for the U-Net of ``small_models.py``.

    python tools/comfyui COMFYUI MODELS small_styleshot

writes two files of 50 MB together into MODELS/style_transfer.  Load StyleShot opens them as it opens the released ones,
which are a hundred times larger.  The networks are random: the result shows that the style picture matters, not what
StyleShot would paint.
"""
from collections.abc import Callable
from pathlib import Path

import torch
from small_models import UNET, filled, save_whole, shapes
from torch import Tensor

FOLDER = "style_transfer"
WIDTH, HIDDEN, LAYERS, EMBED = 64, 128, 2, 32  # released: 1280, 5120, 32, 1024
TOKENS, CONTEXT = 2, 768
CROSS_ATTENTIONS = 7  # of the small U-Net, all of its one width
HINT_GAIN = 2.0  # keeps the control image's size through eight layers of convolution and SiLU

# Residual blocks for patches of 128, 64 and 32 px: channels as multiples of the first convolution's.
BLOCKS = ((1, 2, 2, 2, 4, 4), (1, 2, 2, 4, 4), (1, 2, 4, 4))


def layer(name: str, *shape: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": shape, f"{name}.bias": shape[:1]}


def patch_encoder(name: str, blocks: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    base = inputs = WIDTH // 4
    found = layer(f"{name}.conv_in", base, 3 * 8 * 8, 3, 3) | layer(f"{name}.adapter", WIDTH, WIDTH)
    for i, outputs in enumerate(base * multiple for multiple in blocks):
        if inputs != outputs:
            found |= layer(f"{name}.body.{i}.in_conv", outputs, inputs, 1, 1)
        found |= layer(f"{name}.body.{i}.block1", outputs, outputs, 3, 3)
        found |= layer(f"{name}.body.{i}.block2", outputs, outputs, 1, 1)
        inputs = outputs
    return found


def encoder() -> dict[str, Tensor]:
    """``style_aware_encoder.bin``, without the parts of CLIP that StyleShot does not use."""
    found = {f"style_embeddings.{i}": (WIDTH,) for i in range(3)}
    found["position_embedding.weight"] = (3 + 8 + 16 + 32, WIDTH)
    for i, blocks in enumerate(BLOCKS):
        found |= patch_encoder(f"cnn.{i}", blocks)
    clip = "image_encoder.vision_model"
    for name in ("pre_layrnorm", "post_layernorm"):
        found |= layer(f"{clip}.{name}", WIDTH)
    for i in range(LAYERS):
        one = f"{clip}.encoder.layers.{i}"
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            found |= layer(f"{one}.self_attn.{name}", WIDTH, WIDTH)
        found |= layer(f"{one}.mlp.fc1", HIDDEN, WIDTH) | layer(f"{one}.mlp.fc2", WIDTH, HIDDEN)
        found |= layer(f"{one}.layer_norm1", WIDTH) | layer(f"{one}.layer_norm2", WIDTH)
    found |= {"image_encoder.visual_projection.weight": (EMBED, WIDTH)}
    return {key: filled(key, shape) for key, shape in found.items()}


def diffusers_names() -> dict[str, str]:
    """{the host's name of a tensor of the small ControlNet: diffusers' name}."""
    import comfy.utils

    depth = sum(n + 1 for n in UNET["num_res_blocks"])
    names = {host: name for name, host in
             comfy.utils.unet_to_diffusers(UNET | {"transformer_depth_output": [1] * depth}).items()}
    for kind in ("weight", "bias"):
        names |= {f"zero_convs.{i}.0.{kind}": f"controlnet_down_blocks.{i}.{kind}" for i in range(depth)}
        names |= {f"input_hint_block.{2 * i}.{kind}": f"controlnet_cond_embedding.blocks.{i - 1}.{kind}"
                  for i in range(1, 7)}
        names |= {f"input_hint_block.0.{kind}": f"controlnet_cond_embedding.conv_in.{kind}",
                  f"input_hint_block.14.{kind}": f"controlnet_cond_embedding.conv_out.{kind}",
                  f"middle_block_out.0.{kind}": f"controlnet_mid_block.{kind}"}
    return names


def controlnet() -> dict[str, Tensor]:
    """The content-fusion ControlNet in diffusers' naming; its zero convolutions are not zero, so it acts."""
    import comfy.cldm.cldm
    import comfy.ops

    with torch.device("meta"):
        model = comfy.cldm.cldm.ControlNet(**UNET, hint_channels=3, operations=comfy.ops.disable_weight_init)
    names = diffusers_names()
    return {f"controlnet.{names[key]}": filled(f"styleshot.{key}", shape, HINT_GAIN if "hint" in key else 0.5)
            for key, shape in shapes(model).items()}


def adapter() -> dict[str, Tensor]:
    """``ip.bin``: projections, adapters and ControlNet."""
    weights = {}
    for i in range(3):
        name = f"style_image_proj_modules.{i}"
        weights |= {key: filled(key, shape) for key, shape in
                    (layer(f"{name}.proj", TOKENS * CONTEXT, EMBED) | layer(f"{name}.norm", CONTEXT)).items()}
        # No style is a token too: the projection of zeros, which is this bias.
        weights[f"{name}.proj.bias"] = filled(f"{name}.none", (1, TOKENS * CONTEXT))[0]
    for i in range(CROSS_ATTENTIONS):
        for kind in "kv":
            key = f"adapter_modules.{2 * i + 1}.to_{kind}_ip.weight"
            weights[key] = filled(key, (UNET["model_channels"], CONTEXT))
    return weights | controlnet()


FILES: dict[str, Callable[[], dict[str, Tensor]]] = {
    f"{FOLDER}/inst-small-style_aware_encoder.safetensors": encoder,
    f"{FOLDER}/inst-small-ip.safetensors": adapter,
}


def write(models: Path) -> None:
    """Makes the files that are not there yet."""
    for name, make in FILES.items():
        save_whole(models / name, lambda make=make: {key: value.half() for key, value in make().items()})
