"""Every model family of the table, with small checkpoints in the official formats: learn, apply, invert, sample."""
import ast
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import comfy.model_sampling
import comfy.sd
import comfy.supported_models
import latent_preview
import pytest
import shrunk_families
import small_families
import support_table
import torch
from comfy_extras.nodes_custom_sampler import Noise_RandomNoise
from comfy_extras.nodes_model_advanced import ModelSamplingDiscrete, RescaleCFG
from inst_pack.inst_core import host
from inst_pack.inst_core.bank import held_out_bank
from inst_pack.inst_core.batch_plan import BatchPlan
from inst_pack.inst_core.content import PARTS
from inst_pack.inst_core.encoders import DirectEncoder, PictureFeatures, build_encoder
from inst_pack.inst_core.host.families import FAMILIES, THE_SAME, context_width, rows_of
from inst_pack.inst_core.host.parts import check_parts
from inst_pack.inst_core.host.sampling import level_of
from inst_pack.inst_core.inversion import fresh_noise
from inst_pack.inst_core.learning import Painting, held_out_loss, learn_style
from inst_pack.inst_core.recipes import Recipe
from inst_pack.inst_core.style import Style, load_style, save_style
from safetensors.torch import save_file
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

ROOT = Path(__file__).resolve().parents[2]
SHRUNK = shrunk_families.SHRUNK
EPS, V, FLOW = comfy.model_sampling.EPS, comfy.model_sampling.V_PREDICTION, comfy.model_sampling.CONST
PREDICTION = {"sd2-v": V, "sd3": FLOW, "flux": FLOW, "flux-schnell": FLOW, **dict.fromkeys(SHRUNK, FLOW),
              "pixart-alpha": EPS, "pixart-sigma": EPS, "hydit": V, "hydit-1": V}
# How much of the loss learning takes away at least, and how far a prediction moves. A style counts for little
# in one random layer, between many tokens of padding, and other steps than small ones lead anywhere.
LEAST_MOVED = dict.fromkeys(SHRUNK, 1e-5)
LEARNING = Recipe(steps=4, rate=0.005, batch=4)
CAREFUL = Recipe(steps=6, rate=1e-4, batch=20)
CAREFUL_RATES = {"chroma-radiance": 1e-3}
STRENGTH, TOKENS = 0.6, 2


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A folder that is empty again afterwards: the checkpoints are large."""
    folder = tmp_path_factory.mktemp("families")
    yield folder
    for path in folder.rglob("*.safetensors"):
        path.unlink()


def skip_if_unknown(name: str) -> None:
    if not hasattr(comfy.supported_models, SHRUNK[name].family):
        pytest.skip("this ComfyUI does not know the family yet")


@pytest.fixture(scope="module")
def open_family(models):
    """(MODEL, CLIP, VAE) of one of ``small_families.FILES``, by the functions behind the stock loader nodes, or of
    ``shrunk_families.SHRUNK``, which has no VAE."""
    def open_(name: str):
        if name in SHRUNK:
            skip_if_unknown(name)
            with torch.inference_mode():
                try:
                    return *shrunk_families.open_shrunk(models, name, [""]), None
                except TypeError as error:
                    if "MistralConverter" not in str(error):
                        raise
                    pytest.skip("this ComfyUI cannot make Flux.2 dev's tokenizer with this version of transformers")
        whole = small_families.FILES[name].relative or name
        small_families.write(models, (whole, name))
        with torch.inference_mode():
            model, clip, vae = comfy.sd.load_checkpoint_guess_config(
                str(models / small_families.file_of(whole)), output_model=whole == name, embedding_directory=[""],
                te_model_options=small_families.TEXT_OPTIONS)[:3]
            return model or comfy.sd.load_diffusion_model(str(models / small_families.file_of(name))), clip, vae

    return open_


# Of these another size or version is tested in full.
RELATIVES = "klein-9b", "pixart-alpha", "hydit-1"


@pytest.fixture(scope="module", params=[name for name in [*small_families.FILES, *SHRUNK] if name not in RELATIVES])
def family(request, open_family):
    """(name, MODEL, CLIP, VAE)"""
    return request.param, *open_family(request.param)


def row_of(model, clip):
    """A model's row of the table."""
    encoders = set(host.text.text_widths(clip))
    return next(row for row in rows_of(host.families.family_of(model)) if set(row.text) == encoders)


