"""Strength over the steps of sampling."""
import pytest
from inst_pack.inst_core.strength import ALWAYS, BORDER, PIECES, SHAPES, Course


def test_without_a_course_there_is_one_piece():
    assert ALWAYS.pieces(0.7) == [(0.0, 1.0, 0.7)]
    assert Course(0.2, 0.8, "ease in").pieces(0.0) == [(0.0, 1.0, 0.0)]


def test_outside_of_the_course_the_strength_is_zero_and_its_ends_belong_to_it():
    assert Course(0.25, 0.5).pieces(1.5) == [(0.0, 0.25 - BORDER, 0.0), (0.25 - BORDER, 0.5 + BORDER, 1.5),
                                             (0.5 + BORDER, 1.0, 0.0)]
    assert Course(0.0, 0.5).pieces(1.0) == [(0.0, 0.5 + BORDER, 1.0), (0.5 + BORDER, 1.0, 0.0)]
    assert Course(0.5, 1.0).pieces(1.0) == [(0.0, 0.5 - BORDER, 0.0), (0.5 - BORDER, 1.0, 1.0)]


@pytest.mark.parametrize("start, end", [(0.0, 1.0), (0.0, 0.5), (0.3, 1.0), (0.1, 0.11)])
@pytest.mark.parametrize("shape", SHAPES)
def test_pieces_cover_the_schedule_without_gaps(start, end, shape):
    pieces = Course(start, end, shape).pieces(1.3)
    assert pieces[0][0] == 0 and pieces[-1][1] == 1
    assert all(piece[0] < piece[1] for piece in pieces)
    assert [piece[1] for piece in pieces[:-1]] == [piece[0] for piece in pieces[1:]]
    assert max(height for *_, height in pieces) == 1.3


def test_shapes_rise_and_fall():
    rising, falling = ([height for *_, height in Course(shape=shape).pieces(1.0)] for shape in SHAPES[1:])
    assert len(rising) == PIECES and rising == sorted(rising) and rising[0] < 0.1 and rising[-1] == 1
    assert falling == rising[::-1]


@pytest.mark.parametrize("start, end", [(0.5, 0.5), (0.6, 0.4), (-0.1, 1.0), (0.0, 1.1)])
def test_a_course_that_ends_before_it_starts_is_refused(start, end):
    with pytest.raises(ValueError, match="start_percent is .* the start must lie below the end"):
        Course(start, end).pieces(1.0)
