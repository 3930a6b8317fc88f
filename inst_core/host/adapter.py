"""A style's adapter on the host's models: learned beside the pseudo-words, applied as a LoRA."""
import torch
from comfy.weight_adapter import LoRAAdapter
from torch import nn

from ..adapter import DOWN, UP, AdaptedEncoder, Adapter, late_half, uncompiled
from ..encoders import StyleEncoder
from ..recipes import Recipe
from ..style import ALL_LAYERS, MAX_BYTES, STYLE_BLOCK, Style
from .families import family_of, style_blocks
from .style_layers import first_late_block
from .training import training_mode

LARGEST = MAX_BYTES * 3 // 4  # bytes of an adapter; the rest of a style file is for everything else


def with_adapter(encoder: StyleEncoder, model, rank: int, recipe: Recipe, layers: str = ALL_LAYERS,
                 continue_from: Style | None = None) -> StyleEncoder:
    """The encoder with an adapter for the MODEL beside it; at rank 0 the encoder alone.

    Args:
        layers: that see the style. With "late" everything before them is computed once, so only they are adapted.
        continue_from: a style whose adapter is learned on, if it has one.

    Raises:
        ValueError: an adapter that is too large for a style file, a MODEL without attention layers where it could
            act, or a style whose adapter has another rank or is for other layers.
    """
    begun = continue_from.adapter_rank if continue_from is not None else 0
    if begun not in (0, rank):
        raise ValueError(f"continue_from is a style with an adapter of rank {begun}, and adapter_rank is {rank}. Set "
                         f"adapter_rank to {begun}, or learn a new style.")
    if not rank:
        return encoder
    if rank < 0:
        raise ValueError(f"adapter_rank is {rank}; expected 0 for no adapter, or 8 or so for one.")
    found = _late_layers(model, layers)
    if not found:
        raise ValueError(f"adapter_rank is {rank}, but the connected model ({family_of(model)}) has no attention in "
                         f"the layers that would learn (layers is {layers!r}). Set adapter_rank to 0.")
    size = 4 * rank * sum(layer.in_features + layer.out_features for layer in found.values())
    if size > LARGEST:
        raise ValueError(f"adapter_rank is {rank}, which makes an adapter of {size / 2**20:.0f} MB for the connected "
                         f"model ({family_of(model)}); a style file has room for {LARGEST / 2**20:.0f} MB. Set "
                         f"adapter_rank to {rank * LARGEST // size} or lower.")
    with training_mode():
        adapter = Adapter(found, rank, torch.Generator().manual_seed(recipe.seed))
        if begun:
            if adapter.weights.keys() != continue_from.adapter.keys():
                raise ValueError("continue_from is a style whose adapter is for other layers than those of the "
                                 f"connected model ({family_of(model)}) with layers {layers!r}. Connect the model it "
                                 "was learned on, or learn a new style.")
            adapter.load(continue_from.adapter)
        return AdaptedEncoder(encoder, adapter)


def _late_layers(model, layers: str) -> dict[str, nn.Module]:
    """{name: linear layer} of the attention that an adapter of the MODEL changes."""
    network = uncompiled(model.model.diffusion_model)
    found = late_half(network)
    if layers == ALL_LAYERS:
        return found
    blocks = (style_blocks(family_of(model)) if layers == STYLE_BLOCK
              else range(first_late_block(network), len(network.output_blocks)))
    starts = tuple(f"output_blocks.{i}." for i in blocks)
    return {name: layer for name, layer in found.items() if name.startswith(starts)}


def adapted(model, style: Style, strength: float):
    """The MODEL with the style's adapter as a LoRA; at strength 0 the MODEL itself.

    Raises:
        ValueError: a style without an adapter, or one for layers that the MODEL does not have.
    """
    if not style.adapter:
        raise ValueError("The connected style has no adapter: it was learned with adapter_rank 0, so its pseudo-words "
                         "are all there is. Use Apply InST Style alone, or learn the style again with adapter_rank 8.")
    check_adapts(model, style)
    patched = model.clone()
    if strength == 0:
        return patched
    layers = {key.removesuffix(f".{UP}") for key in style.adapter if key.endswith(UP)}
    updates = {layer: (style.adapter[f"{layer}.{UP}"], style.adapter[f"{layer}.{DOWN}"]) for layer in layers}
    patched.add_patches({f"diffusion_model.{layer}.weight": LoRAAdapter(set(), (up, down, None, None, None, None))
                         for layer, (up, down) in updates.items()}, strength)
    return patched


def check_adapts(model, style: Style) -> None:
    """Raises ValueError unless the MODEL has the layers that the style's adapter changes, in their sizes."""
    modules = dict(uncompiled(model.model.diffusion_model).named_modules())
    for key, tensor in style.adapter.items():
        name, _, factor = key.removesuffix(".weight").rpartition(".")
        side = "out_features" if f"{factor}.weight" == UP else "in_features"
        size = tensor.shape[0 if side == "out_features" else 1]
        has = getattr(modules.get(name), side, None)
        if has != size:
            there = "does not have it" if has is None else f"has {has} there"
            raise ValueError(f"The connected style's adapter was learned on {style.family or 'another model'} and does "
                             f"not fit the connected model ({family_of(model)}): it changes layer {name} of "
                             f"{size} {side.removesuffix('_features')}puts, and this model {there}. Connect a model of "
                             "the family and size that the style was learned on, or learn it again on this one.")
