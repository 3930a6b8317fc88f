"""The adapter beside the pseudo-words: where it acts, what it computes, and that the loop keeps both together."""
import contextlib
from dataclasses import replace

import pytest
import torch
from inst_pack.inst_core.adapter import AdaptedEncoder, Adapter, attention_layers, late_half, part_weights
from inst_pack.inst_core.bank import held_out_bank
from inst_pack.inst_core.batch_plan import BatchPlan
from inst_pack.inst_core.learning import held_out_loss
from inst_pack.inst_core.style import Style, load_style, save_style, to_bytes
from safetensors.torch import load, save_file
from test_learning_loop import FAST, Denoiser, Session, Stop, encoder, learn, painting, stopping
from torch import nn
from torch.utils.checkpoint import checkpoint

WIDTH = 6


def draw(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Identity())

    def forward(self, x):
        q, k, v = self.qkv(x).chunk(3, -1)
        return self.out(nn.functional.scaled_dot_product_attention(q, k, v))


class Block(nn.Module):
    """With its attention in a module, or together with the MLP in two layers, or none of it."""

    def __init__(self, kind: str):
        super().__init__()
        self.kind = kind
        if kind == "apart":
            self.attn, self.mlp = Attention(), nn.Linear(WIDTH, WIDTH)
        elif kind == "fused":
            self.linear1, self.linear2 = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)
        else:
            self.parameters_of_pixels = nn.Linear(WIDTH, WIDTH)

    def forward(self, x):
        if self.kind == "apart":
            return x + self.mlp(self.attn(x))
        if self.kind == "fused":
            q, k, v, mlp = self.linear1(x).chunk(4, -1)
            return x + self.linear2(torch.cat([nn.functional.scaled_dot_product_attention(q, k, v), mlp], -1))
        return x + self.parameters_of_pixels(x)


class Network(nn.Module):
    def __init__(self, *kinds: str):
        super().__init__()
        self.embed = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.SiLU(), nn.Linear(WIDTH, WIDTH))
        self.blocks = nn.ModuleList([Block(kind) for kind in kinds])
        self.middle = nn.Sequential(Block("apart"))
        self.requires_grad_(False)

    def forward(self, x):
        x = self.embed(x)
        for block in [*self.blocks, self.middle]:
            x = block(x)
        return x


@pytest.fixture()
def network() -> Network:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Network("apart", "fused", "none")


def moved(network: nn.Module, rank: int = 2) -> Adapter:
    """An adapter that was learned."""
    adapter = Adapter(late_half(network), rank, draw())
    for tensor in adapter.parameters():
        tensor.data = torch.randn(tensor.shape, generator=draw(tensor.numel()))
    return adapter


def test_the_attention_of_the_late_half_is_found(network):
    assert [list(layers) for _, layers in attention_layers(network)] == [
        ["blocks.0.attn.qkv", "blocks.0.attn.out.0"], ["blocks.1.linear1", "blocks.1.linear2"],
        ["middle.0.attn.qkv", "middle.0.attn.out.0"]]
    assert set(late_half(network)) == {"blocks.1.linear1", "blocks.1.linear2", "middle.0.attn.qkv",
                                       "middle.0.attn.out.0"}
    compiled = nn.Module()  # as torch.compile makes it
    compiled._orig_mod = network
    assert list(late_half(compiled)) == list(late_half(network))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_attached_it_is_what_it_is_added_to_the_weights_and_gone_afterwards(network, dtype):
    adapter, x = moved(network), torch.randn(2, 5, WIDTH, generator=draw(7)).to(dtype)
    network.to(dtype)
    plain = network(x)
    with adapter.attached(network):
        attached = network(x)
    assert attached.dtype == dtype and torch.equal(network(x), plain)
    weights, rough = adapter.weights, 1e-5 if dtype == torch.float32 else 0.1
    for name, layer in late_half(network).items():
        layer.weight += weights[f"{name}.lora_up.weight"] @ weights[f"{name}.lora_down.weight"]
    torch.testing.assert_close(attached, network(x), rtol=rough, atol=rough * float(plain.abs().max()))
    assert (attached - plain).abs().max() > 0.5


def test_fresh_it_changes_nothing_and_is_drawn_from_its_seed_alone(network):
    state = torch.random.get_rng_state()
    one, two, other = (Adapter(late_half(network), 2, draw(seed)) for seed in (0, 0, 1))
    x = torch.randn(2, 5, WIDTH, generator=draw())
    with one.attached(network):
        attached = network(x)
    assert torch.equal(attached, network(x)) and torch.equal(state, torch.random.get_rng_state())
    down = "blocks.1.linear1.lora_down.weight"
    assert torch.equal(one.weights[down], two.weights[down]) and not torch.equal(one.weights[down], other.weights[down])


def test_recomputed_layers_give_the_same_gradient(network):
    adapter, x = moved(network), torch.randn(2, 5, WIDTH, generator=draw())

    def gradients(run) -> list[torch.Tensor]:
        adapter.zero_grad()
        with adapter.attached(network):
            run().square().mean().backward()
        return [p.grad.clone() for p in adapter.parameters()]

    kept, again = gradients(lambda: network(x)), gradients(lambda: checkpoint(network, x, use_reentrant=False))
    assert all(torch.equal(a, b) for a, b in zip(kept, again, strict=True)) and kept[0].abs().max() > 0