def latent_of(model, batch: int = 1) -> dict:
    """A content LATENT; PixArt's host code knows no smaller pictures than 64 x 64."""
    latent_format = model.get_model_object("latent_format")
    frames = [1] * (latent_format.latent_dimensions - 2)
    is_pixart = host.families.family_of(model).startswith("PixArt")
    side = 64 if is_pixart else 16 if latent_format.latent_channels == 3 else 8
    shape = batch, latent_format.latent_channels, *frames, side, side
    return {"samples": model.model.process_latent_out(torch.randn(shape, generator=torch.Generator().manual_seed(0)))}


def encode(clip, text: str) -> list:
    return clip.encode_from_tokens_scheduled(clip.tokenize(text))


def learned_on(model, clip, encoder: str = "direct", seen: PictureFeatures | None = None, careful: str = ""):
    """A style learned for a moment, and the words it started from; ``careful``: name of a shrunk family."""
    pixels = latent_of(model, 2)["samples"]
    with host.training.training_mode():
        words = host.text.word_vectors(clip, "painting")
        encoder = build_encoder(encoder, words, TOKENS, torch.Generator().manual_seed(0))
        with host.training.training_session(model, clip, "a house, *", TOKENS) as session:
            views = model.model.process_latent_in(pixels).clone()
            painting = Painting(views[:1] if careful else views, views[:1], seen)
            recipe = replace(CAREFUL, rate=CAREFUL_RATES.get(careful, CAREFUL.rate)) if careful else LEARNING
            return learn_style(session, encoder, painting, recipe), words


@pytest.mark.parametrize("name", ["flux", "z-image"])
def test_pseudo_words_and_an_adapter_come_closer_than_pseudo_words_alone(open_family, name):
    """Merged it predicts what it learned."""
    model, clip, _ = open_family(name)
    pixels = model.model.process_latent_in(latent_of(model)["samples"])
    recipe = Recipe(tokens=TOKENS, steps=10, rate=2e-3, patience=None)

    def learned(rank: int):
        encoder = host.adapter.with_adapter(host.learning.make_encoder(clip, recipe), model, rank, recipe)
        return host.learning.learn(model, clip, encoder, Painting(pixels, pixels), recipe, "a house, *")

    alone, both = learned(0), learned(4)
    assert both.kept < alone.kept
    merged = host.adapter.adapted(model, Style(both.vectors, adapter=both.adapter), 1.0)
    with host.training.training_mode(), host.training.training_session(merged, clip, "a house, *", TOKENS) as session:
        encoder = DirectEncoder(both.vectors, TOKENS)
        loss = held_out_loss(session, encoder, None, held_out_bank(pixels.clone()), BatchPlan(8))
    assert loss == pytest.approx(both.kept, rel=1e-5)


