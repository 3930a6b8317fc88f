"""The figure and the numbers as users meet them."""
import json

import comfy.model_management
import pytest
import torch
from inst_pack.inst_core import color, metrics
from inst_pack.inst_core.metrics import artfid, cfsd
from inst_pack.nodes import compare
from inst_pack.nodes.compare import InSTComparisonGrid, InSTMetrics


def image(seed: int, count: int = 1, height: int = 64, width: int = 80, channels: int = 3) -> torch.Tensor:
    return torch.rand(count, height, width, channels, generator=torch.Generator().manual_seed(seed))


def figure(images, **more):
    options = {"each_input_is": "a column", "column_labels": "", "row_labels": "", "height": 64, "gap": 4,
               "fit": "whole", **more}
    return InSTComparisonGrid.execute(images, **options).result[0]


def test_the_grid_takes_batches_of_any_size_and_channels():
    images = {"image0": image(0, 3), "image1": image(1, 1, 32, 32, 1), "image2": None, "image3": image(2, 2, 64, 64, 4)}
    out = figure(images, column_labels="Content\nStyle\nResult\n", row_labels="\n\nlast\n")
    assert out.shape[0] == 1 and out.shape[3] == 3 and out.is_contiguous() and out.min() >= 0 and out.max() <= 1
    top, left = out.shape[1] - 3 * 68, out.shape[2] - (80 + 4 + 64 + 4 + 64 + 4)
    torch.testing.assert_close(out[0, top:top + 64, left:left + 80], images["image0"][0])
    torch.testing.assert_close(out[0, top + 136:top + 200, left:left + 80], images["image0"][2])
    assert (out[0, top + 136:top + 200, left + 152:left + 216] == 1).all()  # the third batch has only two


def test_rows_and_crop():
    images = {"image0": image(0, 2, 64, 64), "image1": image(1, 2, 64, 96)}
    out = figure(images, each_input_is="a row", fit="crop")
    assert out.shape == (1, 4 + 2 * 68, 4 + 2 * 68, 3)
    torch.testing.assert_close(out[0, 72:136, 72:136], images["image1"][1, :, 16:80])


def test_metrics_make_a_table_and_json(lpips_file):
    assert torch.is_inference_mode_enabled() and InSTMetrics.validate_inputs() is True
    content, style, result = image(0, 2), image(1, 1, 50, 50), image(2, 2, 64, 72, 4)
    out = InSTMetrics.execute(content, style, result, size=64)
    table, values = out.result
    assert "LPIPS v (content)" in table and "copy of style" in table and "picture 2" in table
    assert out.ui.as_dict()["text"] == (table,)
    values = json.loads(values)
    pair = metrics.Judge(metrics.load_networks(lpips_file), 64).pair(content[1:].movedim(-1, 1), style.movedim(-1, 1))
    opaque = result[..., :3] * result[..., 3:] + 1 - result[..., 3:]
    expected = pair.measure(opaque[1:].movedim(-1, 1))
    assert values["pictures"][1] == pytest.approx(expected, abs=1e-3)
    unrelated = pair.measure(content[:1].movedim(-1, 1))
    given = InSTMetrics.execute(content[1:], style, result[1:], unrelated=content[:1], size=64).result[1]
    assert json.loads(given)["trivial"]["unrelated picture"] == pytest.approx(unrelated, abs=1e-5)


def test_clip_similarity_comes_with_clip_vision(lpips_file, clip_vision):
    content, style, result = image(0) * 0.5, image(1), image(2)

    def seen(picture):
        return compare.host.vision.picture_features(clip_vision, picture).image_embed

    values = json.loads(InSTMetrics.execute(content, style, result, clip_vision=clip_vision, size=64).result[1])["mean"]
    assert values["clip_content"] == pytest.approx(float((seen(result) * seen(content)).sum()), abs=2e-2)
    assert values["clip_style"] == pytest.approx(float((seen(result) * seen(style)).sum()), abs=2e-2)
    assert "csd" not in values
    itself = json.loads(InSTMetrics.execute(content, style, style, clip_vision=clip_vision, size=64).result[1])["mean"]
    assert itself["clip_style"] == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("measured", [cfsd.cfsd, color.monge_kantorovich, color.whitening_colouring])
def test_what_needs_float64_comes_out_of_any_device(measured):
    """Of the measures and colours; Apple's GPUs know no float64, nor does the pretend device."""
    device = comfy.model_management.get_torch_device()
    pair = [torch.rand(1, 4, 8, 8, generator=torch.Generator().manual_seed(i)) for i in range(2)]
    torch.testing.assert_close(measured(*(x.to(device) for x in pair)).cpu(), measured(*pair))


def test_wide_pictures_and_sets_are_measured_on_any_device(lpips_file):
    """Apple's GPUs pool to divisors only, which 31 x 63 places have none of, and know no float64 for FID."""
    device = comfy.model_management.get_torch_device()

    def measured(device):
        judge = metrics.Judge(metrics.load_networks(lpips_file, device))
        pictures = [x.movedim(-1, 1) for x in (image(0, 1, 520, 1030), image(1), image(2, 1, 520, 1030))]
        eye = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(3, 3)).to(device)
        for parameter in eye.parameters():
            torch.nn.init.eye_(parameter) if parameter.ndim == 2 else torch.nn.init.zeros_(parameter)
        sets = [image(i, 3, 80, 80).movedim(-1, 1).split(1) for i in (3, 4)]
        return judge.pair(*pictures[:2]).measure(pictures[2]) | artfid.of_sets(eye, *sets, 0.5)

    assert measured(device) == pytest.approx(measured(torch.device("cpu")), rel=1e-3, abs=1e-4)


def test_a_missing_file_is_named_with_the_way_to_get_it():
    said = InSTMetrics.validate_inputs()
    assert "lpips-alex.safetensors is not in models/style_transfer" in said and "tools/dev.py setup" in said
    with pytest.raises(ValueError, match="packaged_weights.py"):
        InSTMetrics.execute(image(0), image(1), image(2))


def test_missing_and_wrong_optional_files(lpips_file):
    assert "gone.pth" in InSTMetrics.validate_inputs(csd="gone.pth")
    name = f"metrics/{compare.LPIPS_FILE}"
    assert InSTMetrics.validate_inputs(vgg19=name) is True
    for option, message in (("vgg19", "looks like torchvision VGG-16"), ("csd", "CSD"),
                            ("art_inception", "Inception-v3")):
        with pytest.raises(ValueError, match=message):
            InSTMetrics.execute(image(0), image(1), image(2), **{option: name})


@pytest.mark.parametrize("content, style, result, message", [
    (image(0, 2), image(1), image(2, 3), "content has 2 pictures, result has 3"),
    (image(0), image(1, 2), image(2, 3), "style has 2 pictures, result has 3"),
    (image(0), image(1) * torch.nan, image(2), "style contains NaN"),
    (image(0), image(1), image(2)[0], "result has shape"),
    (image(0), image(1), image(2, 1, 64, 200), "result is 200 x 64 px"),
])
def test_bad_images_are_refused(lpips_file, content, style, result, message):
    with pytest.raises(ValueError, match=message):
        InSTMetrics.execute(content, style, result, size=64)


def test_cancel_stops_between_pictures(lpips_file):
    comfy.model_management.interrupt_current_processing(True)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        InSTMetrics.execute(image(0, 2), image(1), image(2, 2), size=64)
