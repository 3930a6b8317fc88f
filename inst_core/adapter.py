"""A small adapter that is learned beside the pseudo-words: low-rank updates (LoRA, Hu et al. 2021) of the attention in
the late half of a denoiser.

Where a prompt is a small part of what the denoiser sees, pseudo-words alone change little; the late half of its blocks
sets colour and texture more than layout, so it is the part that a style may change.
"""
import math
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager

import torch
from torch import Tensor, nn

from .encoders import PictureFeatures, StyleEncoder, Vectors

RATE = 0.1  # of the adapter's weights, in learning rates of the pseudo-words
UP, DOWN = "lora_up.weight", "lora_down.weight"  # what LoRA files call the two factors
_ENCODER, _ADAPTER, _DOT = "encoder.", "adapter.", "/"  # names of modules cannot hold dots

Weights = dict[str, Tensor]


# ---- the layers ----

def attention_layers(network: nn.Module) -> Iterator[tuple[str, dict[str, nn.Module]]]:
    """The blocks of a denoiser in their order: (name, {name: linear layer of its attention}).

    Blocks are what the network's own lists hold, and a sequence of layers such as a U-Net's middle.  The attention of
    most is in modules called so.  A block without any that reads and writes through linear layers of its own computes
    attention and MLP together.
    """
    for block_name, block in _blocks(network):
        linear = {name: module for name, module in block.named_modules(prefix=block_name) if _is_linear(module)}
        found = {name: module for name, module in linear.items() if "attn" in name or "attention" in name}
        own = {name: module for name, module in linear.items() if name.rpartition(".")[0] == block_name}
        if found or len(own) > 1 and not isinstance(block, nn.Sequential):
            yield block_name, found or own


def late_half(network: nn.Module) -> dict[str, nn.Module]:
    """The attention layers of the later half of its blocks, {name: linear layer}."""
    blocks = [layers for _, layers in attention_layers(network)]
    return {name: layer for layers in blocks[len(blocks) // 2:] for name, layer in layers.items()}


def _blocks(network: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    for name, child in uncompiled(network).named_children():
        if isinstance(child, nn.ModuleList):
            yield from ((f"{name}.{index}", uncompiled(block)) for index, block in enumerate(child))
        elif isinstance(child, nn.Sequential):
            yield name, child


def uncompiled(module: nn.Module) -> nn.Module:
    """What ``torch.compile`` was given."""
    return getattr(module, "_orig_mod", module)


def _is_linear(module: nn.Module) -> bool:
    """Quantized layers are none of torch's."""
    return isinstance(module, nn.Linear) or all(hasattr(module, name) for name in ("in_features", "out_features"))


# ---- what is learned ----

class LowRank(nn.Module):
    """x -> B A x of one layer, with A (rank, in) random and B (out, rank) zero at first (Hu et al. 2021, section 4.1,
    with alpha = rank). Computed in the precision of x."""

    def __init__(self, into: int, out: int, rank: int, generator: torch.Generator):
        super().__init__()
        self.lora_down, self.lora_up = nn.Module(), nn.Module()
        bound = 1 / math.sqrt(into)
        self.lora_down.weight = nn.Parameter((torch.rand(rank, into, generator=generator) * 2 - 1) * bound)
        self.lora_up.weight = nn.Parameter(torch.zeros(out, rank))

    def forward(self, x: Tensor) -> Tensor:
        hidden = nn.functional.linear(x, self.lora_down.weight.to(x.dtype))
        return nn.functional.linear(hidden, self.lora_up.weight.to(x.dtype))


class Adapter(nn.Module):
    """Low-rank updates of some linear layers.

    Args:
        layers: {name: layer} of a network, or of another with the same sizes.
        rank: of the updates.
    """

    def __init__(self, layers: Mapping[str, nn.Module], rank: int, generator: torch.Generator):
        super().__init__()
        self.updates = nn.ModuleDict({
            name.replace(".", _DOT): LowRank(layer.in_features, layer.out_features, rank, generator)
            for name, layer in layers.items()})

    @property
    def weights(self) -> Weights:
        """{``layer.lora_up.weight``: (out, rank), ``layer.lora_down.weight``: (rank, in)}"""
        return _named(self.updates.state_dict())

    def load(self, weights: Mapping[str, Tensor]) -> None:
        self.updates.load_state_dict({self._key(name): tensor.clone() for name, tensor in weights.items()})

    @staticmethod
    def _key(name: str) -> str:
        layer, factor, weight = name.rsplit(".", 2)
        return f"{layer.replace('.', _DOT)}.{factor}.{weight}"

    @contextmanager
    def attached(self, network: nn.Module) -> Iterator[None]:
        """The network's layers give what they give with the update; its own weights stay as they are."""
        with ExitStack() as stack:
            for name, update in self.updates.items():
                layer = network.get_submodule(name.replace(_DOT, "."))
                stack.callback(layer.register_forward_hook(_adding(update)).remove)
            yield


def _adding(update: LowRank):
    def hook(layer: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
        return output + update(inputs[0])

    return hook


def _named(state: Mapping[str, Tensor]) -> Weights:
    return {key.replace(_DOT, "."): tensor for key, tensor in state.items()}


class AdaptedEncoder(StyleEncoder):
    """A style encoder, and the adapter that is learned with its pseudo-words: the loop moves, keeps and gives back
    both together."""

    def __init__(self, encoder: StyleEncoder, adapter: Adapter):
        super().__init__()
        self.encoder, self.adapter = encoder, adapter
        self.needs_picture, self.dropout_when_applied = encoder.needs_picture, encoder.dropout_when_applied

    def forward(self, features: PictureFeatures | None, generator: torch.Generator | None = None) -> Vectors:
        return self.encoder(features, generator)

    def parameter_groups(self, rate: float) -> list[dict]:
        own = {"params": list(self.adapter.parameters()), "lr": RATE * rate, "weight_decay": 0.0}
        return [*self.encoder.parameter_groups(rate), own]

    def attached(self, session) -> AbstractContextManager:
        self.adapter.to(session.device)
        return self.adapter.attached(session.denoiser.network)


def part_weights(weights: Weights) -> tuple[Weights, Weights]:
    """What an encoder's state holds: (the encoder's own weights, the adapter's by the names of its layers)."""
    start = f"{_ADAPTER}updates."
    adapter = {k.removeprefix(start): v.cpu() for k, v in weights.items() if k.startswith(start)}
    if not adapter:
        return weights, {}
    return {k.removeprefix(_ENCODER): v for k, v in weights.items() if k.startswith(_ENCODER)}, _named(adapter)
