"""Noise levels."""
import pytest
import torch
from inst_pack.inst_core.schedules import cosine_clock, from_level


def linear(total: int) -> torch.Tensor:
    return torch.linspace(10, 0, total + 1)


def test_cosine_clock_gives_the_published_levels():
    """science.md 3 (h) 2, for SD's range: 14.6 3.50 1.88 1.19 .779 .485 .246 .029."""
    expected = torch.tensor([14.6, 3.50, 1.88, 1.19, 0.779, 0.485, 0.246, 0.029])
    torch.testing.assert_close(cosine_clock(14.6146, 0.0292, 8), expected, atol=6e-3, rtol=2e-3)


@pytest.mark.parametrize("steps", [1, 4, 8, 50])
@pytest.mark.parametrize("start", [9.99, 7.0, 0.3])
def test_from_level_starts_exactly_there_in_the_steps_asked_for(start, steps):
    sigmas = from_level(linear, start, steps)
    assert len(sigmas) == steps + 1
    assert sigmas[0] == pytest.approx(start) and sigmas[-1] == 0
    assert (sigmas.diff() < 0).all()


def test_from_level_takes_the_shortest_run_that_has_the_steps():
    """7 steps of size 10/7 put four levels below 5.2; with 6 there would be only three and 0."""
    torch.testing.assert_close(from_level(linear, 4.9, 4), torch.tensor([4.9, 30 / 7, 20 / 7, 10 / 7, 0.0]))


def test_a_schedule_without_enough_levels_is_refused():
    with pytest.raises(ValueError, match="no 4 levels below sigma 5"):
        from_level(lambda total: torch.tensor([10.0, 0.0]), 5.0, 4)
