"""Every model family of the table, with small checkpoints in the official formats: learn, apply, invert, sample."""
import ast
import sys
from pathlib import Path

import comfy.model_sampling
import comfy.samplers
import comfy.sd
import pytest
import torch
from comfy_extras.nodes_custom_sampler import SDTurboScheduler
from comfy_extras.nodes_model_advanced import ModelSamplingDiscrete, RescaleCFG
from inst_pack.inst_core import host
from inst_pack.inst_core.encoders import PictureFeatures, build_encoder
from inst_pack.inst_core.host.families import FAMILIES
from inst_pack.inst_core.host.sampling import level_of
from inst_pack.inst_core.inversion import fresh_noise, stochastic_inversion
from inst_pack.inst_core.learning import Painting, learn_style
from inst_pack.inst_core.recipes import Recipe
from inst_pack.inst_core.style import Style, save_style
from safetensors.torch import save_file

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools"))

import small_families  # noqa: E402
import support_table  # noqa: E402

EPS, V, FLOW = comfy.model_sampling.EPS, comfy.model_sampling.V_PREDICTION, comfy.model_sampling.CONST
PREDICTION = {"sd2-v": V, "sd3": FLOW, "flux": FLOW, "flux-schnell": FLOW}
LEARNING, STRENGTH, TOKENS = Recipe(steps=2, rate=0.01, batch=4), 0.6, 2


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A folder that is empty again afterwards: the checkpoints are large."""
    folder = tmp_path_factory.mktemp("families")
    yield folder
    for path in folder.rglob("*.safetensors"):
        path.unlink()


@pytest.fixture(scope="module")
def open_family(models):
    """(MODEL, CLIP, VAE) of one of ``small_families.FILES``, by the functions behind the stock loader nodes."""
    def open_(name: str):
        whole = small_families.FILES[name].relative or name
        small_families.write(models, (whole, name))
        with torch.inference_mode():
            model, clip, vae = comfy.sd.load_checkpoint_guess_config(
                str(models / small_families.file_of(whole)), output_model=whole == name, embedding_directory=[""],
                te_model_options=small_families.TEXT_OPTIONS)[:3]
            return model or comfy.sd.load_diffusion_model(str(models / small_families.file_of(name))), clip, vae

    return open_


@pytest.fixture(scope="module", params=small_families.FILES)
def family(request, open_family):
    """(name, MODEL, CLIP, VAE)"""
    return request.param, *open_family(request.param)


def latent_of(model, batch: int = 1) -> dict:
    """A content LATENT."""
    shape = batch, model.get_model_object("latent_format").latent_channels, 8, 8
    return {"samples": model.model.process_latent_out(torch.randn(shape, generator=torch.Generator().manual_seed(0)))}


def encode(clip, text: str) -> list:
    return clip.encode_from_tokens_scheduled(clip.tokenize(text))


def learned_on(model, clip, encoder: str = "direct", seen: PictureFeatures | None = None):
    """A style learned for a moment, and the words it started from."""
    pixels = latent_of(model, 2)["samples"]
    with host.training_mode():
        words = host.word_vectors(clip, "painting")
        encoder = build_encoder(encoder, words, TOKENS, torch.Generator().manual_seed(0))
        with host.training_session(model, clip, "a house, *", TOKENS) as session:
            views = model.model.process_latent_in(pixels).clone()
            return learn_style(session, encoder, Painting(views, views[:1], seen), LEARNING), words


def test_learn_apply_invert_sample(family, tmp_path):
    """What the support table promises of a family."""
    name, model, clip, _ = family
    assert host.family_of(model) == small_families.FILES[name].family
    assert isinstance(model.get_model_object("model_sampling"), PREDICTION.get(name, EPS))
    host.check_learnable(model)

    learned, words = learned_on(model, clip)
    assert learned.kept < 0.99 * learned.checks[0].loss
    assert set(learned.vectors) == set(FAMILIES[host.family_of(model)].text)
    for key, vectors in learned.vectors.items():  # the gradient reached every token of every text encoder
        assert (vectors - words[key]).abs().amax(1).min() > 1e-3

    save_style(Style(learned.vectors, family=host.family_of(model)), tmp_path / "wave.safetensors")
    for key in learned.vectors:
        getattr(clip.tokenizer, key).embedding_directory = [str(tmp_path)]
    styled = host.style_conditioning(clip, "a house, *", learned.vectors)
    stock = encode(clip, "a house,  embedding:wave ")
    assert torch.equal(styled[0][0], stock[0][0])
    assert torch.equal(styled[0][1]["pooled_output"], stock[0][1]["pooled_output"])

    latent, plain = latent_of(model), encode(clip, "a house, ")
    seen = host.invert(model, styled, latent, STRENGTH, 0).noise
    assert (seen.noise - host.invert(model, plain, latent, STRENGTH, 0).noise.noise).abs().max() > 1e-3
    sigmas = host.sampling_sigmas(model, "simple", 2, STRENGTH)
    assert float(sigmas[0]) == pytest.approx(float(level_of(model, STRENGTH)))
    pictures = [host.sample(model, cond, plain, latent, seen, sigmas, 2.0, "euler")["samples"]
                for cond in (styled, plain)]
    assert torch.isfinite(pictures[0]).all() and (pictures[0] - pictures[1]).abs().max() > 1e-3


@pytest.mark.parametrize("name", ["sd2-eps", "sdxl", "sd3", "flux"])
def test_recomputed_layers_give_the_same_gradient(open_family, name):
    """What learning does where memory is short; some families' layers add in place."""
    model, clip, _ = open_family(name)
    z = model.model.process_latent_in(latent_of(model)["samples"]).clone()
    with host.training_mode(), host.training_session(model, clip, "a house, *", TOKENS) as session:
        widths = host.text_widths(clip)
        with torch.no_grad():
            prompt = session.text.encode({k: torch.full((TOKENS, w), 0.02) for k, w in widths.items()})
        z, sigma = z.to(session.device), session.denoiser.level(torch.tensor([STRENGTH])).to(session.device)
        gradients = []
        for session.denoiser.recompute in (False, True):
            context = prompt.context.clone().requires_grad_()
            session.denoiser.denoised(z, sigma, prompt._replace(context=context)).square().sum().backward()
            gradients.append(context.grad)
    assert gradients[0].abs().max() > 0
    torch.testing.assert_close(*gradients, atol=1e-3 * float(gradients[0].abs().max()), rtol=1e-3)


