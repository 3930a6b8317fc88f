"""Renderings by rule: what the demo model is trained on has to be the same from the same seed, and a picture."""
import pytest
import torch
from demo_model import painterly


@pytest.fixture(scope="module")
def pictures():
    y, x = torch.meshgrid(torch.linspace(0, 1, 72), torch.linspace(0, 1, 64), indexing="ij")
    waves = [torch.stack([(6 * x + k).sin(), (9 * y * x + k).cos(), (4 * y - k).sin()]) for k in (0.0, 2.0)]
    return torch.stack(waves) / 2 + 0.5


@pytest.mark.parametrize("technique", [None, *painterly.TECHNIQUES])
def test_a_rendering_is_a_picture_and_the_seed_decides_it(pictures, technique):
    """Neither its neighbours in the batch nor global random numbers do."""
    torch.manual_seed(1)
    before = torch.get_rng_state()
    made, word = painterly.render(pictures, 3, technique)
    assert torch.equal(before, torch.get_rng_state())
    assert technique in (None, word) and word in painterly.TECHNIQUES and made.shape == pictures.shape
    assert made.isfinite().all() and made.min() >= 0 and made.max() <= 1 and made.std() > 0.01
    torch.manual_seed(2)
    assert torch.equal(made, painterly.render(pictures, 3, technique)[0])
    assert not torch.equal(made, painterly.render(pictures, 4, technique)[0])
    torch.testing.assert_close(made[:1], painterly.render(pictures[:1], 3, technique)[0], atol=2e-3, rtol=0)


@pytest.mark.parametrize("palette", list(dict.fromkeys(painterly.PALETTES)), ids=lambda f: f.__name__)
def test_palettes_change_colours_and_keep_the_layout(pictures, palette):
    made = palette(pictures, painterly.Draw(2)).clamp(0, 1)
    assert made.shape == pictures.shape and made.isfinite().all()
    assert not torch.allclose(made, pictures, atol=0.02)
    a, b = (painterly.luma(x).flatten(1) for x in (made, pictures))
    assert torch.corrcoef(torch.stack([a[0], b[0]]))[0, 1] > 0.3


def test_strokes_lie_along_the_contours():
    """Vertical stripes are painted with vertical strokes: columns stay more alike than rows."""
    stripes = (torch.linspace(0, 40, 96).sin() / 2 + 0.5).expand(1, 3, 96, 96)
    made = painterly.swirls(stripes, painterly.Draw(0))
    down = (made[:, :, 1:] - made[:, :, :-1]).abs().mean()
    across = (made[..., 1:] - made[..., :-1]).abs().mean()
    assert down < 0.6 * across


def test_voronoi_cells_belong_to_their_nearest_seed():
    x = torch.zeros(1, 3, 40, 50)
    seed_y, seed_x, number, wall = painterly.cells(x, painterly.Draw(0), 9.0)
    y_at, x_at = painterly.grid(x)
    own = ((y_at - seed_y) ** 2 + (x_at - seed_x) ** 2).sqrt()
    seeds = torch.stack([seed_y.flatten(), seed_x.flatten()], 1).unique(dim=0)
    everywhere = torch.cdist(torch.stack([y_at.expand_as(own).flatten(), x_at.expand_as(own).flatten()], 1), seeds)
    torch.testing.assert_close(own.flatten(), everywhere.amin(1), atol=1e-3, rtol=0)
    assert (wall >= 0).all()
