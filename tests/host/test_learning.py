"""Learning in the real host: gradients, held-out loss, and that the user's models stay as they were."""
import gc
from dataclasses import replace

import comfy.model_sampling
import pytest
import torch
from inst_pack.inst_core import host
from inst_pack.inst_core.bank import Batch, held_out_bank
from inst_pack.inst_core.batch_plan import BatchPlan
from inst_pack.inst_core.encoders import ENCODERS, PictureFeatures, build_encoder
from inst_pack.inst_core.learning import Painting, backward, held_out_loss, learn_style
from inst_pack.inst_core.objective import output_error, squared_error
from inst_pack.inst_core.recipes import FAITHFUL, Recipe, choose_recipe

STEPS = 8
QUICK = Recipe(tokens=2, steps=3, rate=5e-3, batch=2)


def views() -> torch.Tensor:
    return torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))


def painting(seen=None) -> Painting:
    return Painting(views(), views()[:1], seen)


def features() -> PictureFeatures:
    generator = torch.Generator().manual_seed(1)
    embed = torch.randn(1, 768, generator=generator)
    return PictureFeatures(embed / embed.norm(), torch.randn(1, 257, 1024, generator=generator))


def encoder_for(clip, name: str, tokens: int = 2):
    return build_encoder(name, host.text.word_vectors(clip, "painting"), tokens, torch.Generator().manual_seed(0))


def held_out(session, encoder, seen: Painting) -> float:
    return held_out_loss(session, encoder, seen.features, held_out_bank(seen.whole), BatchPlan(1))


@pytest.mark.parametrize("name", ENCODERS)
def test_learning_lowers_a_held_out_loss(small, name, rounding):
    model, clip, _ = small
    with host.training.training_mode():
        encoder, seen = encoder_for(clip, name), painting(features())
        recipe = choose_recipe(name, 2, STEPS, 4, 1e-2 if name == "direct" else 2e-3)
        with host.training.training_session(model, clip, "*", 1 if name in FAITHFUL else 2) as session:
            learned = learn_style(session, encoder, seen, recipe)
            again = held_out(session, encoder, seen)
    assert learned.kept < learned.checks[0].loss * 0.995
    assert again == pytest.approx(learned.kept, rel=max(1e-5, rounding(model)))
    assert len(learned.losses) == STEPS and not learned.vectors["clip_l"].is_inference()


def test_the_gradient_agrees_with_a_finite_difference(small, rounding):
    model, clip, _ = small
    if rounding(model) > 1e-5:
        pytest.skip("so small a difference of the loss cannot be seen in half precision")
    with host.training.training_mode():
        encoder = encoder_for(clip, "direct")
        pixels = views()
        batch = Batch(pixels, torch.randn(pixels.shape, generator=torch.Generator().manual_seed(2)),
                      torch.tensor([0.3, 0.7]))
        with host.training.training_session(model, clip, "a house, *", 2) as session:
            backward(session, encoder, None, batch, 0, 2.0**16, BatchPlan(2))
            vectors = encoder.vectors["clip_l"]
            direction = vectors.grad / vectors.grad.norm()

            def loss(offset: float) -> float:
                with torch.no_grad():
                    moved = {"clip_l": vectors + offset * direction}
                    error, _ = squared_error(session.denoiser, batch, session.text.encode(moved), session.device)
                    return error.double().mean().item()

            step = 2e-3
            slope = (loss(step) - loss(-step)) / (2 * step)
    assert slope == pytest.approx(vectors.grad.norm().item(), rel=2e-2)


def test_the_same_seed_learns_the_same_style_bit_for_bit(small):
    model, clip, _ = small

    def learn(seed: int) -> torch.Tensor:
        with host.training.training_mode():
            encoder = encoder_for(clip, "paper", 1)
            with host.training.training_session(model, clip, "*", 1) as session:
                recipe = choose_recipe("paper", steps=2, batch=2, rate=1e-3, seed=seed)
                return learn_style(session, encoder, painting(features()), recipe).vectors["clip_l"]

    before = torch.random.get_rng_state()
    first = learn(5)
    assert torch.equal(first, learn(5))
    assert not torch.equal(first, learn(6))
    assert torch.equal(before, torch.random.get_rng_state())


