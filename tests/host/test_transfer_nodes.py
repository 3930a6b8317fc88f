"""Comparison methods as users meet them: released files in models/style_transfer, IMAGE batches in and out."""
from collections import OrderedDict
from pathlib import Path

import comfy.model_management
import pytest
import torch
from inst_pack.inst_core.methods import gatys
from inst_pack.inst_core.pictures import luminance
from inst_pack.nodes import weights
from inst_pack.nodes.transfer import (
    InSTGatysStyleTransfer,
    InSTLoadStyleTransferModel,
    InSTTransferStyle,
)
from safetensors.torch import save_file

ATOL = 1e-4  # IMAGE is float, nothing is rounded on the way

STYTR2 = ["embedding_iter_160000.pth", "transformer_iter_160000.pth", "decoder_iter_160000.pth"]
ADAATTN = ["vgg_normalised.pth", "latest_net_transformer.pth", "latest_net_decoder.pth", "latest_net_adaattn_3.pth"]
VIDEO = ["vgg_normalised.pth", "attn_adain_video/latest_net_transformer.pth", "attn_adain_video/latest_net_decoder.pth"]
CAST = ["latest_net_AE.pth", "latest_net_Dec_A.pth", "latest_net_Dec_B.pth"]


@pytest.fixture()
def write(folders, golden):
    """Puts released files into models/style_transfer and returns their names as the combos list them."""
    def write(kind: str, roles: list[str], safetensors: bool = False) -> list[str]:
        data, names = golden(kind), []
        for role in roles:
            path = folders / "models" / "style_transfer" / role
            path.parent.mkdir(parents=True, exist_ok=True)
            if safetensors:
                path = path.with_suffix(".safetensors")
                save_file(data.state_dict(role), path)
            else:
                torch.save(OrderedDict(data.state_dict(role)), path)
            names.append(str(path.relative_to(folders / "models" / "style_transfer")))
        assert set(names) <= set(weights.weight_files())
        return names
    return write


@pytest.fixture()
def load(write):
    def load(kind: str, roles: list[str], **options):
        names = write(kind, roles, **options)
        assert InSTLoadStyleTransferModel.validate_inputs(*names) is True
        return InSTLoadStyleTransferModel.execute(*names).result[0]
    return load


METHODS = {"StyTr2": ("stytr2", STYTR2), "AdaAttN": ("adaattn", ADAATTN), "AdaAttN video": ("adaattn", VIDEO),
           "CAST": ("cast", CAST)}


def test_a_method_finds_its_files_among_those_of_all_methods(write):
    """Pictures and video of AdaAttN have files of one name, in one folder each."""
    names = {method: write(*released) for method, released in METHODS.items()}
    for method in METHODS:
        assert InSTLoadStyleTransferModel.validate_inputs("none", method=method) is True
        found = InSTLoadStyleTransferModel.execute("none", method=method).result[0]
        chosen = InSTLoadStyleTransferModel.execute(*names[method]).result[0]
        assert type(found) is type(chosen)
        assert all(torch.equal(a, b) for a, b in zip(found.parameters(), chosen.parameters(), strict=True))


def test_a_method_without_its_files_is_refused_before_anything_runs(write, folders):
    write("stytr2", STYTR2[:2])
    problem = InSTLoadStyleTransferModel.validate_inputs("none", method="StyTr2")
    assert "StyTr2" in problem and STYTR2[2] in problem and STYTR2[0] not in problem
    (folders / "models" / "style_transfer" / STYTR2[2]).write_bytes(
        (folders / "models" / "style_transfer" / STYTR2[0]).read_bytes())  # another file under that name
    with pytest.raises(ValueError, match=r"StyTr2 is chosen, and none of .* holds its .*decoder"):
        InSTLoadStyleTransferModel.execute("none", method="StyTr2")


@pytest.mark.parametrize("kind, roles, outputs, safetensors", [
    ("stytr2", STYTR2, {case: f"{case}/output" for case in ("sq64", "sq160", "ext_rect")}, False),
    ("adaattn", ADAATTN[::-1], {case: f"{case}/output" for case in ("sq64", "rect", "sample")}, False),
    ("adaattn", VIDEO, {"rect": "video_rect/output"}, True),
    ("cast", CAST, {case: f"{case}/fake_B" for case in ("sq64", "rect", "odd", "small_style")}, True),
])
def test_official_output_through_files_and_nodes(load, golden, kind, roles, outputs, safetensors):
    data, model = golden(kind), load(kind, roles, safetensors=safetensors)
    for case, key in outputs.items():
        content, style = (data.tensor(f"{case}/{role}_u8")[None] / 255 for role in ("content", "style"))
        result = InSTTransferStyle.execute(model, content, style, 1.0, "none").result[0]
        expected = data.tensor(key)[:, :, :content.shape[1], :content.shape[2]]
        expected = (expected + 1) / 2 if kind == "cast" else expected
        torch.testing.assert_close(result, expected.clamp(0, 1).permute(0, 2, 3, 1), atol=ATOL, rtol=0, msg=case)


