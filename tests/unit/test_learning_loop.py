"""The learning loop, without a network: a denoiser that is told by the style what to predict."""
import contextlib
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import pytest
import torch
from inst_pack.inst_core import batch_plan, learning
from inst_pack.inst_core.bank import Batch, held_out_bank
from inst_pack.inst_core.batch_plan import BatchPlan, plan_batches
from inst_pack.inst_core.encoders import AttentionEncoder, DirectEncoder, build_encoder
from inst_pack.inst_core.encoders import PictureFeatures as Features
from inst_pack.inst_core.learning import Painting, backward, held_out_loss, learn_style
from inst_pack.inst_core.loss_scale import INITIAL, RECOVERY, LossScale
from inst_pack.inst_core.memory import is_out_of_memory, kept_for_backward
from inst_pack.inst_core.recipes import PAPER, Recipe
from torch.nn import functional as F

WIDTH, SCALE = 768, 0.0144
FAST = Recipe(tokens=2, rate=5e-3)


class Conditioning(NamedTuple):
    context: torch.Tensor
    pooled: torch.Tensor | None


class Text:
    """The mean pseudo-word, in units of the vocabulary's scale."""

    def __init__(self, scale: float):
        self.scale = scale

    def encode(self, vectors):
        return Conditioning(sum(v.mean(0) for v in vectors.values()).view(1, 1, -1) / self.scale, None)

    def recording(self):
        return contextlib.nullcontext()


def spread(sigma: torch.Tensor) -> torch.Tensor:
    return sigma.view(-1, 1, 1, 1)


class Eps:
    """The host's parametrisations in their simplest form: x, and D from the network's output."""

    def noise_scaling(self, sigma, noise, latent):
        return latent + spread(sigma) * noise

    def calculate_denoised(self, sigma, output, x):
        return x - spread(sigma) * output


class V(Eps):
    def calculate_denoised(self, sigma, output, x):
        s = spread(sigma)
        return x / (s**2 + 1) - output * s / (s**2 + 1).sqrt()


class Flow(Eps):
    def noise_scaling(self, sigma, noise, latent):
        return spread(sigma) * noise + (1 - spread(sigma)) * latent


class Denoiser:
    """Its network answers with what the style's first numbers say, one for each channel, where ``target`` (sigma) ->
    (B,) is the right answer.  ``most`` samples fit at once."""

    recompute = False

    def __init__(self, most: int = 99, sampling=None, target=None, prepared: int = 0):
        self.most, self.prepared = most, prepared
        self.model_sampling, self.target = sampling or Eps(), target

    def level(self, time):
        return 0.02 + 0.96 * time

    def noised(self, latent, noise, sigma):
        self.truth = latent
        return self.model_sampling.noise_scaling(sigma, noise, latent)

    def prepare(self, batch):
        return (torch.ones(len(batch), self.prepared),) if self.prepared else ()

    def denoised(self, x, sigma, conditioning, prepared=()):
        if torch.is_grad_enabled() and len(x) > self.most and not self.recompute:
            raise torch.OutOfMemoryError("no more")
        said = conditioning.context[0, 0, :4].view(1, 4, 1, 1)
        if self.target is None:  # the style says what D is
            return said * self.model_sampling.calculate_denoised(sigma, torch.zeros(1), torch.ones(1)).sign() + 0 * x
        wrong = said - spread(self.target(sigma))
        slope = self.model_sampling.calculate_denoised(sigma, torch.ones(1, 1, 1, 1), torch.zeros(1, 1, 1, 1))
        return self.truth + slope * wrong


class Session:
    device = torch.device("cpu")

    def __init__(self, denoiser: Denoiser | None = None, free: float = 2**40, scale: float = SCALE):
        self.denoiser, self.text, self.free = denoiser or Denoiser(), Text(scale), free

    def free_bytes(self):
        return self.free

    def is_out_of_memory(self, error):
        return is_out_of_memory(error)


