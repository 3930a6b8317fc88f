import random

import pytest
import torch
from inst_pack.inst_core.methods import Limits, common, identify, load_style_model
from torch import Tensor, nn

FILES = {
    "StyTr2": ("stytr2", ["embedding_iter_160000.pth", "transformer_iter_160000.pth", "decoder_iter_160000.pth"]),
    "AdaAttN": ("adaattn", ["vgg_normalised.pth", "latest_net_transformer.pth", "latest_net_decoder.pth",
                            "latest_net_adaattn_3.pth"]),
    "AdaAttN video": ("adaattn", ["vgg_normalised.pth", "attn_adain_video/latest_net_transformer.pth",
                                  "attn_adain_video/latest_net_decoder.pth"]),
    "CAST": ("cast", ["latest_net_AE.pth", "latest_net_Dec_B.pth"]),
}


@pytest.fixture(scope="module")
def shapes(golden):
    """Empty tensors of a released file: recognition looks at keys and shapes only."""
    data = {name: golden(name) for name in ("stytr2", "adaattn", "cast")}

    def shapes(folder: str, role: str) -> dict[str, Tensor]:
        return {k: torch.empty(s, device="meta") for k, s in data[folder].manifest[role].items()}
    return shapes


@pytest.fixture()
def model_files(shapes):
    def model_files(model: str) -> dict[str, dict[str, Tensor]]:
        folder, roles = FILES[model]
        return {role: shapes(folder, role) for role in roles}
    return model_files


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("model", FILES)
def test_models_are_recognised_by_contents(model_files, model, prefix):
    files = [{f"{prefix}{k}": v for k, v in weights.items()} for weights in model_files(model).values()]
    renamed = {f"{i}.safetensors": files[i] for i in random.Random(0).sample(range(len(files)), len(files))}
    found = identify(renamed)
    assert found.recipe.name == model
    assert [int(name[0]) for name in found.files] == list(range(len(files)))


@pytest.mark.parametrize("model, index", [(model, i) for model, (_, files) in FILES.items() for i in range(len(files))])
def test_missing_files_are_named(model_files, model, index):
    files = model_files(model)
    missing = FILES[model][1][index]
    del files[missing]
    with pytest.raises(ValueError, match=f"closest to {model}.*missing: {missing}"):
        identify(files)


def test_files_of_another_model_are_named(model_files, shapes):
    files = model_files("StyTr2")
    del files["decoder_iter_160000.pth"]
    files["my.pth"] = shapes("cast", "latest_net_Dec_B.pth")
    with pytest.raises(ValueError, match=r"closest to StyTr2.*missing: decoder_iter_160000\.pth.*"
                                         r"not part of it: my\.pth \(CAST decoder for paintings\)"):
        identify(files)


@pytest.mark.parametrize("model, name", [("StyTr2", "transformer_iter_160000.pth"), ("CAST", "latest_net_AE.pth"),
                                         ("AdaAttN", "vgg_normalised.pth")])
def test_damaged_files_are_named(model_files, model, name):
    files = model_files(model)
    files[name].pop(key := list(files[name])[3])
    with pytest.raises(ValueError, match=f"{name} looks like {name}.*1 tensors are missing.*{key}"):
        identify(files)


def test_other_shapes_are_refused(model_files):
    files = model_files("CAST")
    files["latest_net_AE.pth"]["enc_1.2.weight"] = torch.empty(64, 3, 5, 5, device="meta")
    with pytest.raises(ValueError, match=r"have another shape: enc_1\.2\.weight"):
        identify(files)


@pytest.mark.parametrize("files, message", [
    ({"sd15.safetensors": {}}, r"sd15\.safetensors is not a file of a known style transfer model"),
    ({"sd15.safetensors": {"model.diffusion_model.input_blocks.0.0.weight": torch.empty(1)}}, r"sd15\.safetensors"),
    ({}, "No file"),
])
def test_unknown_files_are_named(files, message):
    with pytest.raises(ValueError, match=message):
        identify(files)


def test_the_vgg_may_lie_beside_stytr2(model_files, shapes):
    found = identify(model_files("StyTr2") | {"vgg_normalised.pth": shapes("stytr2", "vgg_normalised.pth")})
    assert found.recipe.name == "StyTr2" and "vgg_normalised.pth" not in found.files


def test_cast_decoders_are_told_apart_by_name(shapes):
    decoder, encoder = shapes("cast", "latest_net_Dec_A.pth"), {"ae": shapes("cast", "latest_net_AE.pth")}
    assert identify(encoder | {"latest_net_Dec_A.pth": decoder, "latest_net_Dec_B.pth": decoder}).files == (
        "ae", "latest_net_Dec_B.pth")
    assert identify(encoder | {"renamed.pth": decoder}).files == ("ae", "renamed.pth")
    with pytest.raises(ValueError, match=r"missing: latest_net_Dec_B\.pth"):
        identify(encoder | {"latest_net_Dec_A.pth": decoder})


def test_the_same_part_twice_is_refused(model_files, shapes):
    files = model_files("CAST") | {"copy.pth": shapes("cast", "latest_net_Dec_B.pth")}
    with pytest.raises(ValueError, match="latest_net_Dec_B.pth and copy.pth are the same part; choose one"):
        identify(files)


def test_half_precision_files_become_float32(golden):
    data = golden("cast")
    model = load_style_model({role: {k: v.half() for k, v in data.state_dict(role).items()}
                              for role in FILES["CAST"][1]})
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert not any(p.requires_grad for p in model.parameters())


