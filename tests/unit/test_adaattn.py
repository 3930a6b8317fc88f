
import pytest
import torch
from inst_pack.inst_core.methods import Limits, adaattn
from inst_pack.inst_core.pictures import normalise
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

ATOL = 1e-4
VGG = "vgg_normalised.pth"
RELEASED = (VGG, "latest_net_adaattn_3.pth", "latest_net_transformer.pth", "latest_net_decoder.pth")
VARIANTS = ("variant_skip0_shallow0", "variant_skip1_shallow0", "variant_skip0_shallow1")


@pytest.fixture(scope="module")
def data(golden):
    return golden("adaattn")


@pytest.fixture(scope="module")
def load(data, tmp_path_factory):
    return lambda *roles: data.load_model(tmp_path_factory.mktemp("adaattn"), *roles)


@pytest.fixture(scope="module")
def model(load):
    return load(*RELEASED)


@pytest.fixture(scope="module")
def video(load, data):
    return load(VGG, *(role for role in data.manifest if role.startswith("attn_adain_video/")))


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


def pair(data, case):
    return [data.tensor(f"{case}/{role}_u8").permute(2, 0, 1)[None] / 255 for role in ("content", "style")]


def error(model, data, case, **options):
    return (model(*pair(data, case), **options) - data.tensor(f"{case}/output")).abs().max().item()


@pytest.mark.parametrize("case", ["sq64", "rect", "sample"])
def test_official_output(model, data, case):
    assert error(model, data, case) <= ATOL


@pytest.mark.parametrize("variant", VARIANTS)
def test_official_output_of_other_configurations(load, data, variant):
    model = load(VGG, *(role for role in data.manifest if role.startswith(variant)))
    assert error(model, data, variant) <= ATOL


def test_official_output_of_the_video_model(video, data):
    assert video.name == "AdaAttN video"
    content, style = pair(data, "rect")
    found = video(content, style)
    torch.testing.assert_close(found, data.tensor("video_rect/output"), atol=ATOL, rtol=0)
    encoded = video.encode_content(content, Limits()), video.encode_style(style, Limits())
    attention = video.transform(*encoded, Limits())[0].mean(1)
    torch.testing.assert_close(attention, data.tensor("video_rect/attn"), atol=ATOL, rtol=0)


def test_official_intermediate_values(model, data):
    content, style = pair(data, "sq64")
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
    assert drawn[0, :16, 0].long().tolist() == data.tensor(f"sample/randperm_seed6666_n{n}_first16").tolist()
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("limits", [Limits(entries=100, tile=16), Limits(entries=2**12, tile=32)])
@pytest.mark.parametrize("case", ["rect", "sample"])
def test_small_limits_give_the_same(model, data, case, limits):
    assert error(model, data, case, limits=limits) <= ATOL


class Largest(TorchDispatchMode):
    """Numbers in the largest tensor that an operation returns."""

    numel = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self.numel = max(self.numel, leaf.numel())
        return result


def test_limits_bound_the_attention_matrix(model, data):
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


def test_limits_bound_full_resolution_convolutions(model):
    content = torch.rand(1, 3, 160, 160)
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


def test_cosine_attention_is_the_papers_though_it_is_linear(video):
    """Against the official arithmetic with its matrix of weights, in double precision."""
    generator = torch.Generator().manual_seed(0)
    content = tuple(torch.randn(1, c, 48 // 2**i, 32 // 2**i, generator=generator).relu() + 1
                    for i, c in enumerate((64, 128, 256)))
    style = tuple(torch.randn(1, c, 64 // 2**i, 80 // 2**i, generator=generator).relu() * 3
                  for i, c in enumerate((64, 128, 256)))
    block = video.block
    found = block(content, block.style(style), Limits())

    q = adaattn.project(block.f, adaattn.positions(adaattn.key(content, 3, True))).double()
    k = adaattn.project(block.g, adaattn.positions(adaattn.key(style, 3, True))).double()
    v = adaattn.project(block.h, adaattn.positions(style[2])).double()
    weights = torch.relu(q @ k.mT / (q.norm(dim=-1)[..., None] + 1e-5) / (k.norm(dim=-1)[:, None] + 1e-5) + 1)
    weights /= weights.sum(-1, keepdim=True) + 1e-5
    mean, square = weights @ v, weights @ v.square()
    expected = torch.relu(square - mean.square()).sqrt() * adaattn.positions(normalise(content[2])) + mean
    torch.testing.assert_close(adaattn.positions(found).double(), expected, atol=ATOL, rtol=1e-4)


@pytest.mark.parametrize("height, width", [(32, 32), (61, 72), (33, 1040)])
def test_any_size_keeps_its_size(model, video, height, width):
    generator = torch.Generator().manual_seed(0)
    content, style = torch.rand(1, 3, height, width, generator=generator), torch.rand(1, 3, 17, 40, generator=generator)
    for net in (model, video):
        result = net.stylize(content, style)
        assert result.shape == content.shape
        assert result.std() > 0.01


def test_smallest_video_pictures(video):
    assert video.stylize(torch.rand(1, 3, 16, 16), torch.rand(1, 3, 16, 16)).shape == (1, 3, 16, 16)