def test_learn_apply_invert_sample(family, tmp_path):
    """What the support table promises of a family."""
    name, model, clip, _ = family
    row = row_of(model, clip)
    expected = SHRUNK[name].family if name in SHRUNK else small_families.FILES[name].family
    assert host.families.family_of(model) == expected
    assert isinstance(model.get_model_object("model_sampling"), PREDICTION.get(name, EPS))
    host.parts.check_learnable(model, clip)

    learned, words = learned_on(model, clip, careful=name if name in SHRUNK else "")
    assert learned.kept < (1 - LEAST_MOVED.get(name, 0.01)) * learned.checks[0].loss
    assert set(learned.vectors) == set(row.text)
    for key, vectors in learned.vectors.items():  # the gradient reached every token of every text encoder
        assert (vectors - words[key]).abs().amax(1).min() > 1e-4

    style = Style(learned.vectors, family=host.families.family_of(model))
    save_style(style, tmp_path / "wave.safetensors")
    saved = load_style(tmp_path / "wave.safetensors")
    assert all(torch.equal(saved.vectors[key], vectors) for key, vectors in learned.vectors.items())
    assert set(saved.vectors) == set(learned.vectors) and saved.family == style.family
    styled = host.text.style_conditioning(clip, "a house, *", saved.vectors)
    assert same(styled, host.text.style_conditioning(clip, "a house, *", learned.vectors))
    for part in host.text.text_parts(clip).values():
        part.tokenizer.embedding_directory = part.tokenizer.embedding_directory and [str(tmp_path)]
    if row.stock == THE_SAME:
        assert same(styled, encode(clip, "a house,  embedding:wave "))
    else:  # the host would not put it there, or not leave the text around it as it is
        assert not read_by_stock_prompt(clip, styled)

    strengths = [host.text.style_conditioning(clip, "a house, *", learned.vectors, strength)
                 for strength in (0.0, 0.5, 1.0)]
    start = {key: vector.expand(TOKENS, -1) for key, vector in words.items()}
    assert same(strengths[2], styled) and same(strengths[0], host.text.style_conditioning(clip, "a house, *", start))
    assert not any(torch.equal(a[0][0], b[0][0]) for a, b in zip(strengths, strengths[1:], strict=False))
    assert len({s[0][0].shape for s in strengths}) == 1

    (outside, _), (inside, nothing) = (host.text.part_of_style(clip, style, "a house, trees", part) for part in PARTS)
    for key, vectors in learned.vectors.items():
        torch.testing.assert_close(outside.vectors[key] + inside.vectors[key], vectors + nothing[key])
        assert 0 < (inside.vectors[key] - nothing[key]).norm() < 0.9 * (vectors - words[key]).norm()

    latent, plain = latent_of(model), strengths[0]
    seen = host.sampling.invert(model, styled, latent, STRENGTH, 0).noise
    least = LEAST_MOVED.get(name, 0.01) / 10
    assert (seen.noise - host.sampling.invert(model, plain, latent, STRENGTH, 0).noise.noise).abs().max() > least
    sigmas = host.sampling.sampling_sigmas(model, "simple", 2, STRENGTH)
    assert float(sigmas[0]) == pytest.approx(float(level_of(model, STRENGTH)))
    pictures = [host.sampling.sample(model, cond, plain, latent, seen, sigmas, 2.0, "euler")["samples"]
                for cond in (styled, plain)]
    assert torch.isfinite(pictures[0]).all() and (pictures[0] - pictures[1]).abs().max() > least


@pytest.mark.parametrize("name", RELATIVES)
def test_relatives_of_families_are_known(open_family, name):
    model, clip, _ = open_family(name)
    host.parts.check_learnable(model, clip)
    row_of(model, clip)
    vectors = {key: torch.full((TOKENS, width), 0.02) for key, width in host.text.text_widths(clip).items()}
    latent, styled = latent_of(model), host.text.style_conditioning(clip, "a house, *", vectors)
    assert torch.isfinite(host.sampling.invert(model, styled, latent, STRENGTH, 0).noise.noise).all()


def same(a: list, b: list) -> bool:
    """Whether two conditionings are equal, bit for bit, with everything that goes along."""
    def equal(x, y) -> bool:
        return torch.equal(x, y) if torch.is_tensor(x) and torch.is_tensor(y) else x is None and y is None

    return all(equal(x, y) and extra.keys() == other.keys() and all(equal(extra[key], other[key]) for key in extra)
               for (x, extra), (y, other) in zip(a, b, strict=True))


def read_by_stock_prompt(clip, styled: list) -> bool:
    try:
        return same(styled, encode(clip, "a house,  embedding:wave "))
    except (TypeError, RuntimeError):  # some tokenizers break on vectors
        return False