def test_prompts_longer_than_the_window_and_weights_can_be_learned_with(small):
    model, clip, _ = small
    with host.training.training_mode():
        encoder = encoder_for(clip, "direct")
        for prompt in ("(*:1.3) at night", "a very old house " * 30 + "*"):
            with host.training.training_session(model, clip, prompt, 2) as session:
                learned = learn_style(session, encoder, painting(), QUICK)
            assert learned.losses[0] > 0


@pytest.mark.parametrize("layers", ["all", "late"])
def test_text_encoder_and_denoiser_in_turn_learn_the_same_style(small, layers):
    """Where both do not fit on the device, never both are on it."""
    import comfy.model_management

    model, clip, _ = small

    def learn(together: bool):
        here = []
        with host.training.training_mode():
            encoder = encoder_for(clip, "direct")
            with host.training.training_session(model, clip, "a house, *", 2, layers, together) as session:
                def watch(plain):
                    def watched(*arguments):
                        result = plain(*arguments)
                        loaded = [m.model for m in comfy.model_management.current_loaded_models]
                        here.append([patcher in loaded for patcher in session.residents.patchers])
                        return result

                    return watched

                session.denoiser._run, session.text.encode = watch(session.denoiser._run), watch(session.text.encode)
                return learn_style(session, encoder, painting(), QUICK).vectors["clip_l"], here

    (both, always), (turns, changing) = learn(True), learn(False)
    assert torch.equal(both, turns)
    assert all(place == [True, True] for place in always)
    assert {tuple(place) for place in changing} == {(True, False), (False, True)}


def test_whether_models_fit_together_is_decided_by_free_memory(monkeypatch):
    import comfy.model_management as management
    from inst_pack.inst_core.host.training import fit_together

    class Patcher:
        def __init__(self, size: int, device: str):
            self.model_size, self.load_device = (lambda: size), torch.device(device)

    free = 10 * 2**30
    monkeypatch.setattr(management, "free_memory", lambda needed, device: None)
    monkeypatch.setattr(management, "get_free_memory", lambda device: free)
    monkeypatch.setattr(management, "minimum_inference_memory", lambda: 2**30)
    gib = 2**30
    assert fit_together([Patcher(6 * gib, "cuda"), Patcher(2 * gib, "cuda")])
    assert not fit_together([Patcher(6 * gib, "cuda"), Patcher(3 * gib, "cuda")])
    assert fit_together([Patcher(6 * gib, "cuda"), Patcher(9 * gib, "cpu")])  # the text encoder is elsewhere anyway
    assert fit_together([Patcher(99 * gib, "cpu"), Patcher(9 * gib, "cpu")])


def test_out_of_memory_is_known_as_the_host_knows_it(monkeypatch):
    import comfy.model_management as management
    from inst_pack.inst_core.host.training import is_out_of_memory

    assert is_out_of_memory(torch.OutOfMemoryError("")) and not is_out_of_memory(RuntimeError("shapes"))
    monkeypatch.setattr(management, "is_oom", lambda error: "the host says so" in str(error), raising=False)
    monkeypatch.setattr(management, "OOM_EXCEPTION", torch.OutOfMemoryError)
    assert is_out_of_memory(RuntimeError("the host says so"))
    monkeypatch.setattr(management, "OOM_EXCEPTION", Exception)  # what the host falls back to: every error at all
    assert not is_out_of_memory(RuntimeError("the host says so"))


EPS, V, FLOW = (comfy.model_sampling.EPS, comfy.model_sampling.V_PREDICTION, comfy.model_sampling.CONST)