def painting(features: Features | None = None) -> Painting:
    generator = torch.Generator().manual_seed(0)
    colours = torch.tensor([1.0, -1.0, 0.5, 0.0]).view(1, 4, 1, 1)
    return Painting(colours + 0.1 * torch.randn(6, 4, 8, 8, generator=generator),
                    colours + 0.1 * torch.randn(1, 4, 8, 8, generator=generator), features)


def encoder(tokens: int = 2, scale: float = SCALE) -> DirectEncoder:
    return DirectEncoder({"clip_l": torch.full((1, WIDTH), scale)}, tokens)


def paper():
    return build_encoder("paper", {"clip_l": torch.zeros(1, WIDTH)}, 1, torch.Generator().manual_seed(0))


def features() -> Features:
    generator = torch.Generator().manual_seed(1)
    return Features(F.normalize(torch.ones(1, WIDTH)), torch.randn(1, 9, 16, generator=generator))


def learn(recipe: Recipe = FAST, module=None, session=None, report=lambda *_: None, **more):
    return learn_style(session or Session(), module or encoder(), painting(features()), recipe, report, **more)


# ---- what is learned ----

@pytest.mark.parametrize("bank", [64, 0])
def test_what_does_not_count_is_neither_learned_nor_judged_by(bank):
    """A painting with something foreign in a quarter of it is learned like the painting without."""
    whole = painting()
    stained = Painting(whole.views.clone(), whole.whole.clone(), None, torch.ones(6, 1, 8, 8), torch.ones(1, 1, 8, 8))
    for latent, weights in ((stained.views, stained.view_weights), (stained.whole, stained.whole_weights)):
        latent[..., :4, :4], weights[..., :4, :4] = 7.0, 0.0
    recipe = replace(FAST, steps=150, rate=5e-2, batch=8, bank=bank, patience=None)
    found = learn_style(Session(), encoder(), stained, recipe)
    clean = learn_style(Session(), encoder(), whole, recipe)
    spoiled = learn_style(Session(), encoder(), Painting(stained.views, stained.whole), recipe)
    says = {n: r.vectors["clip_l"].mean(0)[:4] / SCALE for n, r in
            (("found", found), ("clean", clean), ("spoiled", spoiled))}
    assert (says["found"] - says["clean"]).abs().max() < 0.1 < 1 < (says["spoiled"] - says["clean"]).abs().min()
    assert found.kept == pytest.approx(clean.kept, rel=0.2) and found.kept < spoiled.kept / 5


@pytest.mark.parametrize("strongest", [1.0, 0.4])
@pytest.mark.parametrize("sampling", [Eps, V, Flow])
def test_the_style_minimises_the_models_own_training_loss(sampling, strongest):
    """The best answer differs from level to level, so that the weight of a level shows."""
    def target(sigma):
        return 4 * sigma**2

    session = Session(Denoiser(sampling=sampling(), target=target))
    recipe = replace(FAST, steps=150, rate=5e-2, batch=32, strongest=strongest, patience=None)
    learned = learn(recipe, session=session)
    # Models are trained on the plain squared error of their output, at times that are uniform.
    times = (torch.arange(10000) + 0.5) / 10000 * strongest
    best = target(session.denoiser.level(times)).mean()
    found = learned.vectors["clip_l"].mean(0)[:4] / SCALE
    torch.testing.assert_close(found, best.expand(4), rtol=0.02, atol=0.02)


def small_attention(scale: float) -> AttentionEncoder:
    start = {"clip_l": torch.full((1, WIDTH), scale)}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return AttentionEncoder(start, 2, torch.Generator().manual_seed(0), patch_width=16, width=64)


@pytest.mark.parametrize("make", [encoder, small_attention], ids=["direct", "attention"])
def test_a_default_means_the_same_for_small_and_large_vocabularies(make):
    gains = []
    for scale in (SCALE, 1.0):
        learned = learn(replace(FAST, steps=20, rate=1e-3, patience=None), make(scale=scale), Session(scale=scale))
        gains.append(1 - learned.kept / learned.checks[0].loss)
    assert gains[0] == pytest.approx(gains[1], rel=1e-3) and 0.02 < gains[0] < 0.9


