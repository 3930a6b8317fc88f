"""Checkpoints with the real sizes of SD 1.5 and SDXL and random numbers in them: what learning costs does not depend on
the numbers.  Only ``tools/benchmark.py`` makes them (2 and 7 GB)."""
from pathlib import Path

import torch
from small_families import Small, denoiser, filled, text_encoders
from small_models import save_whole, shapes
from torch import Tensor

VAE = {"double_z": True, "z_channels": 4, "resolution": 256, "in_channels": 3, "out_ch": 3, "ch": 128,
       "ch_mult": [1, 2, 4, 4], "num_res_blocks": 2, "attn_resolutions": [], "dropout": 0.0}
COMMON = {"image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": 320, "use_spatial_transformer": True}
SD15 = {**COMMON, "num_heads": 8, "num_res_blocks": [2] * 4, "channel_mult": [1, 2, 4, 4], "context_dim": 768,
        "transformer_depth": [1] * 6 + [0] * 2, "transformer_depth_output": [1] * 9 + [0] * 3,
        "transformer_depth_middle": 1}
SDXL = {**COMMON, "num_heads": -1, "num_head_channels": 64, "num_res_blocks": [2] * 3, "channel_mult": [1, 2, 4],
        "context_dim": 2048, "transformer_depth": [0, 0, 2, 2, 10, 10], "transformer_depth_middle": 10,
        "transformer_depth_output": [0, 0, 0, 2, 2, 2, 10, 10, 10], "use_linear_in_transformer": True,
        "adm_in_channels": 2816, "num_classes": "sequential"}
KINDS = {"sd15": Small("SD15", "unet", SD15, text="sd1"), "sdxl": Small("SDXL", "unet", SDXL, text="sdxl")}


def weights(kind: str) -> dict[str, Tensor]:
    """All tensors of a checkpoint, in the official names and shapes, float16."""
    import comfy.supported_models
    from comfy.ldm.models.autoencoder import AutoencoderKL

    config = getattr(comfy.supported_models, KINDS[kind].family)({"in_channels": 4})
    with torch.device("meta"):
        vae = AutoencoderKL(ddconfig=VAE, embed_dim=4)
    return {
        **config.process_unet_state_dict_for_saving(denoiser(KINDS[kind])),
        **config.process_vae_state_dict_for_saving({k: filled(k, s) for k, s in shapes(vae).items()}),
        **config.process_clip_state_dict_for_saving(text_encoders(KINDS[kind].text, {})),
    }


def checkpoint(kind: str, folder: Path) -> Path:
    """The file, made where it is not there yet."""
    path = folder / f"inst-random-{kind}.safetensors"
    save_whole(path, lambda: weights(kind))
    return path