def test_official_losses_of_gatys_through_its_file(write, golden, monkeypatch):
    """What the node hands to the method, from the file that it opens, has the official loss and gradient."""
    data, seen = golden("gatys"), []
    name, = write("gatys", ["vgg_conv.pth"])
    monkeypatch.setattr(gatys, "minimise", lambda *start: seen.append(start[:2]) or (start[1], [1.0]))
    for case in ("sq64", "rect"):
        for pooling in ("max", "avg"):
            content, style = (data.tensor(f"{case}/{role}_u8")[None] / 255 for role in ("content", "style"))
            paint(name, content, style, size=64, pooling=pooling)
            objective, levels = seen[-1]
            with torch.inference_mode(False):
                loss, gradient = objective.loss_and_gradient(levels)
            expected = data.tensor(f"{case}/{pooling}/weighted_losses_at_content").sum()
            torch.testing.assert_close(loss.cpu().double(), expected, rtol=1e-5, atol=0)
            torch.testing.assert_close(gradient.cpu(), data.tensor(f"{case}/{pooling}/grad_at_content"), atol=1e-4,
                                       rtol=1e-5)


def test_odd_images_and_batches(load, golden):
    model = load("cast", CAST)
    generator = torch.Generator().manual_seed(0)
    frames, style = torch.rand(3, 30, 41, 4, generator=generator), torch.rand(1, 20, 33, 1, generator=generator)
    result = InSTTransferStyle.execute(model, frames, style, 0.5, "none").result[0]
    assert result.shape == (3, 30, 41, 3) and result.min() >= 0 and result.max() <= 1
    opaque = frames[..., :3] * frames[..., 3:] + 1 - frames[..., 3:]
    one = InSTTransferStyle.execute(model, opaque[1:2], style.expand(-1, -1, -1, 3), 0.5, "none").result[0]
    torch.testing.assert_close(result[1:2], one, atol=ATOL, rtol=0)


def test_luminance_keeps_the_contents_chroma(load):
    model = load("cast", CAST)
    generator = torch.Generator().manual_seed(0)
    content, style = (torch.rand(1, 32, 32, 3, generator=generator) for _ in range(2))
    plain, kept = (InSTTransferStyle.execute(model, content, style, 1.0, color).result[0].movedim(-1, 1)
                   for color in ("none", "luminance"))
    inside = ((kept > 0) & (kept < 1)).all(1, keepdim=True)
    difference = kept - luminance(plain) - (content.movedim(-1, 1) - luminance(content.movedim(-1, 1)))
    assert inside.any() and difference[inside.expand_as(difference)].abs().max() < 1e-5


def test_cancel_stops_between_pictures_and_the_model_is_usable(load):
    model = load("cast", CAST)
    content = torch.rand(2, 32, 32, 3)
    comfy.model_management.interrupt_current_processing(True)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        InSTTransferStyle.execute(model, content, content[:1], 1.0, "none")
    assert InSTTransferStyle.execute(model, content, content[:1], 1.0, "none").result[0].shape == content.shape


def test_an_image_of_two_channels_is_refused(load):
    with pytest.raises(ValueError, match="content has shape"):
        InSTTransferStyle.execute(load("cast", CAST), torch.rand(1, 32, 32, 2), torch.rand(1, 32, 32, 3), 1.0, "none")


def test_an_empty_folder_says_what_to_do():
    assert weights.weight_files() == [weights.NO_FILES]
    for node in (InSTLoadStyleTransferModel, InSTGatysStyleTransfer):
        assert "models/style_transfer" in node.validate_inputs(weights.NO_FILES)
    assert "gone.pth" in InSTLoadStyleTransferModel.validate_inputs("gone.pth")


def test_the_file_that_is_wanted_comes_first(folders):
    folder = folders / "models" / "style_transfer"
    (folder / "vgg").mkdir(parents=True)
    for name in ("alexnet.pth", "lpips-vgg.pth", "vgg/vgg16.pth", "vgg/zero.pth"):
        (folder / name).touch()
    assert weights.weight_files("vgg")[:2] == [str(Path("vgg", "vgg16.pth")), "lpips-vgg.pth"]
    assert weights.weight_files()[0] == "alexnet.pth"
    assert InSTGatysStyleTransfer.GET_SCHEMA().inputs[0].options[0] == str(Path("vgg", "vgg16.pth"))


def paint(name, content, style, **options):
    arguments = {"steps": 4, "style_weight": 1.0, "size": 32, "preserve_color": "none", "seed": 0, **options}
    return InSTGatysStyleTransfer.execute(name, content, style, **arguments)


def test_gatys_paints_inside_inference_mode(write):
    name, = write("gatys", ["vgg_conv.pth"])
    assert InSTGatysStyleTransfer.validate_inputs(name) is True
    assert InSTGatysStyleTransfer.validate_inputs(name, None) is True  # the text comes from another node
    assert "style_layers has 'conv1'" in InSTGatysStyleTransfer.validate_inputs(name, "relu1_1, conv1")
    assert torch.is_inference_mode_enabled()
    content, style = torch.rand(2, 48, 32, 3), torch.rand(1, 40, 40, 3)
    image, report = paint(name, content, style, high_resolution=48, start="noise", pooling="avg",
                          style_layers="relu1_1, relu3_1").result
    assert image.shape == (2, 72, 48, 3) and image.is_contiguous()
    lines = report.splitlines()
    assert lines[0] == "Gatys VGG-19 (vgg_conv.pth), 48 x 72 px" and lines[2].startswith("picture 2: 6 steps, loss ")


def test_gatys_can_be_cancelled(write):
    name, = write("gatys", ["vgg_conv.pth"])
    comfy.model_management.interrupt_current_processing(True)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        paint(name, torch.rand(1, 32, 32, 3), torch.rand(1, 32, 32, 3))


def test_gatys_refuses_what_is_no_vgg(write):
    names = write("cast", CAST[:1])
    with pytest.raises(ValueError, match="not a VGG network"):
        paint(names[0], torch.rand(1, 32, 32, 3), torch.rand(1, 32, 32, 3))