def test_the_rate_falls_to_zero_over_the_run():
    def moves(decay: bool) -> list[float]:
        module, seen = encoder(), []
        learn(replace(FAST, steps=10, decay=decay, patience=None, keep_best=False), module,
              report=lambda step: seen.append(module.vectors["clip_l"].detach().clone()))
        return [float((b - a).abs().max()) for a, b in zip(seen, seen[1:], strict=False)]

    assert moves(True)[-1] < 0.25 * moves(True)[0] and moves(False)[-1] > 0.5 * moves(False)[0]


# ---- when it ends, and what is kept ----

def test_it_learns_stops_when_the_loss_is_flat_and_keeps_the_best():
    module, session = encoder(), Session()
    learned = learn(replace(FAST, steps=400, decay=False), module, session)
    losses = [c.loss for c in learned.checks]
    assert learned.kept == min(losses) < 0.2 * losses[0] and learned.ended == "converged"
    assert f"; converged after {len(learned.losses)} of 400 steps" in learned.verdict
    assert len(learned.losses) * 4 == learned.checks[-1].samples < 1600
    # What is kept belongs to the best check, not to the last step.
    assert torch.equal(learned.vectors["clip_l"], module.vectors["clip_l"])
    assert torch.equal(learned.weights["vectors.clip_l"], module.vectors["clip_l"])
    again = held_out_loss(session, module, None, held_out_bank(painting().whole), BatchPlan(8))
    assert again == pytest.approx(learned.kept, rel=1e-6)


def perfect() -> DirectEncoder:
    module = encoder()
    for value in module.vectors.values():
        value.data[:, :4] = torch.tensor([1.0, -1.0, 0.5, 0.0]) * SCALE
    return module


@pytest.mark.parametrize("steps, rate, start, advice", [
    (20, 1.0, perfect, r"nothing was learned: after 20 steps .* Lower learning_rate \(now 1\)"),
    (10, 1e-12, encoder, r"nothing was learned: .* Use more steps \(now 10\) or a higher"),
    (3, 1e-12, encoder, r"12 samples are too few to learn from: use more steps \(now 3\)\."),
])
def test_a_run_that_gains_nothing_is_no_success(steps, rate, start, advice):
    saved = []
    with pytest.raises(ValueError, match=advice):
        learn(replace(FAST, steps=steps, rate=rate, decay=False), start(), rescue=saved.append)
    assert not saved


def test_the_released_recipe_runs_to_the_last_step_and_keeps_it():
    recipe = replace(PAPER, steps=45, rate=3e-5)
    learned = learn(recipe, paper())
    assert learned.ended == "finished" and learned.kept == learned.checks[-1].loss and len(learned.losses) == 45
    assert "finished after 45 of 45 steps" in learned.verdict


def test_the_time_limit(monkeypatch):
    clock = iter(range(1000))
    monkeypatch.setattr(learning.time, "monotonic", lambda: float(next(clock)))
    learned = learn(replace(FAST, steps=50, seconds=9))
    assert learned.ended == "time limit" and 1 <= len(learned.losses) < 9
    assert "stopped by the time limit after" in learned.verdict


