"""Tiles of large latents: every cell is covered, nothing changes where tiles agree, and no seam where they do not."""
import pytest
import torch
from inst_pack.inst_core.tiles import blend, crop, places

SIZES = [(8, 8), (9, 33), (40, 25), (64, 64), (17, 128)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("overlap", [0, 4, 12])
def test_tiles_cover_everything_and_share_their_overlap(size, overlap):
    covered = torch.zeros(size)
    for y, x in places(*size, 16, overlap):
        assert y.stop - y.start <= max(16, size[0]) and covered[y, x].shape == (y.stop - y.start, x.stop - x.start)
        covered[y, x] += 1
    assert covered.min() >= 1
    columns = sorted({x.start for _, x in places(*size, 16, overlap)})
    assert all(later - earlier <= 16 - overlap for earlier, later in zip(columns, columns[1:], strict=False))


def test_a_picture_little_larger_than_a_tile_stays_whole():
    assert len(places(16, 18, 16, 4)) == 1 and len(places(16, 24, 16, 4)) == 2


@pytest.mark.parametrize("size", SIZES)
def test_what_every_tile_computes_alike_comes_back_unchanged(size):
    x = torch.randn(2, 4, *size, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(blend(x, 16, 4, lambda tile, place: tile * 2), x * 2, atol=1e-6)


def test_tiles_that_differ_leave_no_seam():
    """Each tile is off by its own constant: the picture goes from one to the next in even steps."""
    def steepest(overlap: int) -> float:
        offsets = iter([0.0, 1.0, 0.0, 1.0, 0.0, 1.0])
        blended = blend(torch.zeros(1, 1, 16, 56), 16, overlap, lambda tile, place: tile + next(offsets))
        return float(blended.diff(dim=-1).abs().max())

    assert steepest(8) < 0.2 and steepest(0) >= 0.5


def test_what_goes_with_a_latent_is_cut_with_it():
    x, place = torch.arange(32.0 * 48).reshape(1, 1, 32, 48), (slice(16, 32), slice(8, 40))
    half, text = x[..., ::2, ::2], torch.zeros(1, 77, 768)
    cut = crop({"control": {"output": [half, None]}, "c_concat": x, "c_crossattn": text, "n": 3}, place, 32, 48)
    assert torch.equal(cut["c_concat"], x[..., 16:32, 8:40]) and cut["c_crossattn"] is text and cut["n"] == 3
    assert torch.equal(cut["control"]["output"][0], half[..., 8:16, 4:20]) and cut["control"]["output"][1] is None


def test_an_overlap_that_leaves_nothing_is_refused():
    with pytest.raises(ValueError, match="overlap is 16 and the tile 16"):
        places(64, 64, 16, 16)
