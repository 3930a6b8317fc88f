"""Feed-forward style transfer against the official code's numbers, at any size and in any memory."""
from collections import OrderedDict
from functools import cache

import pytest
import torch
from inst_pack.inst_core.methods import Limits, adaattn, cast, load_style_model, stytr2
from inst_pack.inst_core.pictures import mean_std, normalise
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

ATOL = 1e-4
FILES = {  # as released, in any order
    "stytr2": ("decoder_iter_160000.pth", "transformer_iter_160000.pth", "embedding_iter_160000.pth"),
    "adaattn": ("vgg_normalised.pth", "latest_net_adaattn_3.pth", "latest_net_transformer.pth",
                "latest_net_decoder.pth"),
    "cast": ("latest_net_AE.pth", "latest_net_Dec_A.pth", "latest_net_Dec_B.pth"),
}
VIDEO = "attn_adain_video/"  # where its files lie
SMALL_LIMITS = (Limits(entries=100, tile=16), Limits(entries=2**12, tile=32))


@pytest.fixture(scope="module")
def data(golden):
    return cache(golden)


@pytest.fixture(scope="module")
def load(data):
    """``load("adaattn", VIDEO)``: the network of all files whose names begin so."""
    @cache
    def load(name: str, variant: str = ""):
        roles = [role for role in data(name).manifest if role.startswith(variant)]
        roles = [FILES["adaattn"][0], *roles] if variant else FILES[name]
        return load_style_model({role.split("/")[-1]: OrderedDict(data(name).state_dict(role)) for role in roles})
    return load


def error(data, model, case, **options):
    """In the range of the official output: CAST's is [-1, 1]."""
    found = model(*data.pair(case), **options)
    if data.folder.name == "cast":
        return (2 * found - 1 - data.tensor(f"{case}/fake_B")).abs().max().item()
    return (found - data.tensor(f"{case}/output")).abs().max().item()


@pytest.mark.parametrize("name, cases", [
    ("stytr2", ("sq64", "sq160", "ext_rect")),
    ("adaattn", ("sq64", "rect", "sample")),
    ("cast", ("sq64", "rect", "odd", "small_style")),
])
def test_official_output(data, load, name, cases):
    for case in cases:
        assert error(data(name), load(name), case) <= ATOL, case


@pytest.mark.parametrize("name, case", [("stytr2", "sq160"), ("stytr2", "ext_rect"), ("adaattn", "rect"),
                                        ("adaattn", "sample"), ("cast", "rect"), ("cast", "odd")])
def test_small_limits_give_the_same(data, load, name, case):
    for limits in SMALL_LIMITS:
        assert error(data(name), load(name), case, limits=limits) <= ATOL


@pytest.mark.parametrize("height, width", [(0, 0), (70, 45), (0, 1040)], ids=["smallest", "odd", "long"])
@pytest.mark.parametrize("name, variant", [("stytr2", ""), ("adaattn", ""), ("adaattn", VIDEO),
                                           ("cast", "")])
def test_any_size_keeps_its_size(load, name, variant, height, width):
    model, generator = load(name, variant), torch.Generator().manual_seed(0)
    content = torch.rand(1, 3, max(height, model.minimum_content), max(width, model.minimum_content),
                         generator=generator)
    result = model.stylize(content, torch.rand(1, 3, model.minimum_style, 40, generator=generator))
    assert result.shape == content.shape and result.std() > 0.01
    assert result.min() >= 0 and result.max() <= 1


# ---- StyTr2 ----

def test_stytr2s_intermediate_values(data, load):
    data, model = data("stytr2"), load("stytr2")
    content, style = data.pair("sq64")

    def close(found, key):
        torch.testing.assert_close(found, data.tensor(f"sq64/{key}"), atol=ATOL, rtol=0)

    tokens = model.embedding(content)
    close(tokens, "content_tokens")
    close(model.embedding(style), "style_tokens")
    pooled = nn.functional.adaptive_avg_pool2d(tokens, stytr2.CAPE_GRID)
    close(model.transformer.new_ps(pooled).mean(1), "cape_18x18_after_new_ps_mean_over_channels")
    encoded, encoded_style = model.encode_content(content, Limits()), model.encode_style(style, Limits())
    close(encoded[0].transpose(0, 1), "encoder_c")
    close(encoded_style[0].transpose(0, 1), "encoder_s")
    close(model.transform(encoded, encoded_style, Limits())[0], "transformer")


# ---- AdaAttN ----

@pytest.mark.parametrize("variant", ["variant_skip0_shallow0", "variant_skip1_shallow0", "variant_skip0_shallow1"])
def test_official_output_of_other_configurations(load, data, variant):
    assert error(data("adaattn"), load("adaattn", variant), variant) <= ATOL


def test_official_output_of_the_video_model(load, data):
    data, video = data("adaattn"), load("adaattn", VIDEO)
    assert video.name == "AdaAttN video"
    content, style = data.pair("rect")
    found = video(content, style)
    torch.testing.assert_close(found, data.tensor("video_rect/output"), atol=ATOL, rtol=0)
    encoded = video.encode_content(content, Limits()), video.encode_style(style, Limits())
    attention = video.transform(*encoded, Limits())[0].mean(1)
    torch.testing.assert_close(attention, data.tensor("video_rect/attn"), atol=ATOL, rtol=0)


