"""A narrow network as the wide one that the host recognises, computing the same (Net2WiderNet, Chen et al. 2016).

The host knows SD 1.x by a U-Net of 320 channels, and a TAESD by 64.  The demo's networks are narrower, and are widened
when the checkpoint is put together.  U-Net: every channel is there ``ALIKE`` times side by side, and whatever reads
channels divides by that; group norm, layer norm and attention heads then see the same statistics as before.
Autoencoder: it has no norms, so channels of zeros are added.
"""
import math
from collections.abc import Mapping

from torch import Tensor

ALIKE = 2
TAESD_WIDTH = 64


def outputs_repeated(weight: Tensor) -> Tensor:
    return weight.repeat_interleave(ALIKE, 0)


def inputs_shared(weight: Tensor) -> Tensor:
    return weight.repeat_interleave(ALIKE, 1) / ALIKE


def with_zeros(weight: Tensor, *shape: int) -> Tensor:
    """A tensor of this shape with ``weight`` in its first corner."""
    wide = weight.new_zeros(shape)
    wide[tuple(slice(0, n) for n in weight.shape)] = weight
    return wide


def of_time(weight: Tensor) -> Tensor:
    """The first layer above the sinusoids: cosines, then sines; every second frequency of the wide network is one of
    the narrow's (``timestep_embedding``), and the others are not read."""
    half = weight.shape[1] // 2
    wide = weight.new_zeros(ALIKE * weight.shape[0], ALIKE * weight.shape[1])
    wide[:len(weight), :ALIKE * half:ALIKE] = weight[:, :half]
    wide[:len(weight), ALIKE * half::ALIKE] = weight[:, half:]
    return wide


def _unet_tensor(key: str, weight: Tensor) -> Tensor:
    """The embedding of time (``time_embed``) is padded with zeros; everything else is repeated."""
    if key == "time_embed.0.weight":
        return of_time(weight)
    if key.startswith("time_embed."):
        return with_zeros(weight, *(ALIKE * n for n in weight.shape))
    if key == "out.2.bias":
        return weight
    if key == "out.2.weight":
        return inputs_shared(weight)
    if weight.ndim == 1 or key == "input_blocks.0.0.weight" or key.endswith(("attn2.to_k.weight", "attn2.to_v.weight")):
        return outputs_repeated(weight)  # the latent and the context come in as they are
    if ".emb_layers.1." in key:
        return outputs_repeated(with_zeros(weight, len(weight), ALIKE * weight.shape[1]))
    wide = outputs_repeated(inputs_shared(weight))
    # Heads are ALIKE times as wide: q k' grows by ALIKE, and attention divides by the root of a head's width.
    return wide / math.sqrt(ALIKE) if key.endswith(".to_q.weight") else wide


def widened(unet: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of a U-Net ``ALIKE`` times as wide, in float32."""
    return {key: _unet_tensor(key, weight.float()) for key, weight in unet.items()}


FIRST, LAST = ("encoder.0.", "decoder.1."), ("encoder.14.", "decoder.19.")


def padded(autoencoder: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of a TAESD, from an autoencoder of its shape with fewer channels."""

    def wide(key: str, weight: Tensor) -> Tensor:
        outputs = weight.shape[0] if key.startswith(LAST) else TAESD_WIDTH
        inputs = weight.shape[1:2] if key.startswith(FIRST) else (TAESD_WIDTH,) * (weight.ndim > 1)
        return with_zeros(weight, outputs, *inputs, *weight.shape[2:])

    return {key: wide(key, weight.float()) for key, weight in autoencoder.items()}