def test_held_out_losses_get_rarer_in_a_long_run():
    learned = learn(replace(FAST, steps=300, rate=1e-5, patience=None))
    steps = [check.samples // 4 for check in learned.checks]
    assert steps[:12] == list(range(0, 120, 10)) and steps[-1] == 300
    assert all(10 <= b - a <= max(10, b / 10) for a, b in zip(steps[11:], steps[12:-1], strict=False))


def test_the_held_out_loss_looks_at_the_levels_that_are_learned():
    seen = []

    class Watched(Denoiser):
        def level(self, time):
            seen.append(float(time.max()))
            return super().level(time)

    learn(replace(FAST, steps=9, strongest=0.3), session=Session(Watched()))
    assert 0.25 < max(seen) <= 0.3


class Stop(BaseException):
    """Like the host's interrupt, not an Exception."""


def stopping(at: int, accident: type[BaseException] = Stop):
    """A report that stops the run after so many steps."""
    def report(step):
        if step.done == at:
            raise accident("half-way")

    return report


@pytest.mark.parametrize("accident", [Stop, RuntimeError])
def test_a_run_that_is_stopped_hands_over_the_best_so_far(accident):
    kept, module, session = [], encoder(), Session()
    with pytest.raises(accident, match="half-way"):
        learn(replace(FAST, steps=100), module, session, stopping(43, accident), rescue=kept.append)
    learned, = kept
    assert learned.kept == min(check.loss for check in learned.checks) and len(learned.losses) == 43
    module.load_state_dict(learned.weights)
    again = held_out_loss(session, module, None, held_out_bank(painting().whole), BatchPlan(8))
    assert again == pytest.approx(learned.kept, rel=1e-6)
    assert learned.ended == "stopped" and "stopped early after 43 of 100 steps" in learned.verdict


def test_an_interrupt_goes_on_its_way_though_nothing_could_be_saved():
    def rescue(learned):
        raise OSError("no space left on device")

    with pytest.raises(Stop):
        learn(report=stopping(12), rescue=rescue)


def test_what_goes_on_before_the_first_step_is_said_and_can_be_stopped():
    said = []
    learn(replace(FAST, steps=9), session=Session(Denoiser(prepared=3)), tell=said.append)
    assert said[0] == "finding out how much fits into memory" and "measuring how well" in said[-1]
    assert "computing once what the style does not change: sample 36 of 36" in said  # no more than the run can meet

    def stop(text):
        raise Stop

    with pytest.raises(Stop):
        learn(tell=stop)


def test_the_report_counts_steps_and_gains_and_never_the_batch_loss():
    seen = []
    learned = learn(replace(FAST, steps=30), report=seen.append)
    assert [step.done for step in seen] == list(range(1, 31)) and seen[0].denoised.shape == (4, 4, 8, 8)
    assert seen[0].gain == 0 < seen[-1].gain == pytest.approx(1 - learned.kept / learned.checks[0].loss)
    assert seen[-1].seconds_left == 0 <= seen[3].seconds_left


# ---- memory ----

@pytest.mark.parametrize("most, used", [(4, BatchPlan(4)), (3, BatchPlan(2)), (1, BatchPlan(1)),
                                        (0, BatchPlan(1, recompute=True))])
def test_less_memory_gives_the_same_style_and_says_so(most, used):
    recipe = replace(FAST, steps=12)
    plenty, short = learn(recipe), learn(recipe, session=Session(Denoiser(most)))
    torch.testing.assert_close(short.vectors["clip_l"], plenty.vectors["clip_l"], rtol=1e-4, atol=1e-6)
    words = f"memory was short: {used.samples} at once" + (", with recomputation" if used.recompute else "")
    assert short.verdict.endswith(words) == (used != BatchPlan(4)) and "short" not in plenty.verdict


class Full(Denoiser):
    """Has no room for ``most`` + 1 samples, and says so in words of its own."""

    def denoised(self, x, *arguments):
        if len(x) > self.most:
            raise RuntimeError("the stack is full")
        return super().denoised(x, *arguments)


def test_the_session_tells_what_out_of_memory_looks_like(monkeypatch):
    with pytest.raises(RuntimeError, match="the stack is full"):
        learn(session=Session(Full(1)))
    monkeypatch.setattr(Session, "is_out_of_memory", lambda self, error: "the stack is full" in str(error))
    assert "1 at once" in learn(replace(FAST, steps=2), session=Session(Full(1))).verdict
    with pytest.raises(RuntimeError, match="the stack is full"):
        learn(session=Session(Full(0)))


@pytest.mark.parametrize("message", [
    "CUDA error: out of memory", "CUDA out of memory. Tried to allocate 2 GiB", "HIP out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate(handle)", "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
    "MPS backend out of memory", "hipErrorOutOfMemory", "miopenStatusAllocFailed",
    "std::bad_alloc", "UR_RESULT_ERROR_OUT_OF_DEVICE_MEMORY",
    "DefaultCPUAllocator: can't allocate memory", "DefaultCPUAllocator: not enough memory"])
def test_every_way_to_say_that_memory_ran_out_is_known(message):
    assert is_out_of_memory(RuntimeError(message)) and not is_out_of_memory(RuntimeError("shapes do not match"))


def test_an_error_code_of_the_driver_says_that_memory_ran_out():
    error = torch.AcceleratorError("CUDA error: see the log")
    error.error_code = 2
    assert is_out_of_memory(error)
    error.error_code = 700
    assert not is_out_of_memory(error)


def test_a_second_try_draws_the_same_dropout():
    def gradient(most: int) -> torch.Tensor:
        module, session = paper(), Session(Denoiser(most))
        batch = Batch(painting().views[:2], torch.ones(2, 4, 8, 8), torch.tensor([0.2, 0.8]))
        within = learning.WithinMemory(BatchPlan(2))
        within(partial(backward, session, module, features(), batch, 3, 1.0))
        return module.attention.net[1].weight.grad

    torch.testing.assert_close(gradient(1), gradient(2))


def test_a_try_that_failed_leaves_no_gradient_behind():
    """Memory runs out in the text encoder's half, when some gradients are there already."""
    module, session, batch = encoder(), Session(), held_out_bank(painting().whole)
    backward(session, module, None, batch, 0, 1.0, BatchPlan(8))
    once = module.vectors["clip_l"].grad.clone()
    backward(session, module, None, batch, 0, 1.0, BatchPlan(8))
    assert torch.equal(module.vectors["clip_l"].grad, once)


def plan(session, samples: int = 4, bank: int = 0):
    held_out = held_out_bank(painting().whole)
    drawn = Batch(torch.zeros(bank, 4, 8, 8), torch.zeros(bank, 4, 8, 8), torch.full((bank,), 0.5)) if bank else None
    return plan_batches(session, encoder(), None, drawn, held_out, samples)[0]


def test_four_fifths_of_the_free_memory_are_for_activations():
    session = Session()
    one = next(held_out_bank(painting().whole).split(1))
    session.free = 4.01 * batch_plan.kept_of_one_sample(session, encoder(), None, one) / 0.8
    assert plan(session, 99) == BatchPlan(4)
    session.free *= 0.99
    assert plan(session, 99) == BatchPlan(3)


def least_memory() -> int:
    """In which one sample fits."""
    session = Session(free=0)
    while plan(session, 99) == BatchPlan(1, recompute=True):
        session.free += 10
    return session.free


def test_prepared_samples_take_their_part_of_the_room():
    """On a CPU they are always in the memory that is measured."""
    prepared, bank = 1000, 24
    needed = prepared * 4 * (bank + 8) / batch_plan.SHARE_OF_FREE_MEMORY
    session = Session(Denoiser(prepared=prepared), 3 * least_memory() + needed)
    assert plan(session, 99, bank) == BatchPlan(3)
    session.free -= needed / 2
    assert plan(session, 99, bank).samples < 3


@pytest.mark.parametrize("share, place", [(0.2, "meta"), (0.3, "cpu")])
def test_a_bank_that_is_large_for_the_device_waits_in_main_memory(share, place):
    session = Session(Denoiser(prepared=1000))
    session.device = torch.device("meta")  # stands for a GPU; nothing is computed on it
    bank = 1000 * 4 * 8
    session.free = bank / share / batch_plan.SHARE_OF_FREE_MEMORY
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batch_plan, "kept_of_one_sample", lambda *_: 1)
        assert plan_batches(session, encoder(), None, None, held_out_bank(painting().whole), 4)[1].type == place


