"""The user's model as it is: what a MODEL or CLIP carries is seen while learning, or refused before any work."""
import functools
import types

import comfy.model_management
import pytest
import torch
from comfy.patcher_extension import PatcherInjection
from comfy_api.torch_helpers import set_torch_compile_wrapper
from comfy_extras.nodes_hypernetwork import load_hypernetwork_patch
from comfy_extras.nodes_lora_debug import LoraLoaderBypass
from comfy_extras.nodes_model_advanced import ModelSamplingDiscrete
from inst_pack.inst_core import host
from inst_pack.inst_core.host.patches import check_copyable
from inst_pack.inst_core.style import Style
from inst_pack.nodes.inversion import InSTSample
from inst_pack.nodes.style import InSTStyleConditioning

import nodes as host_nodes

LORA = "inst-small-lora.safetensors"
HEAD = "diffusion_model.out.2"  # the denoiser's last convolution


def latent(seed: int = 0) -> torch.Tensor:
    return torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(seed))


def vectors() -> dict:
    return {"clip_l": torch.randn(2, 768, generator=torch.Generator().manual_seed(3)) * 0.02}


def learned_from(model, clip) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(context, denoised prediction, gradient of its sum to the style) as learning sees them."""
    with host.training.training_mode(), host.training.training_session(model, clip, "a house, *", 2) as session:
        style = {k: v.clone().requires_grad_() for k, v in vectors().items()}
        with session.text.recording():
            conditioning = session.text.encode(style)
            sigma = torch.tensor([2.0], device=session.device)
            out = session.denoiser.denoised(latent().to(session.device) * 2, sigma, conditioning)
            out.float().square().sum().backward()
        return conditioning.context.detach().float().cpu(), out.detach().float().cpu(), style["clip_l"].grad.cpu()


def close(found, expected, near=1e-3):
    """To ``near`` of their size, or what half precision allows on devices that compute in it."""
    near = near if comfy.model_management.get_torch_device().type == "cpu" else 0.2
    for a, b in zip(found, expected, strict=True):
        assert (a - b).norm() <= near * b.norm()


def differ(a, b) -> bool:
    return float((a - b).abs().max()) > 1e-3 * float(b.abs().max())


def sampled(model, clip) -> torch.Tensor:
    prompts = [clip.encode_from_tokens_scheduled(clip.tokenize(t)) for t in ("a house", "")]
    return InSTSample.execute(model, *prompts, {"samples": latent()}, 2, 3.0, "euler", "normal", 0.7, 0,
                              "matched").result[0]["samples"]


def bypassed(model, clip, strength: float):
    return LoraLoaderBypass().load_lora(model, clip, LORA, strength, strength)


# ---- LoRA in bypass mode ----

@pytest.fixture(scope="module")
def plain(loaded):
    """What is learned from without any patch."""
    with torch.inference_mode():
        return learned_from(*loaded[:2])


@pytest.mark.parametrize("on_model, on_clip", [(3.0, 3.0), (-1.0, 0.0), (0.0, 1.0)])
def test_a_lora_in_bypass_mode_is_seen_as_any_lora(small, plain, on_model, on_clip):
    model, clip, _ = small
    usual = learned_from(*host_nodes.LoraLoader().load_lora(model, clip, LORA, on_model, on_clip))
    bypass = learned_from(*LoraLoaderBypass().load_lora(model, clip, LORA, on_model, on_clip))
    close(bypass, usual, 1e-2)
    assert differ(bypass[1], plain[1]) and differ(bypass[0], plain[0]) is (on_clip != 0)


def test_the_users_model_keeps_its_lora_and_nothing_else(small):
    """Loaded and injected before and after learning; the plain model beside it stays plain."""
    model, clip, _ = small
    patched = bypassed(model, clip, 1.0)
    before, plain = sampled(*patched), sampled(model, clip)
    learned_from(*patched)
    assert torch.equal(sampled(*patched), before) and torch.equal(sampled(model, clip), plain)
    assert differ(before, plain)
    applied = [InSTStyleConditioning.execute(patched[1], Style(vectors(), family="SD15"), "a house, *", 1.0).result[0]
               for _ in range(2)]
    assert torch.equal(applied[0][0][0], applied[1][0][0])
    close([applied[0][0][0].float()], [learned_from(*patched)[0]])


def test_inversion_and_sampling_see_it_too(small):
    model, clip, _ = small
    usual = host_nodes.LoraLoader().load_lora(model, clip, LORA, 1.0, 1.0)
    close([sampled(*bypassed(model, clip, 1.0))], [sampled(*usual)], 5e-3)


# ---- object patches ----

def with_object(model, name: str, patch):
    model = model.clone()
    model.add_object_patch(name, patch)
    return model


@pytest.mark.parametrize("name, used", [("diffusion_model", False), ("diffusion_model.out", True)])
def test_a_compiled_part_is_learned_on_as_the_part_itself(small, plain, name, used):
    """As an object patch, the way of older packs; before and after it was used."""
    model, clip, _ = small
    compiled = with_object(model, name, torch.compile(model.get_model_object(name), backend="eager"))
    if used:
        close([sampled(compiled, clip)], [sampled(model, clip)])
    close(learned_from(compiled, clip), plain)
    assert compiled.object_patches.keys() == {name}


def test_the_hosts_compiled_model(small, plain):
    model, clip, _ = small
    compiled = model.clone()
    set_torch_compile_wrapper(compiled, backend="eager", keys=["diffusion_model.out"])
    close(learned_from(compiled, clip), plain)
    close([sampled(compiled, clip)], [sampled(model, clip)])


def test_a_replaced_module_made_by_a_node_can_be_differentiated_through(small, plain):
    model, clip, _ = small
    assert torch.is_inference_mode_enabled()
    original = model.get_model_object(HEAD)
    head = torch.nn.Conv2d(320, 4, 3, padding=1)
    head.load_state_dict({k: v.float() * 2 for k, v in original.state_dict().items()})
    head = torch.nn.Sequential(head.to(original.weight.dtype))
    patched = with_object(model, HEAD, head)
    found = learned_from(patched, clip)
    x = latent() * 2
    close([found[1] - x], [(plain[1] - x) * 2], 5e-3)  # twice the noise
    assert differ(found[2], plain[2])


def test_an_exchanged_method_is_the_copys(small, plain):
    """Of a module and of the whole model."""
    model, clip, _ = small

    def twice(self, x, *args, **named):
        return type(self).forward(self, x, *args, **named) * 2

    patched = with_object(model, f"{HEAD}.forward", types.MethodType(twice, model.get_model_object(HEAD)))
    x = latent() * 2
    close([learned_from(patched, clip)[1] - x], [(plain[1] - x) * 2], 5e-3)

    def shifted(self, x, *args, **named):
        return type(self)._apply_model(self, x, *args, **named) + 1

    patched = with_object(model, "_apply_model", types.MethodType(shifted, model.model))
    close([learned_from(patched, clip)[1]], [plain[1] + 1], 5e-3)


def test_other_kinds_of_patches_go_along(small, plain):
    """Another sampling, plain values."""
    model, clip, _ = small
    zero = ModelSamplingDiscrete().patch(model, "v_prediction", True)[0]
    with host.training.training_mode(), host.training.training_session(zero, clip, "*", 1) as session:
        assert float(session.denoiser.model_sampling.sigma_max) > 100
    valued, text = with_object(model, "memory_usage_factor", 1.5), clip.clone()
    text.patcher.add_object_patch("manual_cast_dtype", None)  # which the host adds on GPUs, and it may be None
    close(learned_from(valued, text), plain)


class Wrapped(torch.nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, *args, **named):
        return self.inner(*args, **named)


def holding(method):
    def forward(*args, **named):
        return method(*args, **named)
    return forward


@pytest.mark.parametrize("used", [False, True], ids=["fresh", "used"])
@pytest.mark.parametrize("make", [
    lambda module: Wrapped(module),
    lambda module: torch.compile(Wrapped(module), backend="eager"),
    lambda module: holding(module.forward),
    lambda module: functools.partial(module.forward),
], ids=["module", "compiled wrapper", "function", "partial"])
def test_what_holds_the_models_own_layers_is_refused(small, make, used):
    model, clip, _ = small
    patch = make(model.get_model_object(HEAD))
    name = HEAD if isinstance(patch, torch.nn.Module) else f"{HEAD}.forward"
    patched = with_object(model, name, patch)
    if used:
        sampled(patched, clip)
    with pytest.raises(ValueError, match=rf"model carries a replaced part \('{name}', .*before the node that replaced"):
        check_copyable(patched, "model")


def test_a_hypernetwork_takes_part(small, plain, tmp_path):
    """Its layers and whatever else attention patches hold were made by a node, in inference mode."""
    model, clip, _ = small
    rows = [{"linear.0.weight": torch.eye(768) * scale, "linear.0.bias": torch.zeros(768)} for scale in (0.5, -0.5)]
    torch.save({768: rows, "activation_func": "tanh", "activate_output": True}, tmp_path / "hyper.pt")
    patched, scale = model.clone(), torch.full((768,), 1.1)
    patched.set_model_attn2_patch(load_hypernetwork_patch(str(tmp_path / "hyper.pt"), 1.0))
    patched.set_model_attn2_patch(lambda q, k, v, options: (q, k * scale, v))
    assert scale.is_inference()
    context, out, gradient = learned_from(patched, clip)
    assert torch.equal(context, plain[0]) and differ(out, plain[1]) and differ(gradient, plain[2])


def test_unknown_injections_are_refused(small):
    model, clip, _ = small
    injected, text = model.clone(), clip.clone()
    for patcher in (injected, text.patcher):
        patcher.set_injections("motion", [PatcherInjection(inject=lambda p: None, eject=lambda p: None)])
    with pytest.raises(ValueError, match="model carries 'motion'.*Connect model from before the node that added it"):
        learned_from(injected, clip)
    with pytest.raises(ValueError, match="clip carries 'motion'"):
        learned_from(model, text)
