"""Inversion and synthesis on the host's samplers: all routes give one picture, and everything composes."""
import comfy.samplers
import pytest
import torch
from comfy_api.internal import lock_class
from comfy_extras.nodes_custom_sampler import BasicScheduler, CFGGuider, SamplerCustomAdvanced
from graph import close, content, stock
from inst_pack.inst_core import host
from inst_pack.inst_core.host.sampling import level_of
from inst_pack.nodes.inversion import InSTCosineScheduler, InSTSample, InSTStochasticInvert

import nodes as host_nodes

STRENGTH, STEPS, CFG = 0.7, 4, 3.0


def as_the_host_runs(node):
    """A class of which nothing can be changed while it runs."""
    return lock_class(node.PREPARE_CLASS_CLONE(None))


Sample, Invert = as_the_host_runs(InSTSample), as_the_host_runs(InSTStochasticInvert)


@pytest.fixture()
def prompts(small):
    return [stock(small[1], text) for text in ("a house by the sea", "")]


def sample(model, prompts, latent=None, steps=STEPS, cfg=CFG, sampler="euler", scheduler="normal", strength=STRENGTH,
           seed=0, timing="matched", **more):
    return Sample.execute(model, *prompts, latent or content(), steps, cfg, sampler, scheduler, strength, seed,
                              timing, **more).result[0]["samples"]


def invert(model, prompts, latent=None, strength=STRENGTH, seed=0, timing="matched", **more):
    return Invert.execute(model, prompts[0], latent or content(), strength, seed, timing, **more).result


def test_three_routes_one_picture(small, prompts):
    """InST Sample, NOISE into SamplerCustomAdvanced, and the noised LATENT into KSampler (Advanced)."""
    model, total, start = small[0], 8, 3
    levels = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "karras", total)[start:]
    noise, noised = invert(model, prompts, sigmas=levels)
    own = sample(model, prompts, sigmas=levels)
    guider = CFGGuider.execute(model, *prompts, CFG).result[0]
    custom = SamplerCustomAdvanced.execute(noise, guider, comfy.samplers.sampler_object("euler"), levels, content())
    close(custom.result[0]["samples"], own, 0)
    advanced = host_nodes.KSamplerAdvanced().sample(model, "disable", 0, total, CFG, "euler", "karras", *prompts,
                                                    noised, start, 10000, "disable")[0]["samples"]
    close(advanced, own)
    assert (sample(model, prompts, seed=1, sigmas=levels) - own).abs().max() > 1e-2


def test_noise_socket_and_built_in_inversion_agree(small, prompts):
    for timing in ("matched", "released"):
        noise, _ = invert(small[0], prompts, timing=timing)
        more = {"steps": 50, "sampler": "ddim"} if timing == "released" else {}
        close(sample(small[0], prompts, timing=timing, noise=noise, **more),
              sample(small[0], prompts, timing=timing, **more), 0)


@pytest.mark.parametrize("sigmas, said", [
    ([9.0, float("nan"), 0.0], "sigmas holds nan"), ([float("inf"), 0.0], "sigmas holds inf"),
    ([-1.0, 0.0], "sigmas holds -1"), ([[9.0, 0.0]], "sigmas has shape"), (9.0, "sigmas has shape"),
])
def test_sigmas_that_are_no_noise_levels(small, prompts, sigmas, said):
    for run in (sample, invert):
        with pytest.raises(ValueError, match=said):
            run(small[0], prompts, sigmas=torch.tensor(sigmas))


def test_latents_and_prompts_that_are_not_finite(small, prompts):
    broken = {"samples": torch.full((1, 4, 8, 8), torch.nan)}
    overflow = [[[prompts[0][0][0] * torch.inf, prompts[0][0][1]]], prompts[1]]
    for run in (sample, invert):
        with pytest.raises(ValueError, match="latent holds NaN .*--fp32-vae"):
            run(small[0], prompts, broken)
        with pytest.raises(ValueError, match="positive holds NaN"):
            run(small[0], overflow)