def test_what_backward_keeps_is_counted_in_bytes():
    assert kept_for_backward(lambda: (torch.ones(1, 4, 8, 8, requires_grad=True) * 2).square()) == 4 * 8 * 8 * 4


def test_a_frozen_weight_is_not_kept_but_what_is_computed_from_it_is():
    weight = torch.nn.Parameter(torch.ones(50, 50), requires_grad=False)
    x = torch.ones(1, 50, requires_grad=True)
    assert kept_for_backward(lambda: x @ weight) == kept_for_backward(lambda: F.linear(x, weight)) == 0
    assert kept_for_backward(lambda: x @ (weight * 2)) == 50 * 50 * 4


# ---- half precision ----

class Overflowing(Denoiser):
    """Its gradient overflows float16 where the loss scale is above ``most_scale``; its loss is always finite."""

    def __init__(self, most_scale: float):
        super().__init__()
        self.most_scale, self.scales = most_scale, []

    def denoised(self, x, sigma, conditioning, prepared=()):
        out = super().denoised(x, sigma, conditioning, prepared)
        if not out.requires_grad:
            return out

        def overflow(gradient):
            # d(mean over a sample of (D - z)^2 / sigma^2) times the scale: this is the scale that was used.
            error = 2 * (out.detach() - self.truth) / spread(sigma)**2 / out[0].numel()
            scale = float((gradient / error).nanmedian())
            self.scales.append(scale)
            return gradient * float("inf") if scale > self.most_scale * 1.01 else gradient

        out.register_hook(overflow)
        return out