@pytest.mark.parametrize("text", ["*", "a house, *", "a house, * at sea, * at night"])
def test_everything_around_the_style_is_as_the_family_writes_it(family, text):
    """Token for token what the host's tokenizer makes of the same prompt with a word in the place of each star."""
    _, _, clip, _ = family
    stock, ours = clip.tokenize(text.replace("*", "painting")), host.text.tokenize(clip, text, TOKENS).tokens
    assert stock.keys() == ours.keys()
    pads = {part.tokenizer.pad_token for part in host.text.text_parts(clip).values()}
    for key in stock:
        ours_ids, stock_ids = ([token for token, *_ in window] for window in (ours[key][0], stock[key][0]))
        places = [i for i, token in enumerate(ours_ids) if token >= host.text.FIRST_PLACE]
        assert len(places) == TOKENS * text.count("*")
        before, after = ours_ids[:places[0]], ours_ids[places[-1] + 1:]
        # A tokenizer may put the space before the star into a token of its own, or none where a word would have one.
        assert before == stock_ids[:len(before)] or before[:-1] == stock_ids[:len(before) - 1]
        # Padding to a fixed length has other lengths beside other prompts.
        after, stock_ids = ([token for token in ids if token not in pads] for ids in (after, stock_ids))
        assert after == stock_ids[len(stock_ids) - len(after):]


@pytest.mark.parametrize("name", ["z-image", "klein-4b", "krea2", "qwen-image", "ovis", "omnigen2", "kandinsky5"])
def test_chat_templates_stay_whole(open_family, name):
    """To the last line break: the same as with a real token of the vocabulary in the place of the style."""
    _, clip, _ = open_family(name)
    token = "<|fim_prefix|>"
    key = next(key for key in clip.tokenize("") if key.startswith("qwen"))
    tokenizer = next(p.tokenizer for k, p in host.text.text_parts(clip).items() if k.startswith("qwen"))
    (number,) = tokenizer.tokenizer(token)["input_ids"]
    stock = clip.tokenize(f"two lines\n{token} at sea\n")[key]
    ours = host.text.tokenize(clip, "two lines\n* at sea\n", 1).tokens[key]
    assert [[number if t >= host.text.FIRST_PLACE else t for t, *_ in w] for w in ours] == \
        [[t for t, *_ in w] for w in stock]


@pytest.mark.parametrize("name", ["sd2-eps", "sdxl", "sd3", "flux", "z-image", "krea2", "hydit"])
def test_recomputed_layers_give_the_same_gradient(open_family, name):
    """What learning does where memory is short; some families' layers add in place."""
    model, clip, _ = open_family(name)
    z = model.model.process_latent_in(latent_of(model)["samples"]).clone()
    with host.training.training_mode(), host.training.training_session(model, clip, "a house, *", TOKENS) as session:
        widths = host.text.text_widths(clip)
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
        {k: (TOKENS, w) for k, w in host.text.text_widths(clip).items()}


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
    noise, noised = host.sampling.invert(watched, prompt, latent, STRENGTH, 3)
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
    noise, noised = host.sampling.invert(model, prompt, latent, 1.0, 0)
    assert torch.isfinite(noise.noise).all() and torch.isfinite(noised["samples"]).all()
    sigmas = host.sampling.sampling_sigmas(model, "simple", 2, 1.0)
    picture = host.sampling.sample(model, prompt, prompt, latent, noise, sigmas, 1.0, "euler")["samples"]
    assert torch.isfinite(picture).all()
    carried = model.model.process_latent_in(noised["samples"]).abs().max() > 1e-3
    assert carried == (not isinstance(model.get_model_object("model_sampling"), FLOW))
    assert ("a noised LATENT is impossible" in caplog.text) == (not carried)


def test_text_encoders_that_are_not_loaded_are_left_out(open_family, monkeypatch, caplog):
    model, clip, _ = open_family("sd3")
    monkeypatch.setattr(clip.cond_stage_model, "t5xxl", None)
    assert set(host.text.text_widths(clip)) == set(host.text.word_vectors(clip, "painting")) == {"clip_l", "clip_g"}
    vectors = {k: torch.full((TOKENS, w), 0.02) for k, w in host.text.text_widths(clip).items()}
    context = host.text.style_conditioning(clip, "a house, *", vectors)[0][0]
    assert (context - encode(clip, "a house, ")[0][0]).abs().max() > 1e-3
    assert "embedding" not in caplog.text


