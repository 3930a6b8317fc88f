"""The learning loop, without a network: a denoiser that is told by the style what to predict."""
import contextlib
from typing import NamedTuple

import pytest
import torch
from inst_pack.inst_core import learning
from inst_pack.inst_core.encoders import DirectEncoder, build_encoder
from inst_pack.inst_core.encoders import PictureFeatures as Features
from inst_pack.inst_core.learning import Painting, Room, Settings, backward, learn_style, room_for
from inst_pack.inst_core.memory import kept_for_backward
from inst_pack.inst_core.objective import Batch, Objective
from torch.nn import functional as F

WIDTH = 768


class Conditioning(NamedTuple):
    context: torch.Tensor
    pooled: torch.Tensor | None


class Text:
    def encode(self, vectors):
        return Conditioning(sum(v.mean(0) for v in vectors.values()).view(1, 1, -1), None)

    def recording(self):
        return contextlib.nullcontext()


class Denoiser:
    """D is what the style's first numbers say, one for each channel. ``most`` samples fit at once."""

    recompute = False

    def __init__(self, most: int = 99):
        self.most, self.calls, self.forgot = most, [], 0

    def forget(self):
        self.forgot += 1

    def level(self, time):
        return 0.1 + time

    def log_snr(self, time):
        return -2 * self.level(time).log()

    def noised(self, latent, noise, sigma):
        return latent + sigma.view(-1, 1, 1, 1) * noise

    def denoised(self, x, sigma, conditioning, entries=None):
        self.calls.append((len(x), self.recompute))
        if torch.is_grad_enabled() and len(x) > self.most and not self.recompute:
            raise torch.OutOfMemoryError("no more")
        return conditioning.context[0, 0, :4].view(1, 4, 1, 1) * 10 + 0 * x

    def predicted_noise(self, x, sigma, denoised):
        return (x - denoised) / sigma.view(-1, 1, 1, 1)


class Session:
    device = torch.device("cpu")

    def __init__(self, most: int = 99, free: int = 2**40):
        self.denoiser, self.text, self.free = Denoiser(most), Text(), free

    def free_bytes(self):
        return self.free


def painting(features: Features | None = None) -> Painting:
    generator = torch.Generator().manual_seed(0)
    colours = torch.tensor([1.0, -1.0, 0.5, 0.0]).view(1, 4, 1, 1)
    return Painting(colours + 0.1 * torch.randn(6, 4, 8, 8, generator=generator),
                    colours + 0.1 * torch.randn(1, 4, 8, 8, generator=generator), features)


def encoder(tokens: int = 2) -> DirectEncoder:
    return DirectEncoder({"clip_l": torch.full((1, WIDTH), 0.01)}, tokens)


def paper():
    return build_encoder("paper", {"clip_l": torch.zeros(1, WIDTH)}, 1, torch.Generator().manual_seed(0))


def features() -> Features:
    return Features(torch.nn.functional.normalize(torch.ones(1, WIDTH)), torch.zeros(1, 257, 1024))


def learn(settings: Settings, module=None, session=None, report=lambda *_: None):
    module = module or encoder()
    return learn_style(session or Session(), module, painting(features()), settings, report)


def test_it_learns_stops_when_the_loss_is_flat_and_keeps_the_best():
    module, session = encoder(), Session()
    learned = learn(Settings(steps=400), module, session)
    losses = [c.loss for c in learned.checks]
    assert learned.kept == min(losses) < 0.05 * losses[0]
    assert learned.verdict.startswith(f"converged after {len(learned.losses)} of 400 steps")
    assert len(learned.losses) * 4 == learned.checks[-1].samples < 1600
    # What is kept belongs to the best check, not to the last step.
    assert torch.equal(learned.vectors["clip_l"], module.vectors["clip_l"])
    again = learning.held_out_loss(session, module, painting(), Room(8))
    assert again == pytest.approx(learned.kept, rel=1e-6) and session.denoiser.forgot == 1


def test_a_loss_that_only_rises_gives_back_the_start(monkeypatch):
    monkeypatch.setattr(learning, "CHECK_SAMPLES", 4)
    module = encoder()
    for value in module.vectors.values():  # already perfect
        value.data[:, :4] = torch.tensor([0.1, -0.1, 0.05, 0.0])
    before = {k: v.clone() for k, v in module.state_dict().items()}
    learned = learn(Settings(steps=20, learning_rate=1.0), module)
    assert learned.verdict.startswith("converged after 3 of 20 steps")
    assert all(torch.equal(v, before[k]) for k, v in module.state_dict().items())


def test_faithful_encoders_run_to_the_last_step_and_keep_it():
    learned = learn(Settings(steps=30, learning_rate=1e-12, batch_size=1), paper())
    assert learned.verdict.startswith("finished after 30 of 30 steps") and learned.kept == learned.checks[-1].loss


