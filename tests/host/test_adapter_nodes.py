"""The adapter on the host's models: learned, saved, applied, refused."""
import dataclasses

import comfy.sample
import comfy.sd
import pytest
import torch
from graph import learn
from inst_pack.inst_core import host
from inst_pack.inst_core.adapter import Adapter, late_half
from inst_pack.inst_core.encoders import DirectEncoder
from inst_pack.inst_core.host import adapter as host_adapter
from inst_pack.inst_core.host.denoiser import Denoiser
from inst_pack.inst_core.host.style_layers import StyleLayersDenoiser, first_late_block
from inst_pack.inst_core.objective import squared_error
from inst_pack.inst_core.recipes import Recipe
from inst_pack.inst_core.style import Style, load_style
from inst_pack.nodes.adapter import InSTApplyStyleAdapter
from test_style_layers import DEVICE, SD15, bank, patcher, prompt

RECIPE = Recipe(tokens=2, steps=3, batch=2)


def moved(network, layers=None, rank: int = 2) -> Adapter:
    """An adapter that was learned."""
    with host.training.training_mode():
        adapter = Adapter(layers or late_half(network), rank, torch.Generator().manual_seed(0))
        for update in adapter.updates.values():
            shape = update.lora_up.weight.shape
            update.lora_up.weight.data = torch.randn(shape, generator=torch.Generator().manual_seed(1)) * 0.1
    return adapter


def style_with(adapter: Adapter | None = None) -> Style:
    vectors = {"clip_l": torch.zeros(2, 768)}
    return Style(vectors, family="SD15", adapter={} if adapter is None else adapter.weights)


def prediction(model, clip) -> torch.Tensor:
    """What one step of a stock sampler makes of noise."""
    said = clip.encode_from_tokens_scheduled(clip.tokenize("a house"))
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(3))
    return comfy.sample.sample(model, noise, 1, 3.0, "euler", "normal", said, said, torch.zeros(1, 4, 8, 8),
                               disable_pbar=True, seed=0)


def test_merged_and_unmerged_predict_the_same_and_strength_zero_is_the_model_itself(small, rounding):
    model, clip, _ = small
    adapter = moved(model.model.diffusion_model)
    plain = prediction(model, clip)
    with adapter.attached(model.model.diffusion_model):
        unmerged = prediction(model, clip)
    merged, half, nothing = (prediction(InSTApplyStyleAdapter.execute(model, style_with(adapter), strength).result[0],
                                        clip) for strength in (1.0, 0.5, 0.0))
    scale = float((unmerged - plain).abs().max())
    assert scale > 0.05 * float(plain.abs().max())
    assert float((merged - unmerged).abs().max()) < max(1e-4, 20 * rounding(model)) * scale
    assert 0.2 * scale < float((half - plain).abs().max()) < 0.9 * scale
    assert torch.equal(nothing, plain) and torch.equal(prediction(model, clip), plain)
    lora = {f"diffusion_model.{key}": tensor for key, tensor in adapter.weights.items()}
    assert torch.equal(prediction(comfy.sd.load_lora_for_models(model, None, lora, 1.0, 0.0)[0], clip), merged)


def test_the_node_learns_saves_and_finds_it_and_leaves_the_model_alone(small, pictures):
    weights = {key: tensor.clone() for key, tensor in small[0].model.state_dict().items()}
    settings = {"steps": 3, "learning_rate": 0.01, "batch_size": 2, "adapter_rank": 2}
    learned = learn(small, pictures[:1], **settings)
    style = learned.result[0]
    assert style.adapter_rank == 2
    names = {key.rsplit(".", 2)[0] for key in style.adapter}
    assert names == set(late_half(small[0].model.diffusion_model))
    assert all(tensor.abs().max() > 0 for tensor in style.adapter.values())  # also the factors that began at zero
    saved = load_style(next(path for folder in host.files.style_folders() for path in folder.glob("*.safetensors")))
    assert saved.adapter.keys() == style.adapter.keys()
    assert all(torch.equal(saved.adapter[key], tensor) for key, tensor in style.adapter.items())
    again = learn(small, pictures[:1], **settings)
    assert "is loaded, learned on" in again.ui.as_dict()["text"][0] and again.result[0].adapter_rank == 2
    assert all(torch.equal(tensor, weights[key]) for key, tensor in small[0].model.state_dict().items())
    assert not small[0].patches and not small[0].injections


def test_it_goes_on_from_a_style_with_the_same_rank(small):
    model, clip, _ = small
    begun = dataclasses.replace(style_with(moved(model.model.diffusion_model)), encoder_weights={})
    encoder = host.learning.make_encoder(clip, RECIPE, begun)
    module = host.adapter.with_adapter(encoder, model, 2, RECIPE, continue_from=begun)
    assert all(torch.equal(tensor, begun.adapter[key]) for key, tensor in module.adapter.weights.items())
    assert host.adapter.with_adapter(encoder, model, 0, RECIPE) is encoder
    for rank in (0, 3):
        with pytest.raises(ValueError, match=f"adapter of rank 2, and adapter_rank is {rank}. Set adapter_rank to 2"):
            host.adapter.with_adapter(encoder, model, rank, RECIPE, continue_from=begun)
    key, tensor = next(iter(begun.adapter.items()))
    other = dataclasses.replace(begun, adapter={**begun.adapter, f"x.{key}": tensor})
    with pytest.raises(ValueError, match="continue_from is a style whose adapter is for other layers"):
        host.adapter.with_adapter(encoder, model, 2, RECIPE, continue_from=other)


