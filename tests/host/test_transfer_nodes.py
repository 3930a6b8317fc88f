"""Comparison methods as users meet them: released files in models/style_transfer, IMAGE batches in and out."""
import os
from collections import OrderedDict
from pathlib import Path

import comfy.model_management
import pytest
import torch
from inst_pack.inst_core.methods import gatys, vgg
from inst_pack.inst_core.pictures import gram, luminance
from inst_pack.nodes import weights
from inst_pack.nodes.transfer import (
    InSTGatysStyleTransfer,
    InSTLoadStyleTransferModel,
    InSTTransferStyle,
)
from safetensors.torch import load_file, save_file

ATOL = 1e-4  # IMAGE is float, nothing is rounded on the way
REAL_VGG = Path(os.environ.get("INST_MODELS", ""), "style_transfer", "vgg16.safetensors")

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


def released(variant: str) -> list[str]:
    """Files of an AdaAttN of another configuration; the VGG is the same."""
    names = [ADAATTN[0], *(f"{variant}/{name}" for name in ADAATTN[1:])]
    return names if "skip1" in variant else names[:-1]


@pytest.mark.parametrize("kind, roles, outputs, safetensors", [
    ("stytr2", STYTR2, {case: f"{case}/output" for case in ("sq64", "sq160", "ext_rect")}, False),
    ("adaattn", ADAATTN[::-1], {case: f"{case}/output" for case in ("sq64", "rect", "sample")}, False),
    *(("adaattn", released(variant), {variant: f"{variant}/output"}, True)
      for variant in ("variant_skip0_shallow0", "variant_skip1_shallow0", "variant_skip0_shallow1")),
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


@pytest.mark.parametrize("content, style, message", [
    (torch.rand(1, 1, 1, 3), torch.rand(1, 32, 32, 3), "content is 1 x 1 px; CAST needs at least 9 px"),
    (torch.rand(1, 32, 32, 3), torch.rand(1, 8, 32, 3), "style is 32 x 8 px"),
    (torch.rand(3, 32, 32, 3), torch.rand(2, 32, 32, 3), "style has 2 pictures, content has 3"),
    (torch.full((1, 32, 32, 3), torch.nan), torch.rand(1, 32, 32, 3), "content contains NaN"),
    (torch.rand(1, 32, 32, 2), torch.rand(1, 32, 32, 3), "content has shape"),
])
def test_bad_images_are_refused(load, content, style, message):
    with pytest.raises(ValueError, match=message):
        InSTTransferStyle.execute(load("cast", CAST), content, style, 1.0, "none")


def test_incomplete_models_are_refused_by_name(write):
    names = write("cast", CAST[:2])
    with pytest.raises(ValueError, match=r"missing: latest_net_Dec_B\.pth"):
        InSTLoadStyleTransferModel.execute(*names)


def test_unreadable_files_are_refused(folders):
    path = folders / "models" / "style_transfer" / "broken.pth"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"not a weight file")
    with pytest.raises(ValueError, match=r"broken\.pth is not opened: it is neither"):
        InSTLoadStyleTransferModel.execute("broken.pth")


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


@pytest.mark.skipif(not REAL_VGG.is_file(), reason="needs vgg16.safetensors, see tools/packaged_weights.py")
def test_gatys_with_real_weights_takes_on_the_style(folders):
    """Gram matrices come at least ten times closer than the content picture's."""
    path = folders / "models" / "style_transfer" / REAL_VGG.name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(REAL_VGG)
    y, x = torch.meshgrid(torch.linspace(0, 1, 48), torch.linspace(0, 1, 48), indexing="ij")
    content = torch.stack([y, x, (y - 0.5) ** 2 + (x - 0.5) ** 2], -1)[None].clamp(0, 1)
    style = (torch.stack([40 * x + 9 * y, 25 * y, 30 * x * y], -1)[None].sin() > 0).float() * 0.8 + 0.1
    image = paint(path.name, content, style, steps=80, size=48).result[0]
    net = vgg.load(load_file(REAL_VGG))
    layers = list(gatys.STYLE_LAYERS)
    grams = [[gram(f) for f in net(net.normalise(p.movedim(-1, 1)), layers).values()] for p in
             (content, image, style)]
    before, after = (sum(float((g - s).square().sum() / s.square().sum()) for g, s in zip(found, grams[2], strict=True))
                     for found in grams[:2])
    assert after < before / 10