def test_strength_one_starts_exactly_at_the_inverted_noise(small, prompts):
    """The host scales noise differently at its highest level; the NOISE makes up for that."""
    model = small[0]
    sampling = model.get_model_object("model_sampling")
    noise, noised = invert(model, prompts, strength=1.0)
    start = model.model.process_latent_in(noised["samples"])
    z0 = model.model.process_latent_in(content()["samples"])
    close(sampling.noise_scaling(sampling.sigma_max.cpu(), noise.noise, z0, True), start, 1e-3)
    assert torch.isfinite(sample(model, prompts, strength=1.0)).all()


def test_full_strength_is_the_hosts_own_schedule(small):
    sampling = small[0].get_model_object("model_sampling")
    assert torch.equal(host.sampling.sampling_sigmas(small[0], "karras", 7, 1.0),
                       comfy.samplers.calculate_sigmas(sampling, "karras", 7))


@pytest.mark.parametrize("size", [(8, 8), (5, 9), (12, 7)])
def test_sizes_that_are_no_multiples(small, prompts, size):
    assert sample(small[0], prompts, content(1, *size)).shape == (1, 4, *size)


def test_the_global_generator_is_untouched(small, prompts):
    before = torch.random.get_rng_state()
    sample(small[0], prompts, sampler="ddim")
    sample(small[0], prompts, sampler="euler_ancestral")
    assert torch.equal(before, torch.random.get_rng_state())


def test_cosine_scheduler_levels(small):
    sigmas = InSTCosineScheduler.execute(small[0], 8, 1.0).result[0]
    expected = torch.tensor([14.6, 3.50, 1.88, 1.19, 0.779, 0.485, 0.246, 0.029, 0.0])
    torch.testing.assert_close(sigmas, expected, atol=2e-2, rtol=2e-3)
    part = InSTCosineScheduler.execute(small[0], 4, 0.5).result[0]
    assert float(part[0]) == pytest.approx(float(level_of(small[0], 0.5))) and len(part) == 5


@pytest.mark.parametrize("strength", [-0.1, 1.2, float("nan")])
def test_strength_outside_its_range_is_refused(small, prompts, strength):
    for run in (sample, invert):
        with pytest.raises(ValueError, match=f"strength is {strength}; expected a number from 0 to 1"):
            run(small[0], prompts, strength=strength)


def unasked(model):
    """The MODEL with a network that must not be asked."""
    def fail(apply, call):
        raise AssertionError("the model was asked")

    model = model.clone()
    model.set_model_unet_function_wrapper(fail)
    return model


@pytest.mark.parametrize("timing", ["matched", "released"])
@pytest.mark.parametrize("steps", [1, 4, 50])
def test_strength_zero_returns_the_photograph(small, prompts, timing, steps):
    """As denoise 0 of stock samplers does, masks and indices included, without asking the model."""
    model, latent = unasked(small[0]), {**content(2), "batch_index": [3, 5], "noise_mask": torch.ones(1, 1, 64, 64)}
    out = InSTSample.execute(model, *prompts, latent, steps, 3.0, "euler", "normal", 0.0, 0, timing).result[0]
    assert out.keys() == latent.keys() and torch.equal(out["samples"], latent["samples"])
    noise, noised = invert(model, prompts, latent, strength=0.0, timing=timing)
    assert torch.equal(noised["samples"], latent["samples"]) and noise.sigma == 0
    assert noise.generate_noise(latent).std() == pytest.approx(1, abs=0.2)  # as random as stock samplers would have it
    connected = sample(model, prompts, latent, strength=0.0, timing=timing, noise=invert(small[0], prompts, latent)[0])
    assert torch.equal(connected, latent["samples"])


@pytest.mark.parametrize("sigmas", [torch.zeros(0), torch.zeros(1)], ids=["none", "0"])
def test_levels_with_nothing_to_do_return_the_photograph(small, prompts, sigmas):
    """Basic Scheduler gives none at denoise 0, Split Sigmas a single 0 behind the last step."""
    model = unasked(small[0])
    noise, noised = invert(model, prompts, sigmas=sigmas)
    assert torch.equal(noised["samples"], content()["samples"])
    assert torch.equal(sample(model, prompts, sigmas=sigmas), content()["samples"])
    guider = CFGGuider.execute(model, *prompts, CFG).result[0]
    euler = comfy.samplers.sampler_object("euler")
    if len(sigmas) == 0:
        out = SamplerCustomAdvanced.execute(noise, guider, euler, sigmas, content()).result[0]
        assert torch.equal(out["samples"], content()["samples"])


