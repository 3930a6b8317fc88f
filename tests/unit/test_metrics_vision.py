"""CLIP and CSD: the same vision transformer as ``transformers`` has, read under either set of names."""
import pytest
import torch
from inst_pack.inst_core.metrics import vision
from inst_pack.inst_core.preprocess import clip_square

WIDTH, DEPTH, PATCH, SIZE, OUTPUTS = 128, 2, 8, 32, 24


@pytest.fixture(scope="module")
def reference():
    """A small CLIP vision model with random weights."""
    transformers = pytest.importorskip("transformers")
    config = transformers.CLIPVisionConfig(hidden_size=WIDTH, intermediate_size=4 * WIDTH, num_hidden_layers=DEPTH,
                                           num_attention_heads=WIDTH // vision.HEAD, patch_size=PATCH,
                                           image_size=SIZE, projection_dim=OUTPUTS, hidden_act="quick_gelu")
    model = transformers.CLIPVisionModelWithProjection(config).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return model


@pytest.fixture()
def pictures():
    return torch.rand(2, 3, 40, 56, generator=torch.Generator().manual_seed(1))


def expected(model, pictures):
    squares = clip_square(pictures.movedim(1, -1), SIZE).movedim(-1, 1)
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (vision.MEAN, vision.STD))
    with torch.no_grad():
        embeds = model((squares - mean) / std).image_embeds
    return embeds / embeds.norm(dim=-1, keepdim=True)


def test_clip_equals_transformers(reference, pictures):
    found = vision.load_clip(reference.state_dict())(pictures)
    torch.testing.assert_close(found, expected(reference, pictures), atol=1e-5, rtol=0)


def test_csd_is_read_in_openais_names(reference, pictures):
    openai = vision.openai_names(reference.state_dict())
    csd = {f"module.backbone.{k}": v for k, v in openai.items() if k != "proj"}
    csd |= {"module.last_layer_style": openai["proj"], "module.last_layer_content": openai["proj"] * 2}
    found = vision.load_csd(csd)(pictures)
    torch.testing.assert_close(found, expected(reference, pictures), atol=1e-5, rtol=0)
    del csd["module.backbone.ln_pre.bias"]
    with pytest.raises(ValueError, match=r"CLIP vision transformer: 1 of .*ln_pre\.bias.*CSD-ViT-L"):
        vision.load_csd(csd)


@pytest.mark.parametrize("load", [vision.load_clip, vision.load_csd])
def test_other_files_are_refused(load):
    with pytest.raises(ValueError, match="does not hold a CLIP vision transformer"):
        load({"features.0.weight": torch.zeros(1)})


def test_csd_without_its_head_and_clip_without_projection(reference):
    openai = vision.openai_names(reference.state_dict())
    with pytest.raises(ValueError, match="last_layer_style"):
        vision.load_csd({f"backbone.{k}": v for k, v in openai.items()})
    with pytest.raises(ValueError, match="proj"):
        vision.load_clip({k: v for k, v in openai.items() if k != "proj"})


def test_cosine_by_hand():
    a, b = torch.tensor([[3.0, 4.0], [1.0, 0.0]]), torch.tensor([[4.0, 3.0], [-2.0, 0.0]])
    torch.testing.assert_close(vision.cosine(a, b), torch.tensor([24 / 25, -1.0]))
