"""The comparison figure: every picture where it belongs, undistorted, evenly spaced."""
import pytest
import torch
from inst_pack.inst_core import grid as module
from inst_pack.inst_core.grid import arranged, cropped, grid, scaled_size
from inst_pack.inst_core.lettering import Lettering


def flat(red: float, height: int = 40, width: int = 40) -> torch.Tensor:
    picture = torch.zeros(3, height, width)
    picture[0] = red
    return picture


def runs(mask) -> list[tuple[int, int]]:
    """(start, stop) of the stretches where a (n,) mask is true."""
    edges = torch.diff(torch.cat([torch.zeros(1), mask.float(), torch.zeros(1)]))
    return list(zip((edges > 0).nonzero().flatten().tolist(), (edges < 0).nonzero().flatten().tolist(), strict=True))


def painted(figure: torch.Tensor) -> torch.Tensor:
    """Where pictures are: the test pictures have no green."""
    return figure[0, ..., 1] < 0.5


def test_pictures_are_in_place_with_even_gaps():
    cells = [[flat(0.1), flat(0.2, 40, 80)], [flat(0.3), flat(0.4)], [None, flat(0.5, 80, 40)]]
    figure = grid(cells, height=32, gap=6)
    assert figure.shape == (1, 6 + 3 * 38, 6 + 38 + 70, 3)
    mask = painted(figure)
    assert runs(mask.any(1)) == [(6, 38), (44, 76), (82, 114)]
    assert runs(mask[6:38].any(0)) == [(6, 38), (44, 108)]
    assert runs(mask[44:76].any(0)) == [(6, 38), (60, 92)]  # centred in the wider column
    assert runs(mask[82:114].any(0)) == [(68, 84)]  # half as wide as high, not distorted; the empty place stays white
    for y, x, red in ((20, 20, 0.1), (20, 70, 0.2), (60, 20, 0.3), (60, 76, 0.4), (100, 76, 0.5)):
        assert figure[0, y, x, 0].item() == pytest.approx(red, abs=1e-5)
    assert (figure[0, 40] == 1).all() and (figure[0, 100, 20] == 1).all()


def test_labels_are_beside_their_rows_and_columns():
    cells = [[flat(0.1), flat(0.2)], [flat(0.3), flat(0.4)]]
    figure = grid(cells, ["upper", ""], ["A", "StyTr\u00b2"], height=64, gap=4)
    left, top = 4 + Lettering(12).width("upper") + 4, 4 + Lettering(12).height + 4
    assert figure.shape == (1, top + 2 * 68, left + 2 * 68, 3)
    dark = figure[0].amax(-1) < 0.5
    first, second = dark[:top, left:left + 64], dark[:top, left + 68:left + 132]
    beside = dark[top:, :left]
    assert first.any() and second.sum() > 2 * first.sum() and not dark[:top, :left].any()
    assert beside[:64].any() and not beside[64:].any()
    columns, rows = first.any(0).nonzero().flatten().float(), beside.any(1).nonzero().flatten().float()
    assert abs(columns.mean() - 31.5) < 3 and abs(rows.mean() - 31.5) < 4  # centred


def test_very_wide_pictures_are_made_smaller():
    assert scaled_size(flat(0, 10, 100), 60) == (18, 180)
    assert scaled_size(flat(0, 100, 1), 60) == (60, 1)
    assert scaled_size(flat(0, 1, 1), 60) == (60, 60)


def test_batches_become_columns_or_rows():
    three, one, two = torch.zeros(3, 3, 8, 8), torch.ones(1, 3, 8, 8), torch.full((2, 3, 8, 8), 0.5)
    cells = arranged([three, one, two])
    assert [len(row) for row in cells] == [3, 3, 3]
    assert [row[1].mean().item() for row in cells] == [1, 1, 1]  # one picture is repeated
    assert cells[2][2] is None and cells[1][2] is not None
    rows = arranged([three, one], as_rows=True)
    assert len(rows) == 2 and len(rows[0]) == 3 and rows[1][2].mean() == 1


def test_crop_gives_all_the_first_aspect():
    cells = arranged([torch.zeros(1, 3, 20, 30), torch.zeros(1, 3, 50, 50)], crop=True)
    assert cells[0][0].shape == (3, 20, 30) and cells[0][1].shape == (3, 33, 50)
    ramp = torch.arange(50.0).expand(3, 10, 50)
    assert cropped(ramp, 2.0)[0, 0].tolist() == list(range(15, 35))  # the middle


@pytest.mark.parametrize("cells, rows, columns, message", [
    ([], [], [], "no picture"),
    ([[None]], [], [], "no picture"),
    ([[flat(0)]], [], ["a", "b"], "column_labels has 2 lines, the grid has 1 columns"),
    ([[flat(0)]], ["a", "b"], [], "row_labels has 2 lines, the grid has 1 rows"),
])
def test_what_cannot_be_drawn(cells, rows, columns, message):
    with pytest.raises(ValueError, match=message):
        grid(cells, rows, columns)


@pytest.mark.parametrize("height, gap", [(0, 8), (-5, 8), (64, -3)])
def test_sizes_below_the_least_are_refused(height, gap):
    with pytest.raises(ValueError, match=f"height is {height} and gap is {gap}; expected at least 1 and 0"):
        grid([[flat(0)]], height=height, gap=gap)


def test_a_figure_that_would_fill_the_memory_is_refused(monkeypatch):
    monkeypatch.setattr(module, "MAX_PIXELS", 5000)
    with pytest.raises(ValueError, match="The grid would be 152 x 80 px. Choose a smaller height than 64"):
        grid([[flat(0), flat(0)]], height=64)
