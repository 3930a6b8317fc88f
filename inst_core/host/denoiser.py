"""The frozen denoiser while a style is learned."""
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any, NamedTuple

import comfy.model_patcher
import comfy.sampler_helpers
import comfy.samplers
import torch
from comfy.ldm.modules.attention import attention_pytorch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import checkpoint

from ..bank import Batch


class Conditioning(NamedTuple):
    """Text encoder output: ``context`` (1, tokens, width), ``pooled`` (1, width) or None, and what some families give
    beside them by the host's names (masks, another text encoder's context)."""

    context: Tensor
    pooled: Tensor | None
    extra: dict[str, Any] | None = None


def _blocks(network: nn.Module) -> Iterator[nn.Module]:
    """The layers of a denoiser that are worth recomputing: what its lists of blocks hold."""
    for child in network.children():
        for block in child if isinstance(child, nn.ModuleList) else ():
            yield from block if isinstance(block, nn.Sequential) else [block]


def _ordinary(value: Any) -> Any:
    """A tensor of inference mode, in which nodes make their patches, as one that backward may keep."""
    kept = isinstance(value, Tensor) and value.is_inference() and torch.is_grad_enabled()
    return value.clone() if kept else value


class Differentiable(TorchFunctionMode):
    """``x += y`` makes a new tensor: some families' layers add in place, over what backward or a second run needs.

    And patches of the user's model (a hypernetwork, an IP-Adapter) take part although a node made them.
    """

    def __torch_function__(self, func, types, args=(), kwargs=None):
        func = torch.Tensor.add if func is torch.Tensor.add_ else func
        return func(*map(_ordinary, args), **{k: _ordinary(v) for k, v in (kwargs or {}).items()})


def _recomputing(forward: Callable, *inputs, **named):
    """One layer under gradient checkpointing.

    The host keeps a note of where it is in a dictionary that all layers share; the second time, the layer sees that
    note as it was the first time.
    """
    noted = [dict(v) if isinstance(v, dict) else v for v in inputs]
    noted_named = {k: dict(v) if isinstance(v, dict) else v for k, v in named.items()}
    first = True

    def run():
        nonlocal first
        if first:
            first = False
            return forward(*inputs, **named)
        with Differentiable():  # backward may run on another thread
            return forward(*noted, **noted_named)

    return checkpoint(run, use_reentrant=False, preserve_rng_state=False)


@contextmanager
def recomputed(network: nn.Module) -> Iterator[None]:
    """Gradient checkpointing (Chen et al. 2016): layers keep their inputs only and run again for backward."""
    blocks = list(_blocks(network))
    for block in blocks:
        block.forward = partial(_recomputing, block.forward)
    try:
        yield
    finally:
        for block in blocks:
            del block.forward


def _exact_attention(chosen: Callable, *arguments, **named) -> Tensor:
    """Stands for the attention that ComfyUI chose: some kinds have no gradient (SageAttention), others keep whole
    attention matrices for it (what ComfyUI uses on the CPU)."""
    return attention_pytorch(*arguments, **named)


class Denoiser:
    """The frozen denoiser of a re-made MODEL; see ``objective.Denoiser``.

    Args:
        patcher: of the copy.
        load: called before the network runs, to have it on its device.
    """

    recompute = False

    def __init__(self, patcher, load: Callable[[], None] = lambda: None):
        self._patcher, self._load = patcher, load
        self.device = patcher.load_device
        self.model_sampling = patcher.get_model_object("model_sampling")

    @property
    def network(self) -> nn.Module:
        """The denoising network itself."""
        return self._patcher.model.diffusion_model

    @network.setter
    def network(self, network: nn.Module) -> None:
        self._patcher.model.diffusion_model = network

    def level(self, timestep: Tensor) -> Tensor:
        """Noise levels of training time in [0, 1], 1 = pure noise; the host's ``percent_to_sigma`` backwards."""
        sampling = self.model_sampling
        levels = [min(float(sampling.percent_to_sigma(1 - t)), float(sampling.sigma_max)) for t in timestep.tolist()]
        return torch.tensor(levels).clamp_min(float(sampling.sigma_min))

    def noised(self, latent: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
        """x at levels ``sigma`` (B,)."""
        return self.model_sampling.noise_scaling(sigma, noise, latent)

    def denoised(self, x: Tensor, sigma: Tensor, conditioning: Conditioning,
                 prepared: Sequence[Tensor] = ()) -> Tensor:
        """D(x, sigma, c) as the host's samplers compute it, LoRA and model patches included. x (B, C, h, w).

        Args:
            prepared: what ``prepare`` gave of these samples, or nothing.
        """
        return self._run(x, sigma, conditioning)

    def prepare(self, batch: Batch) -> Sequence[Tensor]:
        """What is the same for a sample whatever the style is: nothing, where the whole network sees the style."""
        return ()

    def _run(self, x: Tensor, sigma: Tensor, conditioning: Conditioning,
             patches: dict[str, list] | None = None) -> Tensor:
        """One call of the host, with further patches of its transformers."""
        self._load()
        extra = {**(conditioning.extra or {}), "pooled_output": conditioning.pooled}
        conds = {"positive": comfy.sampler_helpers.convert_cond([[conditioning.context, extra]])}
        conds = comfy.samplers.process_conds(self._patcher.model, x, conds, x.device)
        options = comfy.model_patcher.create_model_options_clone(self._patcher.model_options)
        transformer = options.setdefault("transformer_options", {})
        transformer["sample_sigmas"] = sigma
        transformer["optimized_attention_override"] = _exact_attention
        if patches:
            transformer["patches"] = patches
        recompute = self.recompute and torch.is_grad_enabled()
        with Differentiable(), recomputed(self.network) if recompute else nullcontext():
            return comfy.samplers.calc_cond_batch(self._patcher.model, [conds["positive"]], x, sigma, options)[0]