def test_the_loss_scale_backs_off_until_the_gradient_is_finite():
    session = Session(Overflowing(2.0**10))
    learned, plain = learn(replace(FAST, steps=5), session=session), learn(replace(FAST, steps=5))
    assert [round(s) for s in session.denoiser.scales[:7]] == [2**k for k in (16, 15, 14, 13, 12, 11, 10)]
    assert all(round(s) == 2**10 for s in session.denoiser.scales[7:]) and len(learned.losses) == 5
    assert torch.equal(learned.vectors["clip_l"], plain.vectors["clip_l"])  # powers of two are exact


def test_the_loss_scale_recovers_after_a_while_and_rises_no_higher():
    scale, seen = LossScale(), []
    scale.back_off()
    scale.back_off()
    for _ in range(3 * RECOVERY):
        scale.note_good_step()
        seen.append(scale.value)
    assert seen[RECOVERY - 2] == INITIAL / 4 and seen[RECOVERY - 1] == INITIAL / 2
    assert seen[2 * RECOVERY - 1] == seen[-1] == INITIAL
    scale.back_off()
    for _ in range(RECOVERY - 1):
        scale.note_good_step()
    scale.back_off()
    for _ in range(RECOVERY - 1):
        scale.note_good_step()
    assert scale.value == INITIAL / 4  # counted from the last overflow


def test_a_gradient_that_is_never_finite_does_not_reach_the_style_and_is_not_blamed_on_the_rate():
    module = encoder()
    before = module.vectors["clip_l"].detach().clone()
    with pytest.raises(ValueError, match=r"At step 1 the loss was .* not finite. .*--bf16-unet") as error:
        learn(replace(FAST, steps=3), module, Session(Overflowing(0.0)))
    assert torch.equal(module.vectors["clip_l"], before) and "learning_rate" not in str(error.value)


def test_a_style_that_left_the_words_behind_is_blamed_on_the_rate():
    class Bursting(Denoiser):
        def denoised(self, x, sigma, conditioning, prepared=()):
            out = super().denoised(x, sigma, conditioning, prepared)
            return out * float("inf") if conditioning.context.abs().max() > 20 else out

    with pytest.raises(ValueError, match=r"times as long as at first: lower learning_rate \(now 5\)"):
        learn(replace(FAST, rate=5.0), session=Session(Bursting()))


def test_the_same_seed_gives_the_same_bits_and_another_seed_does_not():
    first, second, other = (learn(replace(FAST, steps=7, seed=s)).vectors["clip_l"] for s in (1, 1, 2))
    assert torch.equal(first, second) and not torch.equal(first, other)
