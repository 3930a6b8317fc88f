"""Noise levels."""
import pytest
import torch
from inst_pack.inst_core.schedules import LONGEST, cosine_clock, from_level


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


def discrete(total: int) -> torch.Tensor:
    """A schedule of 100 levels only, which repeats them when it is asked for more."""
    return torch.cat([10 - torch.arange(total).mul(100 / total).floor() / 10, torch.zeros(1)])


@pytest.mark.parametrize("schedule, start, steps", [
    (discrete, 5.0, 51), (discrete, 0.3, 50), (discrete, 7.0, 10000), (discrete, 0.02, 2),
    (lambda total: torch.tensor([10.0, 0.0]), 5.0, 4),
])
def test_a_schedule_without_enough_levels_is_refused(schedule, start, steps):
    with pytest.raises(ValueError, match=rf"steps is {steps}, .* has only \d+ levels? below sigma {start:g}"):
        from_level(schedule, start, steps)


@pytest.mark.parametrize("steps, start", [(10000, 9.0), (10000, 0.1), (1000, 0.02), (1025, 9.99), (50, 0.01)])
def test_long_runs_are_read_between_the_levels_of_one_that_can_be_had(steps, start):
    """As many equal steps as were asked for, without asking the schedule for a run of millions."""
    asked = []
    sigmas = from_level(lambda total: asked.append(total) or linear(total), start, steps)
    assert len(sigmas) == steps + 1 and sigmas[0] == pytest.approx(start) and (sigmas.diff() < 0).all()
    assert sum(asked) < 15 * LONGEST and max(asked) <= LONGEST
    if steps > LONGEST:
        torch.testing.assert_close(sigmas[:-1], torch.linspace(start, 10 / LONGEST, steps), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("steps", [1, 2, 7, 50, 333])
@pytest.mark.parametrize("start", [0.4, 3.3, 8.0, 9.9])
def test_a_bounded_search_finds_what_trying_every_length_finds(steps, start):
    for schedule in (linear, lambda n: linear(n).square() / 10, discrete):
        runs = ((n, schedule(n)) for n in range(steps, LONGEST + 1))
        found = next((run[run < start * (1 - 1e-4)] for _, run in runs
                      if len((run[run < start * (1 - 1e-4)]).unique()) >= steps), None)
        if found is not None:
            torch.testing.assert_close(from_level(schedule, start, steps)[1:], found.unique().flip(0)[-steps:])