def test_the_cosine_scheduler_at_denoise_zero_is_empty_as_the_hosts(small):
    own = InSTCosineScheduler.execute(small[0], 8, 0.0).result[0]
    stock = BasicScheduler.execute(small[0], "normal", 8, 0.0).result[0]
    assert own.shape == stock.shape == (0,)
    with pytest.raises(ValueError, match="denoise is 1e-12, whose level"):
        host.sampling.cosine_sigmas(small[0], 8, 1e-12)


@pytest.mark.parametrize("scheduler", comfy.samplers.KSampler.SCHEDULERS)
@pytest.mark.parametrize("steps, strength", [(50, 0.01), (50, 0.04), (800, 0.7), (1000, 0.99), (10000, 0.3)])
def test_levels_or_an_error_come_at_once(small, monkeypatch, scheduler, steps, strength):
    """Counted in what the host computes, not in seconds: no more than a dozen runs of a thousand levels."""
    stock, asked = comfy.samplers.calculate_sigmas, []
    monkeypatch.setattr(comfy.samplers, "calculate_sigmas", lambda s, name, n: asked.append(n) or stock(s, name, n))
    try:
        sigmas = host.sampling.sampling_sigmas(small[0], scheduler, steps, strength)
        assert len(sigmas) == steps + 1 and sigmas[-1] == 0 and (sigmas.diff() < 0).all()
        assert float(sigmas[0]) == pytest.approx(float(level_of(small[0], strength)))
    except ValueError as error:
        assert scheduler in ("simple", "ddim_uniform", "beta") and f"steps is {steps}, but scheduler" in str(error)
    assert sum(asked) < 15 * 1024 and len(asked) <= 25


def test_cancel_is_heard_while_levels_are_looked_for(small):
    comfy.model_management.interrupt_current_processing(True)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        host.sampling.sampling_sigmas(small[0], "normal", 50, 0.1)


@pytest.mark.parametrize("node, warned", [(0.6, True), (1.0, False)])
def test_an_empty_latent_below_full_strength_is_warned_of(small, prompts, caplog, node, warned):
    empty = host_nodes.EmptyLatentImage().generate(64, 64)[0]
    sample(small[0], prompts, empty, strength=node)
    assert ("InST Sample: latent is empty" in caplog.text) is warned
    invert(small[0], prompts, empty, strength=node)
    assert ("Stochastic Invert Latent: latent is empty" in caplog.text) is warned
    caplog.clear()
    sample(small[0], prompts, strength=0.6)
    assert "is empty" not in caplog.text


def test_an_empty_latent_becomes_what_the_model_takes(small, prompts):
    """Its notes about its own size stay inside, as in stock samplers."""
    empty = host_nodes.EmptyLatentImage().generate(64, 64)[0]
    out = InSTSample.execute(small[0], *prompts, {**empty, "downscale_ratio_spacial": 16}, 2, 1.0, "euler", "normal",
                             1.0, 0, "matched").result[0]
    assert out["samples"].shape == (1, 4, 16, 16) and "downscale_ratio_spacial" not in out


def test_other_bad_input_is_named(small, prompts):
    model = small[0]
    with pytest.raises(ValueError, match="steps is 0"):
        sample(model, prompts, steps=0)
    with pytest.raises(ValueError, match=r"\(4, 8, 8\).*\(4, 12, 8\)"):
        sample(model, prompts, content(1, 12, 8), noise=invert(model, prompts)[0])
    with pytest.raises(ValueError, match="inverted at sigma .* but sampling starts at"):
        sample(model, prompts, strength=0.4, noise=invert(model, prompts)[0])
    for name, said in (("sampler", "euler"), ("scheduler", "normal")):
        with pytest.raises(ValueError, match=f"{name} is 'nope'; expected one of .*{said}"):
            sample(model, prompts, **{name: "nope"})
    with pytest.raises(ValueError, match="latent holds no picture. Connect VAE Encode"):
        invert(model, prompts, {"samples": torch.zeros(0, 4, 8, 8)})
    with pytest.raises(ValueError, match="steps is 1001; expected a whole number from 1 to 1000"):
        invert(model, prompts, timing="released", steps=1001)