@pytest.mark.parametrize("name", ["sd2-eps", "flux"])
def test_the_attention_encoder_learns_for_every_text_encoder(open_family, name):
    model, clip, _ = open_family(name)
    embed = torch.ones(1, 768) / 768**0.5
    seen = PictureFeatures(embed, torch.randn(1, 257, 1024, generator=torch.Generator().manual_seed(0)))
    learned, _ = learned_on(model, clip, "attention", seen)
    assert learned.kept < learned.checks[0].loss and {k: v.shape for k, v in learned.vectors.items()} == \
        {k: (TOKENS, w) for k, w in host.text_widths(clip).items()}


def test_the_predicted_noise_renoises_to_the_models_own_noise_scaling(family):
    """x = noise_scaling(sigma, n_hat, D), with x and D as they went in and out of the denoiser."""
    _, model, clip, _ = family
    sampling, latent, prompt = model.get_model_object("model_sampling"), latent_of(model), encode(clip, "a house")
    seen = {}

    def spy(apply, call):
        denoised = apply(call["input"], call["timestep"], **call["c"])
        seen.update(x=call["input"].cpu(), sigma=call["timestep"].cpu(), denoised=denoised.cpu())
        return denoised

    watched = model.clone()
    watched.set_model_unet_function_wrapper(spy)
    noise, noised = host.invert(watched, prompt, latent, STRENGTH, 3)
    sigma, z0 = level_of(model, STRENGTH), model.model.process_latent_in(latent["samples"])
    assert float(seen["sigma"]) == pytest.approx(float(sigma))
    scale = dict(atol=1e-4 * max(1.0, float(sigma)), rtol=1e-4)
    torch.testing.assert_close(seen["x"], sampling.noise_scaling(sigma, fresh_noise(z0.shape, 3), z0), **scale)
    torch.testing.assert_close(sampling.noise_scaling(sigma, noise.noise, seen["denoised"]), seen["x"], **scale)
    # KSampler (Advanced) without noise of its own makes the same start of the noised LATENT.
    start = sampling.noise_scaling(sigma, noise.noise, z0)
    nothing = torch.zeros_like(z0)
    torch.testing.assert_close(
        sampling.noise_scaling(sigma, nothing, model.model.process_latent_in(noised["samples"])), start, **scale)


