"""Which samples are learned from, what they weigh, and when it is done."""
import itertools
import math

import pytest
import torch
from inst_pack.inst_core import objective
from inst_pack.inst_core.objective import Objective, converged, held_out_bank, noise_bank, samples

VIEWS = torch.arange(5.0).view(5, 1, 1, 1).expand(5, 4, 8, 8)


def log_snr(time: torch.Tensor) -> torch.Tensor:
    """SD's range, falling evenly."""
    return 7.0 - 12.0 * time


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_the_cosine_density_has_the_cosine_schedules_log_snr():
    places = torch.linspace(0.1, 0.8, 30)
    times = objective.cosine_log_snr(places, log_snr)
    angle = (places + 0.008) / 1.008 * math.pi / 2
    torch.testing.assert_close(log_snr(times), 2 * (angle.cos() / angle.sin()).log(), atol=0.02, rtol=0)
    assert (times.diff() > 0).all() and objective.uniform(places, log_snr) is places


def test_the_cosine_density_stays_inside_the_model():
    times = objective.cosine_log_snr(torch.tensor([0.0, 0.9999]), log_snr)
    assert times[0] >= 0 and times[1] <= 1


def test_min_snr_caps_the_weight_of_the_denoised_prediction():
    times = torch.tensor([0.1, 0.9])
    snr = log_snr(times).exp()
    torch.testing.assert_close(objective.min_snr(times, log_snr), torch.tensor([5 / snr[0].item(), 1.0]))


@pytest.mark.parametrize("density", objective.DENSITIES)
@pytest.mark.parametrize("strongest", [0.3, 0.7, 1.0])
def test_no_time_lies_above_the_strongest(density, strongest):
    times = Objective(density, strongest=strongest).times(torch.linspace(0, 0.999, 64), log_snr)
    assert (times <= strongest).all() and times.max() > strongest - 0.05
    if density == "uniform":  # and below it the density is the same, stretched
        torch.testing.assert_close(times, torch.linspace(0, 0.999, 64) * strongest, atol=2e-3, rtol=0)


@pytest.mark.parametrize("antithetic", [True, False])
def test_a_bank_has_one_time_in_every_stratum_and_every_view_equally_often(antithetic):
    bank = noise_bank(VIEWS, 40, Objective(antithetic=antithetic), log_snr, seeded())
    groups = 20 if antithetic else 40
    strata = (bank.time * groups).long()
    assert len(bank.time) == 40 and strata.unique(return_counts=True)[1].tolist() == [40 // groups] * groups
    assert bank.latent[:, 0, 0, 0].long().bincount().tolist() == [8] * 5
    pairs = torch.equal(bank.noise[::2], -bank.noise[1::2]) and torch.equal(bank.time[::2], bank.time[1::2])
    assert pairs == antithetic and list(bank.entries) == list(range(40))


@pytest.mark.parametrize("count", [1, 2, 3, 4, 8, 64, 100])
def test_batches_have_the_size_asked_for_and_go_round_the_whole_bank(count):
    batches = samples(VIEWS, count, Objective(bank=64), log_snr, seeded())
    taken = list(itertools.islice(batches, -(-100 // count)))
    assert all(len(b.time) == len(b.entries) == len(b.weight) == count for b in taken)
    assert {e for b in taken for e in b.entries} == set(range(64 if count < 100 else 100))


def test_a_batch_is_spread_over_all_levels_with_its_pairs_together():
    for batch in itertools.islice(samples(VIEWS, 8, Objective(bank=64), log_snr, seeded()), 10):
        assert (batch.time * 4).long().tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
        assert torch.equal(batch.noise[::2], -batch.noise[1::2])


def test_an_entry_is_always_the_same_sample():
    seen = {}
    for batch in itertools.islice(samples(VIEWS, 4, Objective(bank=16), log_snr, seeded()), 12):
        for i, entry in enumerate(batch.entries):
            sample = seen.setdefault(entry, (batch.latent[i], batch.noise[i], batch.time[i], batch.weight[i]))
            assert all(torch.equal(a, b) for a, b in zip(sample, (batch.latent[i], batch.noise[i], batch.time[i],
                                                                  batch.weight[i]), strict=True))


def test_the_released_samples_are_fresh_and_at_discrete_times():
    batches = list(itertools.islice(samples(VIEWS, 50, objective.RELEASED, log_snr, seeded()), 20))
    times = torch.cat([b.time for b in batches]) * 999
    torch.testing.assert_close(times, times.round(), atol=1e-3, rtol=0)
    assert abs(times.mean() - 499.5) < 30 and times.min() < 20 and times.max() > 980
    assert batches[0].entries is None and not torch.equal(batches[0].noise, batches[1].noise)


def test_parts_of_a_batch_are_the_batch():
    bank = held_out_bank(VIEWS)
    parts = list(bank.split(3))
    assert [len(p.time) for p in parts] == [3, 3, 2]
    assert torch.equal(torch.cat([p.noise for p in parts]), bank.noise)
    assert [e for p in parts for e in p.entries] == list(bank.entries)


def test_the_held_out_bank_is_the_same_for_ever():
    assert torch.equal(held_out_bank(VIEWS).noise, held_out_bank(VIEWS + 1).noise)
    assert held_out_bank(VIEWS).time.tolist() == [(i + 0.5) / 8 for i in range(8)]


@pytest.mark.parametrize("losses, over", [
    ([1.0], False),
    ([1.0, 0.9, 0.8, 0.7], False),  # still falling
    ([1.0, 0.5, 0.5, 0.5], False),  # half of it came within the last three
    ([1.0, 0.5, 0.5, 0.49, 0.49], True),  # 0.01 of 0.51
    ([1.0, 0.5, 0.48, 0.47, 0.45], False),  # 0.05 of 0.55
    ([1.0, 1.1, 1.2, 1.1], True),  # nothing was gained at all
    ([1e-3, 5e-4, 5e-4, 4.9e-4, 4.9e-4], True),  # the scale of the loss does not matter
])
def test_it_is_over_when_the_last_three_checks_brought_next_to_nothing(losses, over):
    assert converged(losses) == over