# ---- the loop ----

class Lens(nn.Module):
    """Scales what the style says: a network that an adapter can change."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList([nn.ModuleDict({"attn": nn.Linear(4, 4, bias=False)})])
        self.blocks[0]["attn"].weight.data = torch.eye(4) * 0.2
        self.requires_grad_(False)


class AdaptableDenoiser(Denoiser):
    """What is right differs from level to level, and only the layer sees the level: words alone cannot say it."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def denoised(self, x, sigma, conditioning, prepared=()):
        said = self.network.blocks[0]["attn"](conditioning.context[0, 0, :4].expand(len(sigma), 4) + sigma.view(-1, 1))
        return super().denoised(x, sigma, conditioning) * 0 + said.view(-1, 4, 1, 1)


def adaptable() -> tuple[Session, AdaptedEncoder, contextlib.AbstractContextManager]:
    network = Lens()
    session = Session(AdaptableDenoiser(network))
    module = AdaptedEncoder(encoder(), Adapter(late_half(network), 2, draw()))
    return session, module, module.attached(session)


def test_words_and_adapter_together_come_closer_than_words_alone():
    session, module, attached = adaptable()
    alone = learn(replace(FAST, steps=60), session=session)
    with attached:
        both = learn(replace(FAST, steps=60), module, session)
    assert both.kept < 0.95 * alone.kept
    assert not alone.adapter and set(both.adapter) == {"blocks.0.attn.lora_up.weight", "blocks.0.attn.lora_down.weight"}
    assert set(both.weights) == {"vectors.clip_l"} and torch.equal(both.weights["vectors.clip_l"],
                                                                   both.vectors["clip_l"])


def test_cancel_keeps_the_best_words_and_the_adapter_that_belongs_to_them():
    session, module, attached = adaptable()
    rescued = []
    with attached, pytest.raises(Stop):
        learn(replace(FAST, patience=None), module, session, stopping(47), rescue=rescued.append)
    session, fresh, attached = adaptable()
    fresh.encoder.vectors["clip_l"].data = rescued[0].vectors["clip_l"]
    fresh.adapter.load(rescued[0].adapter)
    with attached:
        loss = held_out_loss(session, fresh, None, held_out_bank(painting().whole), BatchPlan(8))
    assert loss == pytest.approx(min(check.loss for check in rescued[0].checks), rel=1e-6)


def test_an_encoder_without_an_adapter_keeps_its_weights():
    weights = encoder().state_dict()
    assert part_weights(weights) == (weights, {})


# ---- the file ----

def style(network: nn.Module, rank: int = 2) -> Style:
    return Style({"clip_l": torch.randn(2, 768, generator=draw())}, family="SD15", adapter=moved(network, rank).weights)


def test_a_file_brings_the_adapter_back_bit_for_bit_beside_words_that_stay_readable(network, tmp_path):
    saved = style(network)
    save_style(saved, tmp_path / "wave.safetensors")
    found = load_style(tmp_path / "wave.safetensors")
    assert found.adapter_rank == 2 and not found.extra and found.adapter.keys() == saved.adapter.keys()
    assert all(torch.equal(found.adapter[key], tensor) for key, tensor in saved.adapter.items())
    stored = load((tmp_path / "wave.safetensors").read_bytes())
    assert "inst.adapter.diffusion_model.blocks.1.linear1.lora_up.weight" in stored
    assert [key for key in stored if not key.startswith("inst.")] == ["clip_l"]
    assert Style(saved.vectors).adapter_rank == 0


@pytest.mark.parametrize("spoil", [
    lambda adapter: adapter.pop("blocks.1.linear1.lora_up.weight"),
    lambda adapter: adapter.update({"blocks.1.linear1.lora_up.weight": torch.ones(24, 3)}),
    lambda adapter: adapter.update({"blocks.1.linear1.lora_up.weight": torch.ones(24)}),
    lambda adapter: adapter.update({"blocks.1.linear1.alpha": torch.ones(())}),
    lambda adapter: adapter.update({"blocks.0.mlp.lora_up.weight": torch.ones(6, 3),
                                    "blocks.0.mlp.lora_down.weight": torch.ones(3, 6)}),
], ids=["half of a pair", "another rank", "no matrix", "a stranger", "two ranks"])
def test_a_damaged_adapter_is_refused_by_name(network, tmp_path, spoil):
    broken, path = style(network), tmp_path / "torn.safetensors"
    tensors = load(to_bytes(broken))
    spoil(adapter := dict(broken.adapter))
    kept = {key: tensor for key, tensor in tensors.items() if not key.startswith("inst.adapter.")}
    save_file(kept | {f"inst.adapter.diffusion_model.{key}": tensor for key, tensor in adapter.items()}, path,
              {"inst.version": "1"})
    with pytest.raises(ValueError, match="torn.safetensors: the adapter.*Copy the file again"):
        load_style(path)
    with pytest.raises(ValueError, match="the style: the adapter"):
        save_style(replace(broken, adapter=adapter), tmp_path / "new.safetensors")
    assert not (tmp_path / "new.safetensors").exists()
