"""StyleShot on the host's models: its files, its networks under the host's model management, its attention patches."""
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import comfy.cldm.cldm
import comfy.controlnet
import comfy.model_management
import comfy.model_patcher
import comfy.ops
import comfy.supported_models
import comfy.utils
import torch
from comfy.ldm.modules.attention import SpatialTransformer, optimized_attention
from torch import Tensor, nn

from ..methods import hed, styleshot
from ..methods.styleshot import KeyValue, StyleTokens
from ..methods.styleshot_files import Release, read_release, style_adapter, style_encoder
from ..portable import shrink
from .families import family_of

StateDict = Mapping[str, Tensor]

WORKING_MEMORY = 2**30  # bytes beside the weights; finding contours takes the most
LARGEST = 1024  # pixels; contours are found on no more than this squared, SD 1.5 does not paint larger


# ---- files ----

def _unet_config(weights: StateDict) -> dict[str, Any]:
    """The host's configuration of the U-Net encoder that a diffusers ControlNet of SD 1.x has."""
    def indices(prefix: str) -> int:
        return max((int(key[len(prefix):].split(".")[0]) + 1 for key in weights if key.startswith(prefix)), default=0)

    levels = indices("down_blocks.")
    blocks = max((indices(f"down_blocks.{i}.resnets.") for i in range(levels)), default=0)
    base = weights["conv_in.weight"].shape[0]
    widths = [next((len(w) for i in range(blocks)
                    if (w := weights.get(f"down_blocks.{level}.resnets.{i}.conv1.bias")) is not None), base)
              for level in range(levels)]
    depths = [int(indices(f"down_blocks.{level}.attentions.") > 0) for level in range(levels)]
    return {
        "image_size": 32, "in_channels": 4, "model_channels": base, "num_heads": 8, "use_spatial_transformer": True,
        "context_dim": styleshot.AdapterSizes().context, "num_res_blocks": [blocks] * levels,
        "channel_mult": [width // base for width in widths], "transformer_depth_middle": 1,
        "transformer_depth": [depth for depth in depths for _ in range(blocks)],
        "transformer_depth_output": [depth for depth in depths for _ in range(blocks + 1)],
    }


def host_controlnet_weights(weights: StateDict) -> dict[str, Tensor]:
    """A ControlNet in diffusers' naming, renamed as the host's own ControlNets are.

    Raises:
        ValueError: tensors that are missing or have another shape, by their names in the file.
    """
    if not {"conv_in.weight", "down_blocks.0.resnets.0.conv1.bias"} <= weights.keys():
        raise ValueError("The ControlNet in the StyleShot file has no controlnet.conv_in.weight or no down_blocks. The "
                         "file is damaged: download it again.")
    config = _unet_config(weights)
    names = {host: name for name, host in comfy.utils.unet_to_diffusers(config).items()}
    for suffix in ("weight", "bias"):
        names |= {f"zero_convs.{i}.0.{suffix}": f"controlnet_down_blocks.{i}.{suffix}"
                  for i in range((config["num_res_blocks"][0] + 1) * len(config["num_res_blocks"]))}
        names |= {f"middle_block_out.0.{suffix}": f"controlnet_mid_block.{suffix}",
                  f"input_hint_block.0.{suffix}": f"controlnet_cond_embedding.conv_in.{suffix}",
                  f"input_hint_block.14.{suffix}": f"controlnet_cond_embedding.conv_out.{suffix}"}
        names |= {f"input_hint_block.{2 * i}.{suffix}": f"controlnet_cond_embedding.blocks.{i - 1}.{suffix}"
                  for i in range(1, 7)}
    del config["transformer_depth_output"]
    with torch.device("meta"):
        network = comfy.cldm.cldm.ControlNet(**config, hint_channels=3, operations=comfy.ops.disable_weight_init)
    shapes = {host: tuple(tensor.shape) for host, tensor in network.state_dict().items()}
    lacking = [f"controlnet.{names[host]}" for host, shape in shapes.items()
               if names[host] not in weights or tuple(weights[names[host]].shape) != shape]
    if lacking:
        raise ValueError(f"The ControlNet in the StyleShot file is incomplete: {len(lacking)} tensors are missing or "
                         f"have another shape: {', '.join(lacking[:4])}. The file is damaged: download it again.")
    return {host: weights[names[host]] for host in shapes}


# ---- the STYLESHOT socket ----

class Style(NamedTuple):
    """A style picture as StyleShot tells it: tokens, and their keys and values for each cross-attention."""

    tokens: StyleTokens
    style: list[KeyValue]
    none: list[KeyValue]


def _managed(module: nn.Module):
    """The network under the host's model management: moved to the device when used, away when memory is short."""
    return comfy.model_patcher.CoreModelPatcher(module, load_device=comfy.model_management.get_torch_device(),
                                                offload_device=comfy.model_management.unet_offload_device())


class StyleShot:
    """A release, open and checked; each network is made when it is first needed."""

    def __init__(self, files: Mapping[str, StateDict]):
        """Args: ``files``, {name: state dict}, best as ``state_dicts.read_weights(path, mapped=True)`` gives it: of
        ip.bin two thirds are never used.

        Raises:
            ValueError: as ``methods.styleshot_files.read_release`` and ``host_controlnet_weights``.
        """
        self._release: Release = read_release(files)
        self._controlnet_weights = host_controlnet_weights(self._release.controlnet) if self._release.controlnet else {}

    @cached_property
    def _encoder(self):
        return _managed(style_encoder(self._release, comfy.ops.manual_cast))

    @cached_property
    def _adapter(self):
        return _managed(style_adapter(self._release, comfy.ops.manual_cast))

    @cached_property
    def _contour_detector(self):
        if self._release.contour is None:
            raise ValueError("control_type 'photograph' finds contours with ControlNetHED.pth, which was not loaded. "
                             "Choose it as contour_detector in Load StyleShot, or connect a finished contour map.")
        return _managed(hed.PART.load(self._release.contour))

    @cached_property
    def _controlnet(self) -> comfy.controlnet.ControlNet:
        if not self._controlnet_weights:
            raise ValueError("control_image needs StyleShot's ControlNet, and this ip.bin holds none (an early release "
                             "for text only). Download the present one, or disconnect control_image.")
        return comfy.controlnet.load_controlnet_state_dict(dict(self._controlnet_weights))

    @property
    def widths(self) -> tuple[int, ...]:
        """Widths of the cross-attentions that the file is made for, in order."""
        return styleshot.AdapterSizes.of(self._release.adapter).widths

    @torch.no_grad()
    def encode(self, picture: Tensor, order: Sequence[Tensor] | None = None) -> Style:
        """The style of pictures (B, 3, H, W) in [0, 1], any size, each its own; on the CPU, float32.

        Raises:
            ValueError: not a finite RGB batch.
        """
        styleshot.check_style(picture)
        comfy.model_management.load_models_gpu([self._encoder, self._adapter], memory_required=WORKING_MEMORY)
        encoder, adapter = self._encoder.model, self._adapter.model
        embeds = torch.cat([encoder(styleshot.style_square(one).to(self._encoder.load_device), order)
                            for one in picture.float().split(1)])
        tokens = adapter(embeds)
        style, none = ([KeyValue(*(x.cpu() for x in pair)) for pair in adapter.keys_values(t)] for t in tokens)
        return Style(StyleTokens(*(t.cpu() for t in tokens)), style, none)

    @torch.no_grad()
    def contours(self, pictures: Tensor) -> Tensor:
        """Contour maps of photographs (B, 3, H, W) as ``hed.contours``, large ones reduced; on the CPU.

        Raises:
            ValueError: no detector was loaded, pictures too small or not finite.
        """
        detector = self._contour_detector
        comfy.model_management.load_models_gpu([detector], memory_required=WORKING_MEMORY)
        height, width = pictures.shape[2:]
        scale = LARGEST / (height * width) ** 0.5
        if scale < 1:
            pictures = shrink(pictures, (round(height * scale), round(width * scale)))
        return hed.contours(detector.model, pictures.float().to(detector.load_device)).cpu()

    def controlnet(self, tokens: StyleTokens) -> "StyleControl":
        """The content-fusion ControlNet for a style.

        Raises:
            ValueError: the file holds none.
        """
        return StyleControl.of(self._controlnet, tokens)


# ---- injection into SD 1.5 ----

class CrossAttention(NamedTuple):
    """Where a cross-attention of the U-Net is, as patches are addressed, and its width."""

    block: str
    number: int
    width: int


def cross_attentions(unet: nn.Module) -> list[CrossAttention]:
    """All of a U-Net, in the order in which diffusers counts them: encoder, decoder, middle."""
    parts = {"input": unet.input_blocks, "output": unet.output_blocks, "middle": [unet.middle_block]}
    return [CrossAttention(part, number, transformer.attn2.to_q.weight.shape[0])
            for part, blocks in parts.items() for number, block in enumerate(blocks)
            for layer in block if isinstance(layer, SpatialTransformer)
            for transformer in layer.transformer_blocks]


def check_styleshot(model, files: StyleShot) -> None:
    """Raises ValueError, in one sentence, unless StyleShot was made for this MODEL."""
    if not isinstance(model.model.model_config, comfy.supported_models.SD15):
        raise ValueError(f"Apply StyleShot works with Stable Diffusion 1.5 models only, and the connected model is "
                         f"{family_of(model)}. Connect a model of that family.")
    found = tuple(place.width for place in cross_attentions(model.get_model_object("diffusion_model")))
    if found != files.widths:
        raise ValueError(f"This StyleShot is made for a U-Net with {len(files.widths)} cross-attentions of widths "
                         f"{', '.join(map(str, files.widths))}, and the connected model has {len(found)} of widths "
                         f"{', '.join(map(str, found))}. Connect a Stable Diffusion 1.5 model of the usual size.")


def for_halves(style: Tensor, none: Tensor, chunks: Sequence[int], batch: int) -> Tensor:
    """What each sample of a batch sees: the style in positive chunks, no style in all others.

    Args:
        style: (B or 1, n, C), one for each picture or one for all.
        none: (1, n, C).
        chunks: the host's ``cond_or_uncond``; 0 is positive.
        batch: samples in all chunks together.

    Raises:
        ValueError: another number of styles than of latents.
    """
    each = batch // len(chunks)
    if len(style) not in (1, each):
        raise ValueError(f"style has {len(style)} pictures, and {each} latents are sampled at once. Give Apply "
                         "StyleShot one style picture, or one for each latent.")
    return torch.cat([(none if chunk else style).expand(each, -1, -1) for chunk in chunks])


@dataclass(frozen=True)
class StyleAttention:
    """A cross-attention that sees the text and the style; an ``attn2`` replacement of the host.

    Attributes:
        style, none: keys and values for the two halves of classifier-free guidance.
        previous: a replacement that another node put here; its answer takes the place of the text's.
    """

    style: KeyValue
    none: KeyValue
    weight: float
    previous: Any = None

    def to(self, target: torch.device | torch.dtype) -> "StyleAttention":
        """On a device. Asked for a number format the host means the stored weights'; this follows the query's."""
        if not isinstance(target, torch.device):
            return self
        style, none = (KeyValue(*(x.to(target) for x in pair)) for pair in (self.style, self.none))
        previous = self.previous.to(target) if hasattr(self.previous, "to") else self.previous
        return StyleAttention(style, none, self.weight, previous)

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, options: dict) -> Tensor:
        heads = options["n_heads"]
        if self.previous is None:
            text = optimized_attention(query, key, value, heads=heads, attn_precision=options["attn_precision"],
                                       transformer_options=options)
        else:
            text = self.previous(query, key, value, options)
        chunks, batch = options["cond_or_uncond"], len(query)
        style = KeyValue(*(for_halves(a, b, chunks, batch).to(query)
                           for a, b in zip(self.style, self.none, strict=True)))
        return styleshot.with_style(text, query, style, heads, self.weight)


