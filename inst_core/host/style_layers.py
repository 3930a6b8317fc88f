"""Styles that act only in the late blocks of a U-Net's decoder, at half of the latent's resolution and above.

P+ (Voynov et al. 2023, section 3) finds colour and texture in the fine layers and shape in the coarse ones, so such a
style carries less of the painting's content.  And learning gets cheap: everything before the late blocks does not
depend on the style, so it is computed once per sample, with exact gradients.

Of some families single blocks are known that set the style (InstantStyle, Wang et al. 2024, for SDXL); a style may act
in these alone, in the same way.

``restricted`` restricts a CONDITIONING while sampling; ``StyleLayersDenoiser`` learns with the same restriction.  Both
run the host's own U-Net code.
"""
import copy
from collections.abc import Callable, Collection, Sequence
from functools import partial

import comfy.hooks
import torch
from comfy.ldm.modules.diffusionmodules.openaimodel import Downsample, ResBlock, UNetModel, Upsample
from torch import Tensor, nn

from ..bank import Batch
from ..style import LATE_LAYERS
from .denoiser import Conditioning, Denoiser


def first_late_block(unet: UNetModel) -> int:
    """Index of the first decoder block that works at half of the latent's resolution or above: 6 of 12 in SD 1.x."""
    def changes(block: nn.Module, kind: type) -> bool:
        # A ResBlock that resamples holds the same module where others hold an Identity.
        return any(isinstance(layer, kind) or (isinstance(layer, ResBlock) and isinstance(layer.h_upd, kind))
                   for layer in block)

    halvings = sum(changes(block, Downsample) for block in unet.input_blocks)
    for index, block in enumerate(unet.output_blocks):
        if halvings <= 1:
            return index
        halvings -= changes(block, Upsample)
    return len(unet.output_blocks)


def restricted(conditioning: list, neutral: list, blocks: Collection[int] | None = None) -> list:
    """CONDITIONING whose text is seen by some decoder blocks only; all others see ``neutral``, the prompt without it.

    The restriction travels with the conditioning (as a hook of the host), so stock samplers follow it and other
    conditionings in the same graph do not.

    Args:
        conditioning, neutral: from the same prompt with and without the style.
        blocks: that see the style, by the host's numbers; None = the late ones.
    """
    sees = _is_late if blocks is None else partial(_is_one_of, blocks)
    made = []
    for (context, extra), (without, plain) in zip(conditioning, neutral, strict=True):
        hook = comfy.hooks.TransformerOptionsHook({"patches": {"attn2_patch": [_neutral_unless(sees, without)]}},
                                                  hook_scope=comfy.hooks.EnumHookScope.HookedOnly)
        group = comfy.hooks.HookGroup()
        group.add(hook)
        hooks = comfy.hooks.HookGroup.combine_all_hooks([extra.get("hooks"), group])
        made.append([context, {**extra, "pooled_output": plain.get("pooled_output"), "hooks": hooks}])
    return made


def _is_late(options: dict) -> bool:
    return options["block"][0] == "output" and 2 * options["activations_shape"][-2] >= options["original_shape"][-2]


def _is_one_of(blocks: Collection[int], options: dict) -> bool:
    return options["block"][0] == "output" and options["block"][1] in blocks


def _neutral_unless(sees: Callable[[dict], bool], neutral: Tensor):
    """An attn2 patch of the host: swaps the context of every block that does not see the style."""
    def patch(query: Tensor, context: Tensor, value: Tensor, options: dict) -> tuple[Tensor, Tensor, Tensor]:
        if sees(options):
            return query, context, value
        swapped = neutral.to(context).expand(context.shape[0], -1, -1)
        return query, swapped, swapped

    return patch


class _Constant(nn.Module):
    """Stands for the blocks before: gives what they gave."""

    def __init__(self, value: Tensor):
        super().__init__()
        self.value = value

    def forward(self, x: Tensor) -> Tensor:
        return self.value


class _Keep(nn.Module):
    """Stands for the output layer: keeps what arrives, and answers with a latent of zeros."""

    def forward(self, x: Tensor) -> Tensor:
        self.value = x
        return x.new_zeros(x.shape[0], 1, 1, 1)