def test_full_strength(family, caplog):
    """Nothing of the photograph but what the model saw in it; flow models cannot put that into a LATENT."""
    _, model, clip, _ = family
    prompt, latent = encode(clip, "a house"), latent_of(model)
    noise, noised = host.invert(model, prompt, latent, 1.0, 0)
    assert torch.isfinite(noise.noise).all() and torch.isfinite(noised["samples"]).all()
    sigmas = host.sampling_sigmas(model, "simple", 2, 1.0)
    picture = host.sample(model, prompt, prompt, latent, noise, sigmas, 1.0, "euler")["samples"]
    assert torch.isfinite(picture).all()
    carried = model.model.process_latent_in(noised["samples"]).abs().max() > 1e-3
    assert carried == (not isinstance(model.get_model_object("model_sampling"), FLOW))
    assert ("a noised LATENT is impossible" in caplog.text) == (not carried)


def test_text_encoders_that_are_not_loaded_are_left_out(open_family, caplog):
    model, clip, _ = open_family("sd3")
    clip = clip.clone()
    t5xxl, clip.cond_stage_model.t5xxl = clip.cond_stage_model.t5xxl, None
    try:
        assert set(host.text_widths(clip)) == set(host.word_vectors(clip, "painting")) == {"clip_l", "clip_g"}
        vectors = {k: torch.full((TOKENS, w), 0.02) for k, w in host.text_widths(clip).items()}
        context = host.style_conditioning(clip, "a house, *", vectors)[0][0]
        assert (context - encode(clip, "a house, ")[0][0]).abs().max() > 1e-3
    finally:
        clip.cond_stage_model.t5xxl = t5xxl
    assert "embedding" not in caplog.text


def test_size_and_pooled_output_reach_the_denoiser(open_family):
    """SDXL's extra conditioning is not lost on the way into the inversion."""
    model, clip, _ = open_family("koala-700m")
    latent, prompt = latent_of(model), encode(clip, "a house")

    def noise(**extra) -> torch.Tensor:
        return host.invert(model, [[prompt[0][0], {**prompt[0][1], **extra}]], latent, STRENGTH, 0).noise.noise

    plain = noise()
    assert (noise(pooled_output=prompt[0][1]["pooled_output"] + 1) - plain).abs().max() > 1e-3
    assert (noise(width=2048, height=512) - plain).abs().max() > 1e-4


def patched(model, sampling: str, zsnr: bool = False):
    return ModelSamplingDiscrete().patch(model, sampling, zsnr)[0]


@pytest.fixture(scope="module")
def plain(open_family):
    """An SD 1.x MODEL, its CLIP, and what was learned on them."""
    model, clip, _ = open_family("sd1")
    with torch.inference_mode():
        return model, clip, learned_on(model, clip)[0]


def test_a_style_serves_relatives_with_the_same_text_encoders(plain, open_family):
    """Learned on the whole U-Net, heard by a distilled one without its middle (the layout of BK-SDM)."""
    model, clip, _ = open_family("sd1-no-middle")
    latent, without = latent_of(model), encode(clip, "a house, ")
    styled = host.style_conditioning(clip, "a house, *", plain[2].vectors)
    noises = [host.invert(model, cond, latent, STRENGTH, 0).noise.noise for cond in (styled, without)]
    assert (noises[0] - noises[1]).abs().max() > 1e-3