def test_the_time_limit(monkeypatch):
    clock = iter(range(1000))
    monkeypatch.setattr(learning.time, "monotonic", lambda: float(next(clock)))
    learned = learn(Settings(steps=50, seconds=5))
    assert learned.verdict.startswith("stopped by the time limit after") and 1 <= len(learned.losses) < 6


def test_the_report_counts_samples_and_may_stop_the_run():
    seen = []

    def report(step, samples, loss, denoised):
        seen.append((step, samples, tuple(denoised.shape)))
        if step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        learn(Settings(steps=9), report=report)
    assert seen == [(1, 4, (4, 4, 8, 8)), (2, 8, (4, 4, 8, 8)), (3, 12, (4, 4, 8, 8))]


@pytest.mark.parametrize("most, used", [(4, Room(4)), (3, Room(2)), (1, Room(1)), (0, Room(1, recompute=True))])
def test_less_memory_gives_the_same_style_and_says_so(most, used):
    settings = Settings(steps=12)
    plenty, short = learn(settings), learn(settings, session=Session(most))
    torch.testing.assert_close(short.vectors["clip_l"], plenty.vectors["clip_l"], rtol=1e-4, atol=1e-6)
    words = f"memory was short: {used.samples} at once" + (", with recomputation" if used.recompute else "")
    assert short.verdict.endswith(words) == (used != Room(4)) and "short" not in plenty.verdict


def test_memory_that_is_short_in_every_way_is_an_error():
    session = Session()
    session.denoiser.denoised = lambda *_: (_ for _ in ()).throw(torch.OutOfMemoryError("no more"))
    with pytest.raises(torch.OutOfMemoryError):
        learn(Settings(steps=1), session=session)


def test_a_second_try_draws_the_same_dropout():
    def gradient(most: int) -> torch.Tensor:
        module, session = paper(), Session(most)
        batch = Batch(painting().views[:2], torch.ones(2, 4, 8, 8), torch.tensor([0.2, 0.8]))
        within = learning.WithinMemory(Room(2))
        generator = torch.Generator().manual_seed(3)
        within(lambda room: backward(session, module, features(), batch, generator, room))
        return module.attention.net[1].weight.grad

    torch.testing.assert_close(gradient(1), gradient(2))


@pytest.mark.parametrize("free, expected", [(2**40, Room(4)), (1, Room(1, recompute=True))])
def test_the_room_follows_free_memory(free, expected):
    assert room_for(Session(free=free), encoder(), painting(), 4) == expected


def test_twice_the_memory_makes_room_for_twice_the_samples():
    session = Session(free=0)
    while room_for(session, encoder(), painting(), 99) == Room(1, recompute=True):
        session.free += 10
    for times in (2, 3, 10):
        assert room_for(Session(free=times * session.free), encoder(), painting(), 99) == Room(times)


def test_what_backward_keeps_is_counted_in_bytes():
    assert kept_for_backward(lambda: (torch.ones(1, 4, 8, 8, requires_grad=True) * 2).square()) == 4 * 8 * 8 * 4


def test_a_frozen_weight_is_not_kept_but_what_is_computed_from_it_is():
    weight = torch.nn.Parameter(torch.ones(50, 50), requires_grad=False)
    x = torch.ones(1, 50, requires_grad=True)
    assert kept_for_backward(lambda: x @ weight) == kept_for_backward(lambda: F.linear(x, weight)) == 0
    assert kept_for_backward(lambda: x @ (weight * 2)) == 50 * 50 * 4


def test_a_gradient_that_is_not_finite_never_reaches_the_style():
    class Broken(Denoiser):
        def denoised(self, *arguments):
            # sqrt has an infinite slope at 0, and 0 times infinity is not a number; the loss itself is finite.
            return super().denoised(*arguments) + (arguments[2].context.sum() * 0).sqrt()

    module, session = encoder(), Session()
    session.denoiser = Broken()
    before = module.vectors["clip_l"].detach().clone()
    with pytest.raises(ValueError, match=r"At step 1 the loss was .* Lower learning_rate \(now 0.005\)"):
        learn(Settings(steps=3), module, session)
    assert torch.equal(module.vectors["clip_l"], before)


def test_the_same_seed_gives_the_same_bits_and_another_seed_does_not():
    first, second, other = (learn(Settings(steps=7, seed=s)).vectors["clip_l"] for s in (1, 1, 2))
    assert torch.equal(first, second) and not torch.equal(first, other)


def test_an_objective_weight_reaches_the_gradient():
    def first_loss(weight: str) -> float:
        return learn(Settings(steps=1, objective=Objective(weight=weight))).losses[0]

    assert first_loss("min_snr") < 0.95 * first_loss("unweighted")


@pytest.mark.parametrize("wrong", [{"steps": 0}, {"batch_size": 0}, {"learning_rate": -1.0}])
def test_settings_outside_their_range_are_named(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Settings(**wrong)