def test_what_does_not_fit_is_refused_in_a_sentence(small, monkeypatch):
    model = small[0]
    with pytest.raises(ValueError, match="style has no adapter: it was learned with adapter_rank 0"):
        InSTApplyStyleAdapter.execute(model, style_with(), 1.0)
    fits = style_with(moved(model.model.diffusion_model))
    key = next(key for key in fits.adapter if key.endswith("attn2.to_k.lora_down.weight"))
    wide = dataclasses.replace(fits, adapter={**fits.adapter, key: torch.ones(2, 1024)}, family="SD20")
    with pytest.raises(ValueError, match=r"learned on SD20 and does not fit the connected model \(SD15\).*of 1024 "
                                         "inputs, and this model has 768 there. Connect a model of the family"):
        InSTApplyStyleAdapter.execute(model, wide, 1.0)
    foreign = {f"layers.3.attention.qkv.{end}": torch.ones(2, 2) for end in ("lora_up.weight", "lora_down.weight")}
    with pytest.raises(ValueError, match="learned on ZImage.*layers.3.attention.qkv of 2.*does not have it"):
        InSTApplyStyleAdapter.execute(model, dataclasses.replace(fits, adapter=foreign, family="ZImage"), 0.0)
    with pytest.raises(ValueError, match="adapter_rank is -1; expected 0 for no adapter"):
        host.adapter.with_adapter(DirectEncoder({"clip_l": torch.ones(1, 768)}, 2), model, -1, RECIPE)
    monkeypatch.setattr(host_adapter, "LARGEST", 10**5)
    with pytest.raises(ValueError, match="adapter_rank is 64, which makes an adapter of .* Set adapter_rank to "):
        host.adapter.with_adapter(DirectEncoder({"clip_l": torch.ones(1, 768)}, 2), model, 64, RECIPE)


def errors(denoiser, samples, adapter):
    """(errors, gradients of the adapter)"""
    adapter.zero_grad()
    said = prompt(1)
    with host.training.training_mode(), adapter.attached(denoiser.network):
        error, _ = squared_error(denoiser, samples, said, DEVICE)
        error.mean().backward()
    return error.detach(), [parameter.grad.clone() for parameter in adapter.parameters()]


def test_with_late_layers_only_they_are_adapted_so_what_is_prepared_stays_true():
    model = patcher(SD15)
    network, late = model.model.diffusion_model, first_late_block(model.model.diffusion_model)
    layers = host_adapter._late_layers(model, "late")
    assert layers and all(name.startswith("output_blocks.") and int(name.split(".")[1]) >= late for name in layers)
    assert len(layers) < len(host_adapter._late_layers(model, "all"))
    denoiser, samples, adapter = StyleLayersDenoiser(model, prompt(2)), bank(), moved(network, layers)
    with host.training.training_mode():
        prepared = dataclasses.replace(samples, prepared=tuple(denoiser.prepare(samples)))  # before it was learned
    (fresh, first), (ready, second) = (errors(denoiser, part, adapter) for part in (samples, prepared))
    torch.testing.assert_close(ready, fresh, rtol=1e-4, atol=1e-5)
    for one, two in zip(first, second, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-3, atol=1e-6)
    with host.training.training_mode(), moved(network).attached(network):  # in earlier layers it would not
        assert not torch.allclose(denoiser.prepare(samples)[0], prepared.prepared[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_recomputation_and_half_precision_change_its_gradient_by_rounding_only(dtype):
    model = patcher(SD15)
    with host.training.training_mode():
        network = model.model.diffusion_model.to(dtype)
        network.dtype = dtype
    denoiser, adapter = Denoiser(model), moved(network)
    _, kept = errors(denoiser, bank(2), adapter)
    denoiser.recompute = True
    _, again = errors(denoiser, bank(2), adapter)
    assert all(torch.equal(one, two) for one, two in zip(kept, again, strict=True))
    assert all(gradient.dtype == torch.float32 and torch.isfinite(gradient).all() for gradient in kept)


def test_it_stays_where_it_is_while_a_lora_in_bypass_mode_comes_and_goes():
    """The host takes such a LoRA out of the layers and puts it back whenever the denoiser leaves and returns."""
    model = patcher(SD15)
    network, adapter = model.model.diffusion_model, moved(model.model.diffusion_model)
    name, layer = next(iter(late_half(network).items()))
    lora = {f"diffusion_model.{name}.lora_up.weight": torch.full((layer.out_features, 1), 0.1),
            f"diffusion_model.{name}.lora_down.weight": torch.full((1, layer.in_features), 0.1)}
    model, _ = comfy.sd.load_bypass_lora_for_models(model, None, lora, 1.0, 0.0)
    denoiser = Denoiser(model)
    without, _ = errors(denoiser, bank(2), adapter)
    with adapter.attached(network):  # the denoiser's first run comes before the LoRA
        found = []
        for _ in range(2):
            model.inject_model()
            with host.training.training_mode():
                found.append(squared_error(denoiser, bank(2), prompt(1), DEVICE)[0].detach())
            model.eject_model()
        after, _ = squared_error(denoiser, bank(2), prompt(1), DEVICE)
    assert torch.equal(found[0], found[1]) and not torch.equal(found[0], without)
    assert torch.equal(after, without)