@pytest.mark.parametrize("sampling, zsnr", [("v_prediction", True), ("x0", False)])
def test_patched_noise_levels(plain, sampling, zsnr):
    """ModelSamplingDiscrete and RescaleCFG: learning, inversion and sampling follow the patches."""
    model, clip, before = plain
    other = patched(model, sampling, zsnr)
    rescaled = RescaleCFG().patch(other, 1.0)[0]
    prompt, latent, other_prompt = encode(clip, "a house"), latent_of(model), encode(clip, "a boat")
    noise = host.invert(other, prompt, latent, STRENGTH, 0).noise
    assert (noise.noise - host.invert(model, prompt, latent, STRENGTH, 0).noise.noise).abs().max() > 1e-3
    for strength in (STRENGTH, 1.0):
        noise = host.invert(other, prompt, latent, strength, 0).noise
        sigmas = host.sampling_sigmas(other, "simple", 2, strength)
        pictures = [host.sample(m, prompt, other_prompt, latent, noise, sigmas, 5.0, "euler")["samples"]
                    for m in (other, rescaled)]
        assert torch.isfinite(pictures[0]).all() and (pictures[0] - pictures[1]).abs().max() > 1e-3
    learned = learned_on(other, clip)[0]
    first = learned.checks[0].loss
    assert first != pytest.approx(before.checks[0].loss, rel=1e-3) and learned.kept < first


@pytest.mark.parametrize("steps", [4, 6, 8])
@pytest.mark.parametrize("scheduler", ["sgm_uniform", "simple", "normal", "karras"])
def test_few_steps_keep_the_meaning_of_strength(small, scheduler, steps):
    """With LCM's 50 levels a strength starts where it starts with a thousand, right to one of them."""
    fast, sampling = patched(small[0], "lcm"), small[0].get_model_object("model_sampling")
    for strength in (0.3, 0.5, 0.8):
        sigmas = host.sampling_sigmas(fast, scheduler, steps, strength, "lcm")
        assert len(sigmas) == steps + 1 and (sigmas.diff() < 0).all()
        timestep = float(sampling.timestep(sigmas[0]))
        wanted = float(sampling.timestep(sampling.percent_to_sigma(1 - strength) * torch.ones(1)))
        assert abs(timestep - wanted) <= 1000 / 50


def test_the_turbo_schedulers_levels_can_be_used(small):
    """SDTurboScheduler's SIGMAS into InST Sample: the first one is the level of the inversion."""
    model, clip, _ = small
    sigmas = SDTurboScheduler.execute(model, 1, 0.6).result[0]
    noise = host.invert(model, encode(clip, "a house"), latent_of(model), 0.1, 0, sigmas=sigmas).noise
    assert noise.sigma == pytest.approx(float(sigmas[0]))


@pytest.mark.parametrize("dtype, near", [(torch.bfloat16, 0.01), (torch.float8_e4m3fn, 0.1)])
def test_denoisers_stored_with_less_precision(plain, models, dtype, near):
    """Learning and inversion on bf16 and fp8 files; all other checkpoints here are fp16."""
    model, clip, before = plain
    path = models / "less.safetensors"
    save_file({k: v.to(dtype).contiguous() for k, v in model.model.diffusion_model.state_dict().items()}, path)
    other = comfy.sd.load_diffusion_model(str(path), {"dtype": dtype})
    assert next(other.model.diffusion_model.parameters()).dtype == dtype
    prompt, latent = encode(clip, "a house"), latent_of(model)
    full, less = (host.invert(m, prompt, latent, STRENGTH, 0).noise.noise for m in (model, other))
    assert (full - less).abs().mean() < near * full.abs().mean()
    assert not torch.equal(full, less) or dtype == model.model.get_dtype_inference()
    learned = learned_on(other, clip)[0]
    first = learned.checks[0].loss
    assert first == pytest.approx(before.checks[0].loss, rel=near) and learned.kept < first


def test_a_denoiser_with_scaled_fp8_layers(open_family, models):
    """The host keeps such layers as quantized tensors; gradients pass through them."""
    model, clip, _ = open_family("flux-schnell")
    weights = {"scaled_fp8": torch.tensor([], dtype=torch.float8_e4m3fn)}
    for key, weight in model.model.diffusion_model.state_dict().items():
        if "_blocks." in key and weight.ndim == 2:
            scale = weight.abs().max() / torch.finfo(torch.float8_e4m3fn).max
            weights[key.removesuffix("weight") + "scale_weight"] = scale
            weight = (weight / scale).to(torch.float8_e4m3fn)
        weights[key] = weight
    save_file(weights, models / "scaled.safetensors")
    other = comfy.sd.load_diffusion_model(str(models / "scaled.safetensors"))
    assert type(other.model.diffusion_model.double_blocks[0].img_attn.qkv.weight).__name__ == "QuantizedTensor"
    learned = learned_on(other, clip)[0]
    assert learned.kept < 0.99 * learned.checks[0].loss


