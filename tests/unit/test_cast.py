
import pytest
import torch
from inst_pack.inst_core.methods import Limits, cast
from inst_pack.inst_core.pictures import mean_std

ATOL = 1e-4
ROLES = ("latest_net_AE.pth", "latest_net_Dec_A.pth", "latest_net_Dec_B.pth")


@pytest.fixture(scope="module")
def data(golden):
    return golden("cast")


@pytest.fixture(scope="module")
def model(data, tmp_path_factory):
    return data.load_model(tmp_path_factory.mktemp("cast"), *ROLES)


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


def pair(data, case):
    return [data.tensor(f"{case}/{role}_u8").permute(2, 0, 1)[None] / 255 for role in ("content", "style")]


def error(model, data, case, **options):
    """In the network's own range [-1, 1]."""
    return (2 * model(*pair(data, case), **options) - 1 - data.tensor(f"{case}/fake_B")).abs().max().item()


@pytest.mark.parametrize("case", ["sq64", "rect", "odd", "small_style"])
def test_official_output(model, data, case):
    assert error(model, data, case) <= ATOL


def test_official_intermediate_values(model, data):
    content, style = (model._relu4_1(picture, Limits()) for picture in pair(data, "sq64"))
    torch.testing.assert_close(content, data.tensor("sq64/content_relu4_1"), atol=ATOL, rtol=0)
    torch.testing.assert_close(style, data.tensor("sq64/style_relu4_1"), atol=ATOL, rtol=0)
    found = cast.adain(content, *mean_std(style))
    torch.testing.assert_close(found, data.tensor("sq64/adain_feat"), atol=ATOL, rtol=0)


def test_the_decoder_for_paintings_is_used(model, data):
    """Dec_A lies in the same folder and has the same keys and shapes."""
    assert torch.equal(model.decoder.state_dict()["1.weight"], data.state_dict(ROLES[2])["decoder.1.weight"])


@pytest.mark.parametrize("case", ["rect", "odd"])
def test_small_limits_give_the_same(model, data, case):
    assert error(model, data, case, limits=Limits(tile=16)) <= ATOL


@pytest.mark.parametrize("height, width", [(9, 9), (70, 52), (11, 4096)])
def test_any_size_keeps_its_size(model, height, width):
    generator = torch.Generator().manual_seed(0)
    content, style = torch.rand(1, 3, height, width, generator=generator), torch.rand(1, 3, 9, 33, generator=generator)
    assert model.stylize(content, style).shape == content.shape