def test_size_and_pooled_output_reach_the_denoiser(open_family):
    """SDXL's extra conditioning is not lost on the way into the inversion."""
    model, clip, _ = open_family("koala-700m")
    latent, prompt = latent_of(model), encode(clip, "a house")

    def noise(**extra) -> torch.Tensor:
        return host.sampling.invert(model, [[prompt[0][0], {**prompt[0][1], **extra}]], latent, STRENGTH, 0).noise.noise

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
    styled = host.text.style_conditioning(clip, "a house, *", plain[2].vectors)
    noises = [host.sampling.invert(model, cond, latent, STRENGTH, 0).noise.noise for cond in (styled, without)]
    assert (noises[0] - noises[1]).abs().max() > 1e-3


@pytest.mark.parametrize("sampling, zsnr", [("v_prediction", True), ("x0", False)])
def test_patched_noise_levels(plain, sampling, zsnr):
    """ModelSamplingDiscrete and RescaleCFG: learning, inversion and sampling follow the patches."""
    model, clip, before = plain
    other = patched(model, sampling, zsnr)
    rescaled = RescaleCFG().patch(other, 1.0)[0]
    prompt, latent, other_prompt = encode(clip, "a house"), latent_of(model), encode(clip, "a boat")
    noise = host.sampling.invert(other, prompt, latent, STRENGTH, 0).noise
    assert (noise.noise - host.sampling.invert(model, prompt, latent, STRENGTH, 0).noise.noise).abs().max() > 1e-3
    for strength in (STRENGTH, 1.0):
        noise = host.sampling.invert(other, prompt, latent, strength, 0).noise
        sigmas = host.sampling.sampling_sigmas(other, "simple", 2, strength)
        pictures = [host.sampling.sample(m, prompt, other_prompt, latent, noise, sigmas, 5.0, "euler")["samples"]
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
        sigmas = host.sampling.sampling_sigmas(fast, scheduler, steps, strength, "lcm")
        assert len(sigmas) == steps + 1 and (sigmas.diff() < 0).all()
        timestep = float(sampling.timestep(sigmas[0]))
        wanted = float(sampling.timestep(sampling.percent_to_sigma(1 - strength) * torch.ones(1)))
        assert abs(timestep - wanted) <= 1000 / 50


@pytest.mark.parametrize("dtype, near", [(torch.bfloat16, 0.01), (torch.float8_e4m3fn, 0.1)])
def test_denoisers_stored_with_less_precision(plain, models, dtype, near):
    """Learning and inversion on bf16 and fp8 files; all other checkpoints here are fp16."""
    model, clip, before = plain
    path = models / "less.safetensors"
    save_file({k: v.to(dtype).contiguous() for k, v in model.model.diffusion_model.state_dict().items()}, path)
    other = comfy.sd.load_diffusion_model(str(path), {"dtype": dtype})
    assert next(other.model.diffusion_model.parameters()).dtype == dtype
    prompt, latent = encode(clip, "a house"), latent_of(model)
    full, less = (host.sampling.invert(m, prompt, latent, STRENGTH, 0).noise.noise for m in (model, other))
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


def test_every_row_of_the_table_has_a_checkpoint_here():
    classes = {small.family for small in [*small_families.FILES.values(), *SHRUNK.values()]}
    assert {config for row in FAMILIES for config in row.configs} == classes


@pytest.mark.parametrize("name", SHRUNK)
def test_files_of_the_official_size_are_recognised(name):
    """What the small ones stand for: the host's class, and the width of the conditioning that the table says."""
    skip_if_unknown(name)
    config, reader = shrunk_families.official(name), shrunk_families.READERS[SHRUNK[name].reader]
    rows = [row for row in rows_of(type(config).__name__) if len({*row.text} & {*reader.sizes}) or name[:5] == "hydit"]
    assert type(config).__name__ == SHRUNK[name].family or name == "ovis"
    assert [row.context for row in rows] == [context_width(SimpleNamespace(model=SimpleNamespace(model_config=config)))]


def test_the_support_table_in_the_readme_is_up_to_date():
    assert support_table.render() in support_table.PAGE.read_text(encoding="utf-8"), "run tools/support_table.py"


def test_models_that_take_extra_channels_are_refused(open_family, monkeypatch):
    """Flux.1 Fill and Control: the denoiser's input is wider, whatever the family is called."""
    model = open_family("flux")[0]
    network = model.model.diffusion_model
    outputs, inputs = network.img_in.weight.shape
    host.parts.check_learnable(model)
    monkeypatch.setattr(network, "img_in", torch.nn.Linear(inputs * 2, outputs))
    with pytest.raises(ValueError, match="Learn InST Style does not support inpainting"):
        host.parts.check_learnable(model)


def test_an_unknown_family_is_refused_by_name_for_learning_only(small, monkeypatch):
    monkeypatch.setattr(small[0].model, "model_config", type("Stranger", (), {})())
    with pytest.raises(ValueError, match=r"family \(Stranger\). Choose one of these: SD 1.x, .*Flux.1 schnell"):
        host.parts.check_learnable(small[0])
    host.parts.check_invertible(small[0])


@pytest.fixture()
def idle(open_family):
    """An SD 1.x MODEL that must not be asked anything, and its CLIP."""
    model, clip, _ = open_family("sd1")
    model = model.clone()
    model.set_model_unet_function_wrapper(lambda *_: pytest.fail("the denoiser was run"))
    return model, clip


def test_parts_of_another_family_are_named_before_any_work(idle, open_family):
    model, clip = idle
    other, others_clip, _ = open_family("chroma")
    with pytest.raises(ValueError, match=r"Learn InST Style: the CLIP comes from another model.*: it has the text "
                                         r"encoders t5xxl \(64\), and the .* \(SD 1.x\) is prompted through clip_l"):
        host.parts.check_learnable(model, others_clip)
    with pytest.raises(ValueError, match=r"the CLIP comes from another model \(SD 1.x\): .*Chroma"):
        host.parts.check_learnable(other, clip)
    with pytest.raises(ValueError, match="the VAE comes from another model: it makes latents of 16 channels.*takes 4"):
        host.parts.check_learnable(model, clip, type("VAE", (), {"latent_channels": 16})())
    host.parts.check_learnable(model, clip, type("VAE", (), {"latent_channels": 4})())

    right, wrong, latent = encode(clip, "a house"), encode(others_clip, "a house"), latent_of(model)
    with pytest.raises(ValueError, match="Stochastic Invert Latent: positive comes from the CLIP of another model: its "
                                         "width is 64, and the connected model .SD15. takes 768"):
        host.sampling.invert(model, wrong, latent, STRENGTH, 0)
    sigmas = host.sampling.sampling_sigmas(model, "simple", 2, STRENGTH)
    with pytest.raises(ValueError, match="InST Sample: negative comes from the CLIP of another model"):
        host.sampling.sample(model, right, wrong, latent, Noise_RandomNoise(0), sigmas, 1.0, "euler")
    with pytest.raises(ValueError, match=r"the latent comes from another model: it is \(1, 16, 8.*\(batch, 4, h"):
        host.sampling.invert(model, right, latent_of(other), STRENGTH, 0)
    with pytest.raises(ValueError, match=r"the latent comes from another model: it is \(1, 16, 8.*\(batch, 4, h"):
        host.sampling.sample(model, right, right, latent_of(other), Noise_RandomNoise(0), sigmas, 1.0, "euler")


def test_the_pooled_text_of_another_family_is_named(open_family):
    """SD 3 and Flux take contexts of one width; what differs is the pooled text."""
    model, clip, _ = open_family("flux")
    context, extra = encode(clip, "a house")[0]
    check_parts(model, "node", conditionings={"positive": [[context, extra]]})
    with pytest.raises(ValueError, match="node: positive comes from the CLIP of another model: its width is 2048"):
        check_parts(model, "node", conditionings={"positive": [[context, {"pooled_output": torch.zeros(1, 2048)}]]})


def test_an_empty_latent_of_another_family_is_taken_as_the_host_takes_it(open_family):
    model, clip, _ = open_family("klein-4b")
    noise = host.sampling.invert(model, encode(clip, "a house"), {"samples": torch.zeros(1, 4, 8, 8)}, 1.0, 0).noise
    assert noise.noise.shape == (1, 128, 8, 8)


def test_pictures_of_families_with_a_time_axis_are_one_frame_each(open_family):
    """Their VAEs take a batch for the frames of one video."""
    model = open_family("krea2")[0]

    class VAE:
        latent_channels = 16

        def encode(self, pictures):
            return torch.ones(1, 16, len(pictures), 8, 8)

    assert host.vision.encode_latent(VAE(), model, torch.zeros(3, 64, 64, 3)).shape == (3, 16, 1, 8, 8)
    with pytest.raises(ValueError, match=r"takes \(batch, 16, 1, height, width\)"):
        check_parts(model, "node", latent=torch.zeros(1, 16, 3, 8, 8))
    shown, format_ = host.progress.LatentPreview(model), model.get_model_object("latent_format")
    shown._previewer = latent_preview.Latent2RGBPreviewer(format_.latent_rgb_factors, format_.latent_rgb_factors_bias)
    assert shown(torch.zeros(2, 16, 1, 8, 8)).size == (16, 8)


@pytest.mark.parametrize("name, reason", [
    ("Anima", "has no backward pass in ComfyUI"), ("HiDreamO1", "no text encoder to put a style into"),
    ("Lens", "whole numbers only"), ("WAN21_T2V", "makes video"), ("HunyuanVideo15", "makes video"),
    ("NewImageModel", "has latents with a time axis, and is not among the image models known to have one"),
])
def test_what_cannot_work_is_refused_with_its_reason(open_family, monkeypatch, name, reason):
    model = open_family("krea2")[0]
    monkeypatch.setattr(model.model, "model_config", type(name, (), {"unet_config": {}})())
    with pytest.raises(ValueError, match=reason) as error:
        host.parts.check_learnable(model)
    assert name in str(error.value) and ("makes video" in reason) == ("makes video" in str(error.value))


def test_a_class_of_two_families_is_told_by_its_text_encoder(open_family):
    """Ovis-Image has the class of Flux.1."""
    ovis, ovis_clip, _ = open_family("ovis")
    flux, flux_clip, _ = open_family("flux")
    assert row_of(ovis, ovis_clip).label == "Ovis-Image" and row_of(flux, flux_clip).label == "Flux.1 dev"
    with pytest.raises(ValueError, match="positive comes from the CLIP of another model"):
        check_parts(flux, "node", conditionings={"positive": encode(ovis_clip, "a house")})


class LargestTensor(TorchDispatchMode):
    """Notes the size of the largest tensor that is made."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.numel = max([self.numel, *(t.numel() for t in tree_leaves(out) if torch.is_tensor(t))])
        return out


@pytest.mark.parametrize("words", ["oil painting", ""])
def test_words_to_start_from_do_not_copy_the_vocabulary(open_family, words):
    """Tables of language models have up to 3 GB."""
    _, clip, _ = open_family("z-image")
    table = host.text.text_parts(clip)["qwen3_4b"].table
    with LargestTensor() as made:
        vectors = host.text.word_vectors(clip, words)["qwen3_4b"]
    assert 0 < made.numel < table.numel() / 10
    length = table.float().norm(dim=1).mean()
    ids = clip.tokenizer.qwen3_4b.tokenizer(words)["input_ids"]
    mean = (table.float()[ids] if ids else table.float()).mean(0, keepdim=True)
    torch.testing.assert_close(vectors, mean * (length / mean.norm()), rtol=1e-4, atol=1e-6)


# What belongs to one family for good: the weights that other people trained for it.
RELEASED_WEIGHTS = {("inst_core/host/styleshot.py", "SD15")}


def test_only_the_table_knows_a_familys_name():
    """No code outside of it names one, as a word or as a string."""
    named, names = set(), {config for row in FAMILIES for config in row.configs}
    for path in [*ROOT.glob("nodes/*.py"), *ROOT.glob("inst_core/**/*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            word = getattr(node, "value", None) if isinstance(node, ast.Constant) else \
                getattr(node, "attr", getattr(node, "id", None))
            if isinstance(word, str) and word in names:
                named.add((path.relative_to(ROOT).as_posix(), word))
    assert {file for file, _ in named} >= {"inst_core/host/families.py"}
    assert {n for n in named if n[0] != "inst_core/host/families.py"} <= RELEASED_WEIGHTS