@pytest.mark.parametrize("levels, prediction, noise", [
    (comfy.model_sampling.ModelSamplingDiscrete, EPS, lambda out, x, s: out),
    (comfy.model_sampling.ModelSamplingDiscrete, V, lambda out, x, s: (out + s * x / (s**2 + 1).sqrt())
     / (s**2 + 1).sqrt()),
    (comfy.model_sampling.ModelSamplingDiscreteFlow, FLOW, lambda out, x, s: x + (1 - s) * out),
    (comfy.model_sampling.ModelSamplingFlux, FLOW, lambda out, x, s: x + (1 - s) * out),
], ids=["eps", "v", "flow", "flux"])
def test_inversion_is_exact_in_the_hosts_own_parametrisations(levels, prediction, noise):
    """``noise``: what a linear network's output says the noise is."""
    sampling = type("Sampling", (levels, prediction), {})()
    z0, fresh = (torch.randn(1, 4, 5, 3, generator=torch.Generator().manual_seed(i)) for i in range(2))
    sigma = torch.tensor(float(sampling.percent_to_sigma(1 - STRENGTH)))

    def network(x: torch.Tensor) -> torch.Tensor:
        return 0.3 * sampling.calculate_input(sigma.view(1), x) + 0.1

    def denoise(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        return sampling.calculate_denoised(sigma.view(1), network(x), x)

    x = sampling.noise_scaling(sigma, fresh, z0)
    found = stochastic_inversion(sampling, denoise, z0, fresh, sigma)
    torch.testing.assert_close(found, noise(network(x), x, sigma), atol=1e-5, rtol=1e-5)


def test_every_row_of_the_table_has_a_checkpoint_here():
    assert {small.family for small in small_families.FILES.values()} == set(FAMILIES)


def test_the_support_table_in_the_readme_is_up_to_date():
    assert support_table.in_readme() == support_table.render(), "run: python tools/support_table.py"


def test_models_that_take_extra_channels_are_refused(open_family):
    """Flux.1 Fill and Control: the denoiser's input is wider, whatever the family is called."""
    model = open_family("flux")[0]
    network = model.model.diffusion_model
    narrow = network.img_in
    network.img_in = torch.nn.Linear(narrow.weight.shape[1] * 2, narrow.weight.shape[0])
    try:
        with pytest.raises(ValueError, match="Learn InST Style does not support inpainting"):
            host.check_learnable(model)
    finally:
        network.img_in = narrow
    host.check_learnable(model)


def test_an_unknown_family_is_refused_by_name_for_learning_only(small):
    stranger = small[0].clone()
    kept = stranger.model.model_config
    stranger.model.model_config = type("Stranger", (), {})()
    try:
        with pytest.raises(ValueError, match=r"family \(Stranger\). Supported: SD 1.x, .*Flux.1 schnell"):
            host.check_learnable(stranger)
        host.check_invertible(stranger)
    finally:
        stranger.model.model_config = kept


# What belongs to one family for good: the weights that other people trained for it.
RELEASED_WEIGHTS = {("inst_core/host/styleshot.py", "SD15")}


def test_only_the_table_knows_a_familys_name():
    """No code outside of it names one, as a word or as a string."""
    named = set()
    for path in [*ROOT.glob("nodes/*.py"), *ROOT.glob("inst_core/**/*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            word = getattr(node, "value", None) if isinstance(node, ast.Constant) else \
                getattr(node, "attr", getattr(node, "id", None))
            if isinstance(word, str) and word in FAMILIES:
                named.add((path.relative_to(ROOT).as_posix(), word))
    assert {file for file, _ in named} >= {"inst_core/host/families.py"}
    assert {n for n in named if n[0] != "inst_core/host/families.py"} <= RELEASED_WEIGHTS
