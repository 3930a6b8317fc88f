"""What CLIP sees: equal to transformers' CLIPModel, through the host's CLIP vision."""
import comfy.clip_vision
import pytest
import torch
from inst_pack.inst_core import host, preprocess
from small_vit import VISION, make
from transformers import CLIPImageProcessor


@pytest.fixture(scope="module")
def models():
    """The same small ViT weights in transformers and in the host."""
    return make()


def expected_embed(reference, picture: torch.Tensor) -> torch.Tensor:
    levels = (picture * 255).round().byte().numpy()
    pixels = CLIPImageProcessor()(images=list(levels), return_tensors="pt")["pixel_values"]
    embed = reference.visual_projection(reference.vision_model(pixel_values=pixels).pooler_output)
    return embed / embed.norm(dim=-1, keepdim=True)


def picture(height: int, width: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(height * width)
    rough = torch.rand(1, 3, 12, 16, generator=generator)
    return torch.nn.functional.interpolate(rough, (height, width), mode="bicubic").clamp(0, 1).movedim(1, -1)


@pytest.mark.parametrize("size", [(224, 224), (300, 300), (256, 400), (333, 217), (120, 90), (224, 500)])
def test_image_embedding_equals_transformers(models, size):
    reference, clip_vision = models
    image = (picture(*size) * 255).round() / 255
    found = host.vision.picture_features(clip_vision, image).image_embed
    expected = expected_embed(reference, image)
    torch.testing.assert_close(found, expected, atol=2e-4, rtol=0)
    assert found.norm(dim=-1).item() == pytest.approx(1, abs=1e-5)


def test_released_embedding_is_of_the_black_cast(models):
    reference, clip_vision = models
    image = picture(100, 140)
    image[:, :20, :20] = 0.0
    found = host.vision.picture_features(clip_vision, image, released=True).image_embed
    squashed = preprocess.released_square(image)
    torch.testing.assert_close(found, expected_embed(reference, preprocess.released_cast(squashed)), atol=2e-4, rtol=0)
    assert (found - host.vision.picture_features(clip_vision, image).image_embed).abs().max() > 1e-3


def test_released_cast_follows_the_uint8_conversion():
    """-1 wraps to 255, 1 stays 1, all between becomes 0 (numpy's cast of the [-1, 1] picture)."""
    import numpy as np

    levels = torch.tensor([0.0, 0.1, 0.5, 0.999, 1.0]).view(1, 1, 5, 1).expand(1, 1, 5, 3)
    signed = levels.numpy() * 2 - 1
    wrapped = signed.astype(np.int8).astype(np.uint8)
    assert torch.equal((preprocess.released_cast(levels) * 255).round().byte(), torch.from_numpy(wrapped))


def test_wrong_or_missing_clip_vision_is_named(models):
    with pytest.raises(ValueError, match="clip-vit-large-patch14.*'direct', which need none"):
        host.vision.picture_features(None, picture(64, 64))
    small = comfy.clip_vision.ClipVisionModel({**VISION, "model_type": "clip_vision_model", "hidden_size": 64,
                                               "projection_dim": 512})
    for parameter in small.model.parameters():
        torch.nn.init.zeros_(parameter)
    with pytest.raises(ValueError, match=r"embeddings \(512,\) over patches of width 64.*ViT-L/14"):
        host.vision.picture_features(small, picture(64, 64))
