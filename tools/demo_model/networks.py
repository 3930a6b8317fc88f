"""The two networks that are trained, in the host's own code, and the noise levels of SD 1.x."""
import math
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from comfyui.in_process import use_comfyui
from torch import Tensor, nn

WIDTH = 160
ARCHITECTURE = {"num_res_blocks": [1, 1, 1], "channel_mult": [1, 1, 1], "transformer_depth": [0, 1, 1],
                "transformer_depth_output": [1, 1, 1, 1, 1, 0]}
HEADS, CONTEXT = 8, 768
LATENT_CHANNELS, LATENT_STEP = 4, 8  # pixels to a latent's place
AUTOENCODER_WIDTHS = 16, 32, 64, 64  # at 1/1, 1/2, 1/4 and 1/8 of the picture
# Colours travel in the first three channels of the autoencoder: brightness, red against green, yellow against blue.
OPPONENT = ((1.0, 1.0, 1.0), (4.0, -4.0, 0.0), (2.0, 2.0, -4.0))
MIDDLE_GREY = 0.45


def host(on_cpu: bool, comfyui: Path | None = None) -> None:
    """Makes ComfyUI's modules importable, unless they are."""
    if "comfy" not in sys.modules:
        use_comfyui(on_cpu, comfyui)
        from comfy.cli_args import args

        args.use_pytorch_cross_attention = True  # the fastest that can be differentiated


# ---- the denoiser ----

def operations(own_places: int | None = None):
    """The host's layers for ``build_unet``.

    Args:
        own_places: that many places at the beginning of a batch's contexts differ from sample to sample; the places
            behind them are the same in all (no prompt reaches so far), and while training, their keys and values are
            computed once instead of for every sample.
    """
    import comfy.ops

    class Linear(comfy.ops.disable_weight_init.Linear):
        def forward(self, x: Tensor) -> Tensor:
            if own_places is None or self.in_features != CONTEXT or not torch.is_grad_enabled():
                return super().forward(x)
            own, shared = super().forward(x[:, :own_places]), super().forward(x[:1, own_places:])
            return torch.cat([own, shared.expand(len(x), -1, -1)], 1)

    return type("Operations", (comfy.ops.disable_weight_init,), {"Linear": Linear})


def begin(model: nn.Module, gain: Callable[[str], float]) -> None:
    """Random matrices and kernels, whose outputs are about ``gain`` (of their name) times as large as their inputs;
    norms and biases change nothing."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim < 2:
                weight.fill_(float(name.endswith("weight")))
            else:
                size = gain(name) / math.sqrt(weight[0].numel())
                weight.copy_(size * torch.randn(weight.shape, generator=generator))


def build_unet(width: int = WIDTH, own_places: int | None = None) -> nn.Module:
    """The host's ``UNetModel`` with SD 1.x's sockets, ready to be trained: what a block adds begins at zero."""
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

    model = UNetModel(image_size=32, in_channels=LATENT_CHANNELS, out_channels=LATENT_CHANNELS, model_channels=width,
                      num_heads=HEADS, use_spatial_transformer=True, transformer_depth_middle=1, context_dim=CONTEXT,
                      dtype=torch.float32, operations=operations(own_places),
                      **{k: list(v) for k, v in ARCHITECTURE.items()})
    last_of_block = "out_layers.3.weight", "proj_out.weight", "out.2.weight"
    begin(model, lambda name: 0.0 if name.endswith(last_of_block) else 1.0)
    return model.to(memory_format=torch.channels_last)


def noise_levels() -> Tensor:
    """(1000,) sigma of every timestep of SD 1.x (scaled-linear betas)."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64).square()
    kept = (1 - betas).cumprod(0)
    return ((1 - kept) / kept).sqrt().float()


def predicted_noise(unet: nn.Module, x: Tensor, timestep: Tensor, context: Tensor, bfloat16: bool = False) -> Tensor:
    """eps of noisy latents ``x`` = z + sigma n, (B, 4, h, w), at timesteps (B,), with contexts (B, 77, 768)."""
    sigma = noise_levels().to(x.device)[timestep].view(-1, 1, 1, 1)
    scaled = (x / (1 + sigma.square()).sqrt()).contiguous(memory_format=torch.channels_last)
    with torch.autocast(x.device.type, torch.bfloat16, enabled=bfloat16):
        return unet(scaled, timestep.float(), context=context).float()


# ---- the autoencoder ----

def build_autoencoder() -> nn.ModuleDict:
    """``encoder`` and ``decoder`` in the shape of a TAESD, narrower where pictures are large, ready to be trained.

    At the beginning the three first channels pass mean colours through, so that training starts from pictures.
    """
    from comfy.taesd.taesd import Block, Clamp, conv

    full, half, quarter, eighth = AUTOENCODER_WIDTHS

    def blocks(width: int, count: int = 3) -> list[nn.Module]:
        return [Block(width, width) for _ in range(count)]

    def up(wide: int, narrow: int) -> list[nn.Module]:
        return [nn.Upsample(scale_factor=2), conv(wide, narrow, bias=False)]

    encoder = nn.Sequential(conv(3, full), *blocks(full, 1), conv(full, half, stride=2, bias=False), *blocks(half),
                            conv(half, quarter, stride=2, bias=False), *blocks(quarter),
                            conv(quarter, eighth, stride=2, bias=False), *blocks(eighth),
                            conv(eighth, LATENT_CHANNELS))
    decoder = nn.Sequential(Clamp(), conv(LATENT_CHANNELS, eighth), nn.ReLU(), *blocks(eighth), *up(eighth, quarter),
                            *blocks(quarter), *up(quarter, half), *blocks(half), *up(half, full), *blocks(full, 1),
                            conv(full, 3))
    model = nn.ModuleDict({"encoder": encoder, "decoder": decoder})
    begin(model, lambda name: 0.1 if name.endswith("conv.4.weight") else math.sqrt(2))  # what a block adds is small
    with torch.no_grad():
        _pass_colours(encoder, decoder)
    return model.to(memory_format=torch.channels_last)


def _pass_colours(encoder: nn.Sequential, decoder: nn.Sequential) -> None:
    """Kernels whose first three outputs are the first three inputs; the latent holds them in the opponent basis."""
    colours, to_latent = range(3), torch.tensor(OPPONENT)
    for layer in (*encoder, *decoder):
        if hasattr(layer, "conv"):  # a residual block adds nothing to the colours
            layer.conv[4].weight[:3] = 0
        elif isinstance(layer, nn.Conv2d):
            layer.weight[:3] = 0
            if layer.stride[0] == 2:
                layer.weight[colours, colours, 1:, 1:] = 1 / 4  # the mean of 2 x 2
            elif layer is not encoder[-1] and layer is not decoder[1]:
                layer.weight[colours, colours, 1, 1] = 1
    decoder[-1].weight[:, 3:] *= 0.1  # details come later
    encoder[-1].weight[:3, :3, 1, 1] = to_latent
    encoder[-1].bias[:3] = -to_latent @ torch.full((3,), MIDDLE_GREY)
    decoder[1].weight[:3, :3, 1, 1] = torch.linalg.inv(to_latent)
    decoder[1].bias[:3] = MIDDLE_GREY


def encoded(autoencoder: nn.ModuleDict, pictures: Tensor, at_once: int = 8) -> Tensor:
    """Latents (B, 4, H / 8, W / 8) of pictures (B, 3, H, W), bytes or in [0, 1]."""
    parts = [p / 255 if p.dtype == torch.uint8 else p for p in pictures.split(at_once)]
    return torch.cat([autoencoder["encoder"](p.contiguous(memory_format=torch.channels_last)) for p in parts])
