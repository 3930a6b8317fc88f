"""What a full-size training costs: counted on the host's own networks without numbers in them, nothing is run.

FLOPs are counted by torch, one multiply-add as two: of the denoiser and of the text encoder, forward, and backward to
the pseudo-words.  Hours follow from them and from what is said of the GPU.
"""
import argparse
from collections.abc import Callable
from dataclasses import dataclass

import torch
from full_size_models import SD15, SDXL, VAE
from shrunk_families import OFFICIAL, SHRUNK
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

PICTURES = 81_444  # of WikiArt
GPUS = 1, 8
DTYPE = torch.bfloat16


@dataclass(frozen=True)
class Cost:
    """
    Attributes:
        step: FLOPs of one sample of the training; cached: of one picture, once.
        weights: bytes of the frozen networks; kept: bytes that backward keeps of one sample.
    """

    step: float
    cached: float
    weights: int
    kept: int


def size(*networks: nn.Module) -> int:
    return sum(p.numel() * DTYPE.itemsize for network in networks for p in network.parameters())


def counted(work: Callable[[], Tensor]) -> tuple[float, int]:
    """(FLOPs, bytes that backward keeps beside weights) of ``work`` and its backward pass, on meta tensors."""
    alive: dict[int, int] = {}
    kept: list[Tensor] = []  # so that no two storages have one address

    def note(tensor: Tensor) -> Tensor:
        whole = tensor if tensor._base is None else tensor._base
        if not isinstance(whole, nn.Parameter):
            storage = tensor.untyped_storage()
            alive[storage._cdata] = storage.nbytes()
            kept.append(tensor.detach())
        return tensor

    with FlopCounterMode(display=False) as counter:
        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            result = work()
        if result.requires_grad:
            result.backward(torch.empty_like(result))
    return counter.get_total_flops(), sum(alive.values())


def empty(*shape: int, learned: bool = False) -> Tensor:
    return torch.empty(shape, device="meta", dtype=DTYPE, requires_grad=learned)


def frozen(network: nn.Module) -> nn.Module:
    return network.eval().requires_grad_(False)


def of_unet(config: dict, texts: list[tuple[str, int]], side: int) -> Cost:
    """Of a U-Net that reads CLIP's text encoders (config file, width)."""
    import json
    from pathlib import Path

    import comfy.clip_model
    import comfy.ops
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

    operations = comfy.ops.disable_weight_init
    unet = frozen(UNetModel(**config, dtype=DTYPE, device="meta", operations=operations))
    context = empty(1, 77, config["context_dim"], learned=True)
    about = empty(1, config["adm_in_channels"]) if "adm_in_channels" in config else None
    parts = [counted(lambda: unet(empty(1, 4, side // 8, side // 8), torch.empty(1, device="meta"), context, y=about))]
    readers = []
    for name, width in texts:
        told = json.loads(Path(comfy.clip_model.__file__).with_name(name).read_text())
        reader = frozen(comfy.clip_model.CLIPTextModel(told, DTYPE, "meta", operations))
        words = empty(1, 77, width, learned=True)
        parts.append(counted(lambda: reader(None, embeds=words, num_tokens=[77], dtype=DTYPE)[0]))  # noqa: B023
        readers.append(reader)
    return Cost(sum(flops for flops, _ in parts), of_autoencoder(VAE, side), size(unet, *readers),
                sum(kept for _, kept in parts))


def of_z_image(side: int) -> Cost:
    import comfy.ops
    from comfy.ldm.lumina.model import NextDiT
    from comfy.text_encoders.llama import Qwen3_4B

    operations = comfy.ops.disable_weight_init
    config = {k: v for k, v in {**SHRUNK["z-image"].config, **OFFICIAL["z-image"], "n_layers": 30,
                                "n_refiner_layers": 2, "axes_lens": [1536, 512, 512]}.items() if k != "image_model"}
    denoiser = frozen(NextDiT(**config, dtype=DTYPE, device="meta", operations=operations))
    tokens = 96  # the template of a chat, some words, and the style
    context = empty(1, tokens, config["cap_feat_dim"], learned=True)
    parts = [counted(lambda: denoiser(empty(1, 16, side // 8, side // 8), torch.empty(1, device="meta"), context,
                                      tokens))]
    reader = frozen(Qwen3_4B({}, DTYPE, "meta", operations))
    words = empty(1, tokens, config["cap_feat_dim"], learned=True)
    parts.append(counted(lambda: reader(None, embeds=words, num_tokens=[tokens], dtype=DTYPE)[0]))
    return Cost(sum(flops for flops, _ in parts), of_autoencoder({**VAE, "z_channels": 16}, side),
                size(denoiser, reader), sum(kept for _, kept in parts))


def of_autoencoder(config: dict, side: int) -> float:
    """FLOPs of encoding one picture."""
    from comfy.ldm.modules.diffusionmodules.model import Encoder

    with torch.device("meta"):
        encoder = frozen(Encoder(**config)).to(DTYPE)
    return counted(lambda: encoder(empty(1, 3, side, side)))[0]


MODELS: dict[str, Callable[[], Cost]] = {
    "SD 1.5, 512 px": lambda: of_unet(SD15, [("sd1_clip_config.json", 768)], 512),
    "SDXL, 1024 px": lambda: of_unet(SDXL, [("sd1_clip_config.json", 768), ("clip_config_bigg.json", 1280)], 1024),
    "Z-Image, 1024 px": lambda: of_z_image(1024),
}


def plan(options: argparse.Namespace) -> None:
    """The stage: a table."""
    from comfyui.in_process import use_comfyui

    use_comfyui(on_cpu=True)
    from comfy.cli_args import args

    from inst_core.metrics.tables import markdown

    args.use_pytorch_cross_attention = True  # others ask how much memory is free
    import comfy.model_management

    comfy.model_management.in_training = True  # operations that can be differentiated, as Learn InST Style has it
    samples, speed = options.steps * options.batch, options.peak * 1e12 * options.used
    print(f"{options.steps:,} steps of {options.batch} samples; {options.gpu}: {options.peak:g} TFLOP/s, of which "
          f"{options.used:.0%} are reached. Not run.\n")
    head = ("model", "TFLOP / sample", "TFLOP / picture, once", *(f"hours on {n} GPU{'s' * (n > 1)}" for n in GPUS),
            "weights, GiB", "kept for backward of one sample, GiB")
    rows = []
    for name, count in MODELS.items():
        cost = count()
        total = cost.step * samples + cost.cached * PICTURES
        rows.append([name, f"{cost.step / 1e12:.3f}", f"{cost.cached / 1e12:.3f}",
                     *(f"{total / speed / n / 3600:.1f}" for n in GPUS), f"{cost.weights / 2**30:.1f}",
                     f"{cost.kept / 2**30:.1f}"])
    print(markdown(head, rows))
