import copy

import pytest
import torch
from inst_pack.inst_core.methods import Limits, stytr2
from torch import nn

ATOL = 1e-4
ROLES = ("decoder_iter_160000.pth", "transformer_iter_160000.pth", "embedding_iter_160000.pth")


@pytest.fixture(scope="module")
def data(golden):
    return golden("stytr2")


@pytest.fixture(scope="module")
def model(data, tmp_path_factory):
    return data.load_model(tmp_path_factory.mktemp("stytr2"), *ROLES)


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


def picture(data, key):
    return data.tensor(key).permute(2, 0, 1)[None] / 255


def pair(data, case):
    return picture(data, f"{case}/content_u8"), picture(data, f"{case}/style_u8")


def error(model, data, case, **options):
    return (model(*pair(data, case), **options) - data.tensor(f"{case}/output")).abs().max().item()


@pytest.mark.parametrize("case", ["sq64", "sq160", "ext_rect"])
def test_official_output(model, data, case):
    assert error(model, data, case) <= ATOL


def test_official_intermediate_values(model, data):
    content, style = pair(data, "sq64")

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


def without_cape(model):
    model.transformer.cape = torch.zeros_like


def without_final_norm(model):
    model.transformer.decoder.norm = nn.Identity()


def corner_aligned_cape(model):
    def cape(tokens):
        pooled = nn.functional.adaptive_avg_pool2d(tokens, stytr2.CAPE_GRID)
        return nn.functional.interpolate(model.transformer.new_ps(pooled), tokens.shape[2:], mode="bilinear",
                                         align_corners=True)

    model.transformer.cape = cape


def swapped_encoders(model):
    transformer = model.transformer
    transformer.encoder_c, transformer.encoder_s = transformer.encoder_s, transformer.encoder_c


@pytest.mark.parametrize("mistake", [without_cape, without_final_norm, corner_aligned_cape, swapped_encoders])
def test_mistakes_show(model, data, mistake):
    wrong = copy.deepcopy(model)
    mistake(wrong)
    assert error(wrong, data, "sq64") > 20 * ATOL


@pytest.mark.parametrize("limits", [Limits(entries=100, tile=16), Limits(entries=2**10, tile=32)])
@pytest.mark.parametrize("case", ["sq160", "ext_rect"])
def test_small_limits_give_the_same(model, data, case, limits):
    assert error(model, data, case, limits=limits) <= ATOL


@pytest.mark.parametrize("height, width", [(17, 16), (70, 45), (16, 4096)])
def test_any_size_keeps_its_size(model, height, width):
    generator = torch.Generator().manual_seed(0)
    content, style = torch.rand(1, 3, height, width, generator=generator), torch.rand(1, 3, 31, 50, generator=generator)
    result = model.stylize(content, style)
    assert result.shape == content.shape
    whole = model.stylize(content[:, :, :height // 8 * 8, :width // 8 * 8], style)
    assert result.min() >= 0 and result.max() <= 1 and result.std() > 0.01
    assert whole.shape[2:] == (height // 8 * 8, width // 8 * 8)
