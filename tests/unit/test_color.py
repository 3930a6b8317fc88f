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
    with pytest.raises(ValueError, match="content latent has 4 channels, style latent has 16"):
        match_color(picture(1), picture(2, (1, 16, 5, 5)))