class Mean(common.StyleTransferModel):
    """The style's mean colour under the content, for the loop over pictures."""

    name = "Mean"
    minimum_content, minimum_style, multiple = 9, 10, 4

    def __init__(self, memory: int = 2**62, error: Exception | None = None):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))
        self.memory, self.error, self.styles_encoded, self.sizes = memory, error or torch.OutOfMemoryError(), 0, []

    def encode_content(self, picture, limits):
        self.sizes.append(tuple(picture.shape[2:]))
        return (picture,)

    def encode_style(self, picture, limits):
        self.styles_encoded += 1
        return (picture.mean((2, 3), keepdim=True),)

    def transform(self, content, style, limits):
        if limits.entries > self.memory:
            raise self.error
        return ((content[0] + style[0]) / 2,)

    def decode(self, features, limits):
        return features[0]


def pictures(count=1, height=16, width=16, seed=0):
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(seed))


def test_one_style_serves_a_batch_and_is_encoded_once():
    model, content, style, seen = Mean(), pictures(3), pictures(seed=1), []
    result = model.stylize(content, style, progress=lambda done, picture: seen.append((done, picture)))
    torch.testing.assert_close(result, (content + style.mean((2, 3), keepdim=True)) / 2)
    assert model.styles_encoded == 1
    assert [done for done, _ in seen] == [1, 2, 3]
    assert torch.equal(torch.cat([picture for _, picture in seen]), result)


def test_as_many_styles_as_contents():
    content, style = pictures(3), pictures(3, 20, 12, seed=1)
    torch.testing.assert_close(Mean().stylize(content, style), (content + style.mean((2, 3), keepdim=True)) / 2)


def test_content_is_padded_for_the_network_and_cropped_again():
    model = Mean()
    assert model.stylize(pictures(1, 9, 14), pictures()).shape == (1, 3, 9, 14)
    assert model.sizes == [(12, 16)]


def test_alpha_blends_with_the_content_as_its_own_style():
    content, style = pictures(), pictures(seed=1)
    ends = [Mean().stylize(content, style, alpha=alpha) for alpha in (0.0, 1.0)]
    torch.testing.assert_close(ends[0], (content + content.mean((2, 3), keepdim=True)) / 2)
    torch.testing.assert_close(Mean().stylize(content, style, alpha=0.25), ends[0].lerp(ends[1], 0.25))


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), MemoryError(),
                                   RuntimeError("MPS backend out of memory (MPS allocated: 8.00 GB)")])
def test_out_of_memory_falls_back_to_smaller_limits(error):
    content, style = pictures(2), pictures(seed=1)
    scarce = Mean(memory=2**20, error=error)
    assert torch.equal(scarce.stylize(content, style), Mean().stylize(content, style))
    assert len(scarce.sizes) == 4  # 2^23, 2^21, 2^19, and the second picture starts where the first one worked


def test_out_of_memory_is_reported_when_nothing_smaller_is_left():
    with pytest.raises(torch.OutOfMemoryError):
        Mean(memory=10).stylize(pictures(), pictures())


def test_other_errors_are_not_taken_for_out_of_memory():
    model = Mean(memory=0, error=RuntimeError("shapes do not match"))
    with pytest.raises(RuntimeError, match="shapes"):
        model.stylize(pictures(), pictures())
    assert len(model.sizes) == 1


@pytest.mark.parametrize("content, style, message", [
    (pictures(1, 1, 1), pictures(), "content is 1 x 1 px; Mean needs at least 9 px"),
    (pictures(1, 8, 400), pictures(), "content is 400 x 8 px"),
    (pictures(), pictures(1, 32, 9), "style is 9 x 32 px; Mean needs at least 10 px"),
    (pictures(3), pictures(2), "style has 2 pictures, content has 3"),
    (pictures() * torch.nan, pictures(), "content contains NaN"),
    (pictures(), pictures() * torch.inf, "style contains NaN or infinite"),
    (pictures()[0], pictures(), r"content has shape \(3, 16, 16\)"),
    (pictures()[:, :1], pictures(), r"content has shape \(1, 1, 16, 16\)"),
])
def test_bad_pictures_are_refused(content, style, message):
    with pytest.raises(ValueError, match=message):
        Mean().stylize(content, style)


@pytest.mark.parametrize("alpha", [-0.1, 1.5, float("nan")])
def test_bad_alpha_is_refused(alpha):
    with pytest.raises(ValueError, match="alpha"):
        Mean().stylize(pictures(), pictures(), alpha=alpha)


def padded_convolutions(scale: float):
    """A function of the kind that is computed in tiles, and a picture, in double precision."""
    generator = torch.Generator().manual_seed(0)
    kernel = torch.randn(2, 2, 3, 3, generator=generator, dtype=torch.float64)

    def convolve(x):
        return nn.functional.conv2d(nn.functional.pad(x, (1, 1, 1, 1), mode="reflect"), kernel)

    def function(x):
        x = convolve(x)
        if scale < 1:
            x = convolve(nn.functional.max_pool2d(nn.functional.max_pool2d(x, 2, ceil_mode=True), 2, ceil_mode=True))
        if scale > 1:
            x = convolve(nn.functional.interpolate(x, scale_factor=4))
        return x, -x
    return function


@pytest.mark.parametrize("scale, halo", [(1, 4), (0.25, 8), (4, 2)])
@pytest.mark.parametrize("height, width", [(40, 64), (37, 51), (16, 130)])
def test_tiles_fit_together_exactly(scale, halo, height, width):
    function = padded_convolutions(scale)
    x = torch.randn(1, 2, height, width, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    for found, expected in zip(common.tiled(function, x, scale, 16, halo), function(x), strict=True):
        torch.testing.assert_close(found, expected)


def test_limits_end():
    limits, count = Limits(), 0
    while limits is not None:
        assert limits.tile % 16 == 0 and limits.rows(10**9) == 1
        limits, count = limits.halved(), count + 1
    assert count < 10
