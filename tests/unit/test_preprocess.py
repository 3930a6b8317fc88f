"""Pictures of every kind on their way in."""
import pytest
import torch
from inst_pack.inst_core.preprocess import (
    as_rgb,
    clip_square,
    fit_area,
    latent_weights,
    paintings,
    random_crops,
    released_square,
)


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


@pytest.mark.parametrize("image, says", [
    (torch.rand(8, 8, 3), "has shape"), (torch.rand(1, 8, 8, 2), "has shape"), (torch.rand(0, 8, 8, 3), "has shape"),
    (torch.full((1, 8, 8, 3), torch.nan), "contains NaN"),
])
def test_what_is_no_picture_is_named(image, says):
    with pytest.raises(ValueError, match=f"painting {says}"):
        as_rgb(image, "painting")


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


# ---- what of a painting is learned from ----

PAPER_GREY, INK = 0.5, torch.tensor([0.0, 1.0, 0.0])


def framed(height: int = 60, width: int = 90, frame: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    """A red ramp on grey in a green frame with a green figure, and a mask of both."""
    image = torch.full((1, height, width, 3), PAPER_GREY)
    image[..., 0] = torch.linspace(0.2, 0.8, width)
    mask = torch.ones(1, height, width)
    mask[:, frame:-frame, frame:-frame] = 0
    mask[:, 20:40, 30:50] = 1
    image[mask.bool()] = INK
    return image, mask


@pytest.mark.parametrize("mask", [None, torch.zeros(1, 64, 64), torch.zeros(64, 64)])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_where_nothing_is_left_out_the_painting_is_what_it_was(mask, channels):
    image = torch.rand(2, 10, 20, channels)
    image[..., 3:] = 1
    assert torch.equal(paintings(image, mask), as_rgb(image))


def test_a_frame_is_cut_off_and_a_figure_is_painted_over_with_what_lies_around_it():
    image, mask = framed()
    seen = paintings(image, mask)
    assert seen.shape == (1, 44, 74, 4)
    assert torch.equal(seen[..., 3], 1 - mask[:, 8:-8, 8:-8])
    counts = seen[..., 3] == 1
    assert torch.equal(seen[..., :3][counts], image[:, 8:-8, 8:-8][counts])
    assert (seen[..., 1] - PAPER_GREY).abs().max() < 1e-3  # no green anywhere
    assert (seen[0, 22, 20:45, 0] - image[0, 10, 28:53, 0]).abs().max() < 0.1


def test_alpha_leaves_out_as_the_mask_does_whatever_its_colour():
    image, mask = framed()
    clear = torch.cat([image, 1 - mask.unsqueeze(-1)], -1)
    assert torch.equal(paintings(clear), paintings(image, mask))
    assert torch.equal(paintings(torch.cat([image, torch.ones_like(mask).unsqueeze(-1)], -1), mask),
                       paintings(image, mask))


def test_a_mask_of_another_size_is_scaled():
    image, mask = framed(120, 180, 16)
    small = torch.nn.functional.avg_pool2d(mask, 2)
    large, exact = paintings(image, small), paintings(image, mask)
    assert abs(large[..., 3].mean() - exact[..., 3].mean()) < 0.06


def test_every_painting_of_a_batch_may_have_its_own_mask():
    image, mask = framed()
    both, masks = torch.cat([image, image]), torch.cat([mask, mask * 0])
    seen = paintings(both, masks)
    assert seen.shape == (2, 60, 90, 4) and bool((seen[1, ..., 3] == 1).all())
    assert torch.equal(seen[1, ..., :3], image[0]) and not torch.equal(seen[0, ..., :3], image[0])
    assert torch.equal(paintings(both, mask), paintings(both, torch.cat([mask, mask])))


@pytest.mark.parametrize("mask, says", [
    (torch.ones(1, 64, 64), "leave 0.0 % of painting 1"),
    (torch.stack([torch.zeros(60, 90), torch.ones(60, 90)]), "of painting 2"),
    (torch.zeros(3, 60, 90), r"shape \(3, 60, 90\).*each of the 2"),
    (torch.eye(64), "64 x 64 pixels and image 90 x 60"),
    (torch.full((60, 90), float("nan")), "NaN"),
    (torch.zeros(5), "shape"),
])
def test_masks_that_cannot_be_meant_are_refused(mask, says):
    image, _ = framed()
    with pytest.raises(ValueError, match=f"style_mask.*{says}"):
        paintings(torch.cat([image, image]), mask)


def test_crops_lie_where_the_painting_counts():
    seen = paintings(*framed(200, 400, 20))
    seen[..., 3] = 1
    seen[:, :, :100, 3] = 0
    crops = random_crops(seen, 32, 40, torch.Generator().manual_seed(0))
    assert crops.shape == (40, 32, 32, 4) and crops[..., 3].mean((1, 2)).min() > 0.99
    everywhere = random_crops(seen[..., :3], 32, 40, torch.Generator().manual_seed(0))
    assert not torch.equal(everywhere, crops[..., :3])


def test_a_place_of_a_latent_counts_as_its_least_pixel():
    kept = torch.ones(1, 32, 48, 1)
    kept[0, 9, 17] = 0
    weights = latent_weights(kept, torch.zeros(1, 4, 4, 6))
    assert weights.shape == (1, 1, 4, 6) and weights.sum() == 23 and weights[0, 0, 1, 2] == 0
    assert latent_weights(kept, torch.zeros(1, 16, 1, 4, 6)).shape == (1, 1, 1, 4, 6)