def _with_modules(unet: UNetModel, **modules: nn.Module) -> UNetModel:
    """The same U-Net, weights shared, with some of its parts exchanged."""
    other = copy.copy(unet)
    other._modules = {**unet._modules, **modules}
    return other


def check_late(patcher, layers: str = LATE_LAYERS) -> None:
    """Raises ValueError, in one sentence, unless late blocks of a MODEL can be told apart and run alone."""
    network = patcher.model.diffusion_model
    if not isinstance(network, UNetModel):
        raise ValueError(f"layers is {layers!r}, which only U-Nets have (SD 1.x, SD 2.x, SDXL); the connected model is "
                         f"a {type(network).__name__}. Use layers 'all'.")
    if {"patches", "patches_replace"} & patcher.model_options.get("transformer_options", {}).keys():
        raise ValueError(f"layers is {layers!r}, and the connected model carries patches of its blocks (FreeU, "
                         "IP-Adapter, StyleShot and the like). Connect the model from before those patches, or "
                         "use layers 'all'.")


class StyleLayersDenoiser(Denoiser):
    """A denoiser whose late blocks see the style and whose other blocks see ``neutral``.

    Args:
        patcher, load: as for ``Denoiser``; its model is this session's own copy.
        neutral: the prompt without the style.
        blocks: decoder blocks that see the style; None = the late ones.

    Raises:
        ValueError: a denoiser without such blocks, or one with patches that act between them.
    """

    def __init__(self, patcher, neutral: Conditioning, load: Callable[[], None] = lambda: None,
                 blocks: Collection[int] | None = None):
        check_late(patcher)
        super().__init__(patcher, load)
        self._unet: UNetModel = self.network
        self._late = first_late_block(self._unet) if blocks is None else min(blocks)
        # The decoder that runs every time is numbered from 0.
        self._seeing = None if blocks is None else {block - self._late for block in blocks}
        self._neutral = Conditioning(*(t.detach() if torch.is_tensor(t) else t for t in neutral))

    def prepare(self, batch: Batch) -> Sequence[Tensor]:
        """The hidden state before the first late block, then the skip connections of the late blocks."""
        sigma = self.level(batch.time).to(self.device)
        return self._run_beginning(self.noised(batch.latent.to(self.device), batch.noise.to(self.device), sigma), sigma)

    def denoised(self, x: Tensor, sigma: Tensor, conditioning: Conditioning, prepared: Sequence[Tensor] = ()) -> Tensor:
        hidden, *skips = prepared or self._run_beginning(x, sigma)
        blocks = nn.ModuleList([nn.ModuleList([_Constant(skip)]) for skip in skips])
        ending = _with_modules(self._unet, input_blocks=blocks, middle_block=nn.ModuleList([_Constant(hidden)]),
                               output_blocks=self._unet.output_blocks[self._late:])
        patches = None if self._seeing is None else {
            "attn2_patch": [_neutral_unless(partial(_is_one_of, self._seeing), self._neutral.context)]}
        return self._run_as(ending, x, sigma, Conditioning(conditioning.context, self._neutral.pooled), patches)

    def _run_as(self, unet: UNetModel, x: Tensor, sigma: Tensor, conditioning: Conditioning,
                patches: dict | None = None) -> Tensor:
        self.network = unet
        try:
            return self._run(x, sigma, conditioning, patches)
        finally:
            self.network = self._unet

    @torch.no_grad()
    def _run_beginning(self, x: Tensor, sigma: Tensor) -> list[Tensor]:
        skips, keep = [], _Keep()

        def note(hidden: Tensor, options: dict) -> Tensor:
            skips.append(hidden)
            return hidden

        beginning = _with_modules(self._unet, output_blocks=self._unet.output_blocks[:self._late], out=keep)
        self._run_as(beginning, x, sigma, self._neutral, {"input_block_patch_after_skip": [note]})
        return [keep.value, *skips[:len(self._unet.output_blocks) - self._late]]
