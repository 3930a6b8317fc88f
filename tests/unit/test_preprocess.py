"""Pictures of every kind on their way in."""
import pytest
import torch
from inst_pack.inst_core.preprocess import as_rgb, clip_square, fit_area, random_crops, released_square


@pytest.mark.parametrize(("height", "width"), [(512, 512), (100, 300), (2000, 700), (64, 1000), (7, 9)])
def test_fit_area_keeps_the_aspect_within_a_crop_of_one_multiple(height, width):
    """A disc stays round: equal extents in both directions."""
    y, x = torch.meshgrid(torch.arange(height) - (height - 1) / 2, torch.arange(width) - (width - 1) / 2, indexing="ij")
    disc = ((x**2 + y**2).sqrt() < min(height, width) * 0.4).float()[None, :, :, None].expand(-1, -1, -1, 3)
    out = fit_area(disc, 512)
    assert out.shape[1] % 64 == 0 and out.shape[2] % 64 == 0
    if min(height, width) > 50:
        rows, columns = (out[0, :, :, 0] > 0.5).any(1).sum().item(), (out[0, :, :, 0] > 0.5).any(0).sum().item()
        assert rows == pytest.approx(columns, abs=3)
        assert 0.4 < out.shape[1] * out.shape[2] / 512**2 < 2.5


def test_greyscale_and_alpha_become_rgb():
    grey = torch.rand(2, 8, 8, 1)
    assert torch.equal(as_rgb(grey), grey.expand(-1, -1, -1, 3))
    alpha = torch.tensor([0.0, 0.25, 0.5, 1.0]).view(1, 1, 4, 1).expand(1, 4, 4, 1)
    rgba = torch.cat([torch.zeros(1, 4, 4, 3), alpha], -1)
    assert torch.allclose(as_rgb(rgba)[0, 0, :, 0], torch.tensor([1.0, 0.75, 0.5, 0.0]))


def test_released_pictures_are_squashed_to_512():
    assert released_square(torch.rand(1, 30, 90, 3)).shape == (1, 512, 512, 3)


@pytest.mark.parametrize("size", [(224, 224), (300, 500), (500, 300), (60, 61)])
def test_clip_square_is_224(size):
    assert clip_square(torch.rand(1, *size, 3)).shape == (1, 224, 224, 3)


@pytest.mark.parametrize("image", [torch.rand(8, 8, 3), torch.rand(1, 8, 8, 2), torch.rand(0, 8, 8, 3)])
def test_what_is_no_picture_is_named(image):
    with pytest.raises(ValueError, match="painting has shape"):
        as_rgb(image, "painting")


def test_nan_pixels_are_named():
    image = torch.rand(1, 8, 8, 3)
    image[0, 0, 0, 0] = float("nan")
    with pytest.raises(ValueError, match="NaN"):
        as_rgb(image)


@pytest.mark.parametrize("pictures, count", [(20, 16), (3, 1), (17, 16)])
def test_no_picture_is_left_out_of_the_crops(pictures, count):
    levels = (torch.arange(pictures) / pictures).view(-1, 1, 1, 1).expand(-1, 32, 32, 3)
    crops = random_crops(levels, 16, count, torch.Generator().manual_seed(0))
    torch.testing.assert_close(crops.mean((1, 2, 3)).sort().values, levels[:, 0, 0, 0])


def test_crops_show_parts_of_every_picture_at_several_scales():
    ramp = torch.linspace(0, 1, 200).view(1, 1, 200, 1).expand(1, 100, 200, 3)
    pictures = torch.cat([ramp, ramp * 0 + 0.5])
    crops = random_crops(pictures, 64, 40, torch.Generator().manual_seed(0))
    assert crops.shape == (40, 64, 64, 3)
    assert torch.allclose(crops[1::2], torch.tensor(0.5), atol=1e-3)
    spans = [(c.max() - c.min()).item() for c in crops[::2]]
    assert 0.2 < min(spans) < max(spans) - 0.05 < 0.5
    slopes = {bool(c[0, -1, 0] > c[0, 0, 0]) for c in crops[::2]}
    assert slopes == {True, False}
    assert torch.equal(crops, random_crops(pictures, 64, 40, torch.Generator().manual_seed(0)))
