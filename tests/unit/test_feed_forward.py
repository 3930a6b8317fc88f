"""The feed-forward methods compute what the authors' programs compute, in any size and with little memory."""
import pytest
import torch
from inst_pack.inst_core.methods import Limits, adaattn
from inst_pack.inst_core.pictures import normalise
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

ATOL = 1e-4
VGG = "vgg_normalised.pth"
ADAATTN = (VGG, "latest_net_adaattn_3.pth", "latest_net_transformer.pth", "latest_net_decoder.pth")
CAST = ("latest_net_AE.pth", "latest_net_Dec_A.pth", "latest_net_Dec_B.pth")
STYTR2 = ("decoder_iter_160000.pth", "transformer_iter_160000.pth", "embedding_iter_160000.pth")
VARIANTS = ("variant_skip0_shallow0", "variant_skip1_shallow0", "variant_skip0_shallow1")


@pytest.fixture(scope="module")
def data(golden):
    return {name: golden(name) for name in ("adaattn", "cast", "stytr2")}


@pytest.fixture(scope="module")
def models(data, tmp_path_factory):
    def load(name, *roles):
        return data[name].load_model(tmp_path_factory.mktemp(name), *roles)

    def named(start):
        return [VGG, *(role for role in data["adaattn"].manifest if role.startswith(start))]

    return {"adaattn": load("adaattn", *ADAATTN), "cast": load("cast", *CAST), "stytr2": load("stytr2", *STYTR2),
            "video": load("adaattn", *named("attn_adain_video/")),
            **{variant: load("adaattn", *named(variant)) for variant in VARIANTS}}


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


def error(model, data, case, **options):
    """The largest difference, in the number range of the network (CAST's is [-1, 1])."""
    found = model(*data.pair(case), **options)
    if f"{case}/fake_B" in data.expected:
        return (2 * found - 1 - data.tensor(f"{case}/fake_B")).abs().max().item()
    return (found - data.tensor(f"{case}/output")).abs().max().item()


def close(found, expected):
    torch.testing.assert_close(found, expected, atol=ATOL, rtol=0)


# ---- what all of them promise ----

@pytest.mark.parametrize("name, case", [
    *(("adaattn", case) for case in ("sq64", "rect", "sample")),
    *(("cast", case) for case in ("sq64", "rect", "odd", "small_style")),
    *(("stytr2", case) for case in ("sq64", "sq160", "ext_rect"))])
def test_official_output(models, data, name, case):
    assert error(models[name], data[name], case) <= ATOL


@pytest.mark.parametrize("name, case, limits", [
    *(("adaattn", case, limits) for case in ("rect", "sample")
      for limits in (Limits(entries=100, tile=16), Limits(entries=2**12, tile=32))),
    *(("cast", case, Limits(tile=16)) for case in ("rect", "odd")),
    *(("stytr2", case, limits) for case in ("sq160", "ext_rect")
      for limits in (Limits(entries=100, tile=16), Limits(entries=2**10, tile=32)))])
def test_small_limits_give_the_same(models, data, name, case, limits):
    assert error(models[name], data[name], case, limits=limits) <= ATOL


@pytest.mark.parametrize("name, height, width", [
    *((name, *size) for name in ("adaattn", "video") for size in ((32, 32), (61, 72), (33, 1040))), ("video", 16, 16),
    ("cast", 9, 9), ("cast", 70, 52), ("cast", 11, 4096), ("stytr2", 17, 16), ("stytr2", 70, 45), ("stytr2", 16, 4096)])
def test_any_size_keeps_its_size(models, name, height, width):
    generator = torch.Generator().manual_seed(0)
    content, style = torch.rand(1, 3, height, width, generator=generator), torch.rand(1, 3, 17, 40, generator=generator)
    result = models[name].stylize(content, style)
    assert result.shape == content.shape and result.min() >= 0 and result.max() <= 1 and result.std() > 0.01


# ---- AdaAttN ----

@pytest.mark.parametrize("variant", VARIANTS)
def test_official_output_of_other_configurations_of_adaattn(models, data, variant):
    assert error(models[variant], data["adaattn"], variant) <= ATOL


def test_official_output_of_the_video_model(models, data):
    video, data = models["video"], data["adaattn"]
    assert video.name == "AdaAttN video"
    content, style = data.pair("rect")
    close(video(content, style), data.tensor("video_rect/output"))
    encoded = video.encode_content(content, Limits()), video.encode_style(style, Limits())
    close(video.transform(*encoded, Limits())[0].mean(1), data.tensor("video_rect/attn"))


def test_style_positions_are_drawn_like_the_released_code_without_the_global_generator(data):
    before = torch.random.get_rng_state()
    n = 4624
    drawn = adaattn.sampled(torch.arange(n, dtype=torch.float32).view(1, n, 1), adaattn.SKIP_SAMPLES)
    assert drawn.shape == (1, adaattn.SKIP_SAMPLES, 1)
    assert drawn[0, :16, 0].long().tolist() == data["adaattn"].tensor(f"sample/randperm_seed6666_n{n}_first16").tolist()
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


def test_limits_bound_the_attention_matrix(models):
    model = models["adaattn"]
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


def test_limits_bound_full_resolution_convolutions(models):
    content = torch.rand(1, 3, 160, 160)
    with Largest() as free:
        models["adaattn"].encode_content(content, Limits())
    with Largest() as bounded:
        models["adaattn"].encode_content(content, Limits(tile=32))
    assert free.numel >= 64 * 160 * 160
    assert bounded.numel <= 64 * (32 + 2 * 16 + 2) ** 2 + 448 * 40 * 40


def test_large_style_pictures_are_cropped_to_whole_strides(monkeypatch):
    monkeypatch.setattr(adaattn, "UNTILED", 64)
    assert adaattn.whole_strides(torch.zeros(1, 3, 63, 64)).shape[2:] == (63, 64)
    assert adaattn.whole_strides(torch.zeros(1, 3, 75, 95)).shape[2:] == (64, 80)


def test_cosine_attention_is_the_papers_though_it_is_linear(models):
    """Against the official arithmetic with its matrix of weights, in double precision."""
    generator = torch.Generator().manual_seed(0)
    content = tuple(torch.randn(1, c, 48 // 2**i, 32 // 2**i, generator=generator).relu() + 1
                    for i, c in enumerate((64, 128, 256)))
    style = tuple(torch.randn(1, c, 64 // 2**i, 80 // 2**i, generator=generator).relu() * 3
                  for i, c in enumerate((64, 128, 256)))
    block = models["video"].block
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

def test_the_decoder_for_paintings_is_used(models, data):
    """Dec_A lies in the same folder and has the same keys and shapes."""
    assert torch.equal(models["cast"].decoder.state_dict()["1.weight"],
                       data["cast"].state_dict(CAST[2])["decoder.1.weight"])