def styled_model(model, style: Style, weight: float):
    """A MODEL whose cross-attentions also see the style; other replacements of theirs stay and are built upon."""
    patched = model.clone()
    if weight == 0:
        return patched
    replaced = model.model_options["transformer_options"].get("patches_replace", {}).get("attn2", {})
    places = cross_attentions(model.get_model_object("diffusion_model"))
    for (block, number, _), with_style, without in zip(places, style.style, style.none, strict=True):
        exact = (block, number, 0)  # the host asks for this address before (block, number)
        index = 0 if exact in replaced else None
        previous = replaced.get(exact, replaced.get((block, number)))
        patched.set_model_attn2_replace(StyleAttention(with_style, without, weight, previous), block, number, index)
    return patched


class StyleControl(comfy.controlnet.ControlNet):
    """The content-fusion ControlNet: its cross-attention sees the style tokens, whatever the prompt.

    ControlNets before and behind it in the chain see the text, as in the released code.  (The conditioning entry
    ``cross_attn_controlnet`` would change theirs too.)
    """

    tokens: StyleTokens

    @classmethod
    def of(cls, control: comfy.controlnet.ControlNet, tokens: StyleTokens) -> "StyleControl":
        """The same network and settings."""
        made = cls(None, load_device=control.load_device, manual_cast_dtype=control.manual_cast_dtype)
        made.control_model, made.control_model_wrapped = control.control_model, control.control_model_wrapped
        made.tokens = tokens
        control.copy_to(made)
        return made

    def copy(self) -> "StyleControl":
        return StyleControl.of(self, self.tokens)

    def get_control(self, x_noisy: Tensor, t: Tensor, cond: dict, batched_number: int, transformer_options: dict):
        before = None
        if self.previous_controlnet is not None:
            before = self.previous_controlnet.get_control(x_noisy, t, cond, batched_number, transformer_options)
        context = for_halves(*self.tokens, transformer_options["cond_or_uncond"], len(x_noisy))
        with comfy.controlnet.ControlIsolation(self):
            own = super().get_control(x_noisy, t, {**cond, "crossattn_controlnet": context}, batched_number,
                                      transformer_options)
        return before if own is None else comfy.controlnet.ControlBase().control_merge(own, before, None)


def controlled(positive: list, negative: list, control: StyleControl, image: Tensor, strength: float, start: float,
               end: float) -> tuple[list, list]:
    """Both conditionings with the ControlNet in front of those that they have.

    Args:
        image: control map (B or 1, H, W, 3) in [0, 1].
        start, end: parts of the sampling between which it acts, 0..1.

    Raises:
        ValueError: it would never act.
    """
    if start >= end:
        raise ValueError(f"start_percent is {start} and end_percent {end}, so the control image would never act. Make "
                         "the end larger.")
    from nodes import ControlNetApplyAdvanced  # ComfyUI's

    return ControlNetApplyAdvanced().apply_controlnet(positive, negative, control, image, strength, start, end)
