"""Latent colour transfer: statistics match, and adain equals the official notebook's."""
import pytest
import torch
from inst_pack.inst_core.color import adain, match_color, monge_kantorovich, whitening_colouring


def picture(seed: int, size=(2, 4, 9, 7)) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(size[1], size[1], generator=generator)
    return torch.einsum("ij,bjhw->bihw", mix, torch.randn(size, generator=generator)) + seed


def covariance(x: torch.Tensor) -> torch.Tensor:
    return torch.stack([torch.cov(p.flatten(1)) for p in x])


def test_adain_matches_the_official_notebook(golden):
    data = golden("inst_sampling")
    out = adain(data.array("inst/z0", (1, 4, 8, 6), 0.9), data.tensor("adain/style_latent"))
    torch.testing.assert_close(out, data.tensor("adain/out"), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("method", [monge_kantorovich, whitening_colouring])
def test_mean_and_covariance_become_the_styles(method):
    content, style = picture(1), picture(2, (2, 4, 5, 11))
    out = method(content, style)
    torch.testing.assert_close(out.mean((2, 3)), style.mean((2, 3)), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(covariance(out), covariance(style), atol=1e-3, rtol=1e-3)


def test_mk_moves_less_than_wct():
    content, style = picture(1), picture(2)
    moved = {m: (match_color(content, style, m) - content).square().sum() for m in ("mk", "wct")}
    assert moved["mk"] <= moved["wct"]


@pytest.mark.parametrize("method", ["adain", "mk", "wct"])
def test_own_colours_change_nothing(method):
    content = picture(3)
    torch.testing.assert_close(match_color(content, content, method), content, atol=1e-3, rtol=1e-3)


def test_amount_blends():
    content, style = picture(1), picture(2)
    full, half = match_color(content, style, "mk", 1.0), match_color(content, style, "mk", 0.5)
    assert match_color(content, style, "mk", 0.0) is content
    torch.testing.assert_close(half, (content + full) / 2)


def test_outside_a_mask_colours_stay():
    content, style = picture(1), picture(2)
    mask = torch.zeros(1, 1, *content.shape[2:])
    mask[..., :3], mask[..., 3:4] = 1, 0.5
    for method in ("adain", "mk", "wct"):
        out, full = match_color(content, style, method, 0.8, mask), match_color(content, style, method, 0.8)
        assert torch.equal(out[..., 4:], content[..., 4:])
        torch.testing.assert_close(out[..., :3], full[..., :3])
        torch.testing.assert_close(out[..., 3], (content[..., 3] + full[..., 3]) / 2)


def test_a_flat_picture_gives_no_nan():
    for method in ("adain", "mk", "wct"):
        out = match_color(torch.ones(1, 4, 6, 6), picture(1, (1, 4, 6, 6)), method)
        assert torch.isfinite(out).all()


def test_one_style_serves_a_batch_and_other_lengths_are_refused():
    match_color(picture(1, (3, 4, 5, 5)), picture(2, (1, 4, 5, 5)))
    with pytest.raises(ValueError, match="style latent batch is 2, content batch is 3"):
        match_color(picture(1, (3, 4, 5, 5)), picture(2))
    with pytest.raises(ValueError, match="method is 'nope'; expected one of adain, mk, wct, semantic"):
        match_color(torch.ones(1, 4, 2, 2), torch.ones(1, 4, 2, 2), "nope")
    with pytest.raises(ValueError, match="style latent holds NaN"):
        match_color(picture(1), picture(2) * torch.nan)
    with pytest.raises(ValueError, match="content latent has 4 channels, style latent has 16"):
        match_color(picture(1), picture(2, (1, 16, 5, 5)))


def halves(left: float, right: float) -> torch.Tensor:
    """A latent whose left and right halves have means of their own."""
    latent = 0.1 * torch.randn(1, 4, 8, 12, generator=torch.Generator().manual_seed(5))
    latent[..., :6] += left
    latent[..., 6:] += right
    return latent


LEFT = torch.cat([torch.ones(1, 8, 6), torch.zeros(1, 8, 6)], -1)


def kinds(latent: torch.Tensor) -> torch.Tensor:
    """Features that tell left from right whatever the colours."""
    return torch.stack([LEFT, 1 - LEFT], 1)


@pytest.mark.parametrize("method", ["adain", "mk", "wct"])
def test_masks_put_each_colour_on_its_region(method):
    content, style = halves(-1, 2), halves(3, 0)
    masks = torch.cat([LEFT, 1 - LEFT])
    out = match_color(content, style, method, content_mask=masks, style_mask=masks)
    torch.testing.assert_close(out[..., :6].mean((2, 3)), style[..., :6].mean((2, 3)), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(out[..., 6:].mean((2, 3)), style[..., 6:].mean((2, 3)), atol=1e-4, rtol=1e-4)
    swapped = match_color(content, style, method, content_mask=masks, style_mask=masks.flip(0))
    torch.testing.assert_close(swapped[..., :6].mean((2, 3)), style[..., 6:].mean((2, 3)), atol=1e-4, rtol=1e-4)


def test_what_is_in_no_mask_takes_what_is_left_of_the_style():
    content, style = halves(-1, 2), halves(3, 0)
    out = match_color(content, style, "mk", content_mask=LEFT, style_mask=LEFT)
    torch.testing.assert_close(out[..., 6:].mean((2, 3)), style[..., 6:].mean((2, 3)), atol=1e-4, rtol=1e-4)


def test_semantic_follows_the_features_and_masks_win():
    content, style = halves(-1, 2), halves(3, 0)
    out = match_color(content, style, "semantic", features=kinds)
    assert (out[..., :6].mean() - 3).abs() < 0.2 and out[..., 6:].mean().abs() < 0.2
    torch.testing.assert_close(out.mean((2, 3)), style.mean((2, 3)), atol=1e-4, rtol=1e-4)  # and the whole palette
    masks = torch.cat([LEFT, 1 - LEFT])
    masked = match_color(content, style, "semantic", content_mask=masks, style_mask=masks.flip(0), features=kinds)
    assert masked[..., :6].mean().abs() < 0.2 and (masked[..., 6:].mean() - 3).abs() < 0.2


def test_masks_that_cannot_be_meant_are_refused():
    content, style = halves(0, 1), halves(1, 0)
    with pytest.raises(ValueError, match="content_mask is connected and style_mask is not"):
        match_color(content, style, "mk", content_mask=LEFT)
    with pytest.raises(ValueError, match="content_mask holds 1 regions and style_mask 2"):
        match_color(content, style, "mk", content_mask=LEFT, style_mask=LEFT.repeat(2, 1, 1))
    with pytest.raises(ValueError, match="region 1 of style_mask is empty"):
        match_color(content, style, "mk", content_mask=LEFT, style_mask=0 * LEFT)
