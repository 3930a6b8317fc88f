"""Which samples are learned from and judged by."""
import itertools
from dataclasses import replace

import pytest
import torch
from inst_pack.inst_core.bank import Batch, draw_bank, draw_fresh, held_out_bank, prepare, rounds
from inst_pack.inst_core.recipes import PAPER, Recipe

VIEWS = torch.arange(5.0).view(5, 1, 1, 1).expand(5, 4, 8, 8)
CPU = torch.device("cpu")


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("strongest", [0.3, 1.0])
def test_a_bank_has_one_time_in_every_stratum_and_every_view_equally_often(strongest):
    bank = draw_bank(VIEWS, Recipe(bank=40, strongest=strongest), seeded())
    assert (bank.time / strongest * 40).long().tolist() == list(range(40))
    assert bank.latent[:, 0, 0, 0].long().bincount().tolist() == [8] * 5
    assert bank.noise.flatten(1).unique(dim=0).shape[0] == 40
    # Views are shuffled: neighbouring levels do not go round the views in turn.
    assert bank.latent[:5, 0, 0, 0].tolist() != bank.latent[5:10, 0, 0, 0].tolist()


@pytest.mark.parametrize("recipe, size", [
    (Recipe(steps=3, batch=4, bank=64), 12), (Recipe(bank=64, batch=100), 100), (Recipe(bank=64), 64)])
def test_a_bank_is_no_larger_than_the_run_and_no_smaller_than_a_batch(recipe, size):
    assert len(draw_bank(VIEWS, recipe, seeded())) == size


@pytest.mark.parametrize("count", [1, 2, 3, 4, 8, 64])
def test_batches_have_the_size_asked_for_and_go_round_the_whole_bank(count):
    bank = replace_time(draw_bank(VIEWS, Recipe(bank=64, batch=count), seeded()))
    taken = list(itertools.islice(rounds(bank, count, seeded()), -(-64 // count)))
    assert all(len(batch) == count for batch in taken)
    assert {float(t) for batch in taken for t in batch.time} == {float(t) for t in range(64)}


def replace_time(bank: Batch) -> Batch:
    """Numbers the samples."""
    return replace(bank, time=torch.arange(len(bank)).float())


def test_a_batch_is_spread_over_all_levels_and_batches_differ():
    bank = draw_bank(VIEWS, Recipe(bank=64), seeded())
    batches = list(itertools.islice(rounds(bank, 8, seeded()), 10))
    assert all((batch.time * 8).long().tolist() == list(range(8)) for batch in batches)
    assert len({tuple(batch.time.tolist()) for batch in batches}) == 10
    steps = torch.stack([batch.time for batch in batches[:8]]).diff(dim=0)
    assert (steps < 0).any() and (steps > 0).any()  # shuffled within the strata


def test_only_levels_of_the_stage_are_learned_and_judged():
    views, recipe = torch.zeros(1, 1, 2, 2), Recipe(strongest=0.8, batch=4, bank=32)
    fresh = next(draw_fresh(views, replace(recipe, batch=64), seeded(), weakest=0.4))
    for bank in (draw_bank(views, recipe, seeded(), weakest=0.4), fresh, held_out_bank(views, 0.8, weakest=0.4)):
        assert 0.4 <= bank.time.min() < 0.5 and 0.7 < bank.time.max() <= 0.8


def test_the_released_samples_are_fresh_and_at_discrete_times():
    batches = list(itertools.islice(draw_fresh(VIEWS, replace(PAPER, batch=50), seeded()), 20))
    times = torch.cat([b.time for b in batches]) * 999
    torch.testing.assert_close(times, times.round(), atol=1e-3, rtol=0)
    assert abs(times.mean() - 499.5) < 30 and times.min() < 20 and times.max() > 980
    assert not torch.equal(batches[0].noise, batches[1].noise)
    assert set(batches[0].latent[:, 0, 0, 0].tolist()) == {0.0, 1.0, 2.0, 3.0, 4.0}


class Summing:
    """Prepares the sum of a sample's noise, and its time."""

    def __init__(self):
        self.sizes = []

    def prepare(self, batch):
        self.sizes.append(len(batch))
        return batch.noise.sum((1, 2, 3)), batch.time[:, None]


def test_what_is_prepared_travels_with_its_samples():
    denoiser, done = Summing(), []
    bank = prepare(denoiser, draw_bank(VIEWS, Recipe(bank=10), seeded()), 4, CPU, done.append)
    assert denoiser.sizes == [4, 4, 2] and done == [4, 8, 10] and bank.prepared_bytes == 10 * 4 * 2
    for batch in [*itertools.islice(rounds(bank, 3, seeded()), 9), *bank.split(4)]:
        torch.testing.assert_close(batch.prepared[0], batch.noise.sum((1, 2, 3)))
        assert torch.equal(batch.prepared[1][:, 0], batch.time)


def test_the_held_out_bank_is_its_own():
    """Its samples never mix with others, whatever their size."""
    wide = held_out_bank(torch.zeros(1, 4, 8, 12))
    assert wide.latent.shape == wide.noise.shape == (8, 4, 8, 12)
    assert prepare(Summing(), wide, 1, CPU, lambda done: None).prepared[0].shape == (8,)


def test_where_nothing_is_prepared_nothing_is_said():
    class Plain:
        def prepare(self, batch):
            return ()

    bank = held_out_bank(VIEWS)
    assert prepare(Plain(), bank, 4, CPU, lambda done: 1 / 0) is bank


@pytest.mark.parametrize("strongest", [0.3, 1.0])
def test_the_held_out_bank_is_the_same_for_ever_and_at_the_levels_that_are_learned(strongest):
    assert torch.equal(held_out_bank(VIEWS).noise, held_out_bank(VIEWS + 1).noise)
    assert held_out_bank(VIEWS, strongest).time.tolist() == pytest.approx([(i + 0.5) / 8 * strongest for i in range(8)])


def test_held_out_losses_can_be_compared_between_versions():
    assert held_out_bank(torch.zeros(1, 4, 1, 1)).noise[0].flatten().tolist() == pytest.approx(
        [0.230723, -1.814697, -0.691086, -0.892924], abs=1e-5)