def test_adaattns_intermediate_values(load, data):
    data, model = data("adaattn"), load("adaattn")
    content, style = data.pair("sq64")
    features, encoded = model.encode_content(content, Limits()), model.encode_style(style, Limits())
    blocks = model.transformer
    found = {
        "attn_4_1": blocks.attn_adain_4_1(features, encoded[0:2], Limits()),
        "attn_5_1": blocks.attn_adain_5_1(features, encoded[2:4], Limits()),
        "adaattn_3": model.skip(features, encoded[4:6], Limits()),
        "transformer": model.transform(features, encoded, Limits())[0],
    }
    for key, value in found.items():
        torch.testing.assert_close(value, data.tensor(f"sq64/{key}"), atol=ATOL, rtol=0, msg=key)


def test_style_positions_are_drawn_like_the_released_code_without_the_global_generator(data):
    before = torch.random.get_rng_state()
    n = 4624
    drawn = adaattn.sampled(torch.arange(n, dtype=torch.float32).view(1, n, 1), adaattn.SKIP_SAMPLES)
    assert drawn.shape == (1, adaattn.SKIP_SAMPLES, 1)
    assert drawn[0, :16, 0].long().tolist() == data("adaattn").tensor(f"sample/randperm_seed6666_n{n}_first16").tolist()
    assert torch.equal(torch.random.get_rng_state(), before)


class Largest(TorchDispatchMode):
    """Numbers in the largest tensor that an operation returns."""

    numel = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self.numel = max(self.numel, leaf.numel())
        return result


def test_limits_bound_the_attention_matrix(load):
    model = load("adaattn")
    content, style = torch.rand(1, 3, 192, 192), torch.rand(1, 3, 192, 192)
    style_features = model.encode_style(style, Limits())
    features = model.encode_content(content, Limits())
    positions = 48 * 48
    with Largest() as free:
        model.transform(features, style_features, Limits())
    with Largest() as bounded:
        model.transform(features, style_features, Limits(entries=positions * 64))
    assert free.numel == positions**2
    assert bounded.numel < positions**2 / 2


def test_limits_bound_full_resolution_convolutions(load):
    model, content = load("adaattn"), torch.rand(1, 3, 160, 160)
    with Largest() as free:
        model.encode_content(content, Limits())
    with Largest() as bounded:
        model.encode_content(content, Limits(tile=32))
    assert free.numel >= 64 * 160 * 160
    assert bounded.numel <= 64 * (32 + 2 * 16 + 2) ** 2 + 448 * 40 * 40


def test_large_style_pictures_are_cropped_to_whole_strides(monkeypatch):
    monkeypatch.setattr(adaattn, "UNTILED", 64)
    assert adaattn.whole_strides(torch.zeros(1, 3, 63, 64)).shape[2:] == (63, 64)
    assert adaattn.whole_strides(torch.zeros(1, 3, 75, 95)).shape[2:] == (64, 80)


def test_cosine_attention_is_the_papers_though_it_is_linear(load):
    """Against the official arithmetic with its matrix of weights, in double precision."""
    generator = torch.Generator().manual_seed(0)
    content = tuple(torch.randn(1, c, 48 // 2**i, 32 // 2**i, generator=generator).relu() + 1
                    for i, c in enumerate((64, 128, 256)))
    style = tuple(torch.randn(1, c, 64 // 2**i, 80 // 2**i, generator=generator).relu() * 3
                  for i, c in enumerate((64, 128, 256)))
    block = load("adaattn", VIDEO).block
    found = block(content, block.style(style), Limits())

    q = adaattn.project(block.f, adaattn.positions(adaattn.key(content, 3, True))).double()
    k = adaattn.project(block.g, adaattn.positions(adaattn.key(style, 3, True))).double()
    v = adaattn.project(block.h, adaattn.positions(style[2])).double()
    weights = torch.relu(q @ k.mT / (q.norm(dim=-1)[..., None] + 1e-5) / (k.norm(dim=-1)[:, None] + 1e-5) + 1)
    weights /= weights.sum(-1, keepdim=True) + 1e-5
    mean, square = weights @ v, weights @ v.square()
    expected = torch.relu(square - mean.square()).sqrt() * adaattn.positions(normalise(content[2])) + mean
    torch.testing.assert_close(adaattn.positions(found).double(), expected, atol=ATOL, rtol=1e-4)


# ---- CAST ----

def test_casts_intermediate_values(load, data):
    data, model = data("cast"), load("cast")
    content, style = (model._relu4_1(picture, Limits()) for picture in data.pair("sq64"))
    torch.testing.assert_close(content, data.tensor("sq64/content_relu4_1"), atol=ATOL, rtol=0)
    torch.testing.assert_close(style, data.tensor("sq64/style_relu4_1"), atol=ATOL, rtol=0)
    found = cast.adain(content, *mean_std(style))
    torch.testing.assert_close(found, data.tensor("sq64/adain_feat"), atol=ATOL, rtol=0)


def test_the_decoder_for_paintings_is_used(load, data):
    """Dec_A lies in the same folder and has the same keys and shapes."""
    expected = data("cast").state_dict("latest_net_Dec_B.pth")["decoder.1.weight"]
    assert torch.equal(load("cast").decoder.state_dict()["1.weight"], expected)