@pytest.mark.parametrize("levels, prediction, right", [
    (comfy.model_sampling.ModelSamplingDiscrete, EPS, lambda z, n, s: n),
    (comfy.model_sampling.ModelSamplingDiscrete, V, lambda z, n, s: (n - s * z) / (s**2 + 1).sqrt()),
    (comfy.model_sampling.ModelSamplingDiscrete, comfy.model_sampling.X0, lambda z, n, s: z),
    (comfy.model_sampling.ModelSamplingDiscreteFlow, FLOW, lambda z, n, s: n - z),
    (comfy.model_sampling.ModelSamplingFlux, FLOW, lambda z, n, s: n - z),
], ids=["eps", "v", "x0", "flow", "flux"])
def test_the_loss_is_that_of_the_hosts_own_parametrisations(levels, prediction, right):
    """``right``: what each kind of network is trained to say."""
    sampling = type("Sampling", (levels, prediction), {})()
    z, n, said = torch.randn(3, 2, 4, 5, 3, generator=torch.Generator().manual_seed(0))
    sigma = torch.tensor([float(sampling.percent_to_sigma(1 - t)) for t in (0.05, 0.8)])
    x = sampling.noise_scaling(sigma, n.clone(), z)
    error = output_error(sampling, sigma, sampling.calculate_denoised(sigma, said, x), z)
    torch.testing.assert_close(error, said - right(z, n, sigma.view(-1, 1, 1, 1)), rtol=1e-3, atol=1e-3)


def picture_of(model, clip, vae) -> torch.Tensor:
    import comfy.sample

    prompt = clip.encode_from_tokens_scheduled(clip.tokenize("a house"))
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(3))
    latent = comfy.sample.sample(model, noise, 2, 3.0, "euler", "normal", prompt, prompt, torch.zeros(1, 4, 8, 8),
                                 disable_pbar=True, seed=0)
    return vae.decode(latent)


class Stop(BaseException):
    """Like the host's interrupt, not an Exception."""


@pytest.mark.parametrize("accident", [None, ValueError, Stop])
def test_nothing_leaks_into_the_users_models(small, accident):
    import comfy.model_management

    model, clip, vae = small
    before = picture_of(model, clip, vae)
    weights = {k: v.cpu().clone() for k, v in model.model.state_dict().items()}

    def report(step):
        if accident and step.done == 2:
            raise accident("half-way")

    try:
        with host.training.training_mode():
            encoder = encoder_for(clip, "direct")
            with host.training.training_session(model, clip, "*", 2) as session:
                learn_style(session, encoder, painting(), QUICK, report)
    except (ValueError, Stop):
        assert accident
    assert not comfy.model_management.in_training
    assert all(torch.equal(v.cpu(), weights[k]) for k, v in model.model.state_dict().items())
    assert torch.equal(picture_of(model, clip, vae), before)


def test_memory_is_flat_over_repeated_runs(small):
    import comfy.model_management

    model, clip, _ = small

    def tensors() -> int:
        gc.collect()
        return sum(1 for o in gc.get_objects() if type(o) in (torch.Tensor, torch.nn.Parameter))

    counts = []
    for _ in range(3):
        with host.training.training_mode(), host.training.training_session(model, clip, "*", 2) as session:
            learn_style(session, encoder_for(clip, "direct"), painting(), replace(QUICK, steps=1))
        counts.append((tensors(), len(comfy.model_management.current_loaded_models)))
    assert counts[1] == counts[2]


def test_inpainting_models_are_refused(small, monkeypatch):
    monkeypatch.setattr(small[0].model, "concat_keys", ("mask", "masked_image"), raising=False)
    with pytest.raises(ValueError, match="inpainting"):
        host.parts.check_invertible(small[0])


def test_the_preview_shows_the_first_few_noise_levels_side_by_side(small):
    from PIL import Image

    shown = host.progress.LatentPreview(small[0])
    shown._previewer = None
    assert shown(torch.zeros(6, 4, 8, 8)) is None

    class Grey:
        """A picture as bright as the latent."""

        def decode_latent_to_preview_image(self, kind, latent):
            assert latent.shape == (1, 4, 8, 8)
            return kind, Image.new("RGB", (8, 8), (int(latent[0, 0, 0, 0]),) * 3), 512

    shown._previewer = Grey()
    strip = shown(torch.arange(6.0).view(6, 1, 1, 1).expand(6, 4, 8, 8) * 10)
    assert strip.size == (32, 8) and [strip.getpixel((8 * i, 0))[0] for i in range(4)] == [0, 10, 20, 30]
    below = host.progress.caption(strip, host.progress.CAPTION)
    assert below.size == (512, 128 + host.progress.CAPTION_HEIGHT)
    written = torch.frombuffer(bytearray(below.crop((0, 128, *below.size)).tobytes()), dtype=torch.uint8)
    assert 0.02 < float((written < 128).float().mean()) < 0.5  # black letters on white
