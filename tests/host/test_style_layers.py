"""Gradients of the frozen denoiser, by the host's real U-Net code in the block layout of SD 1.5 and SDXL, narrow."""
import contextlib

import comfy.model_patcher
import comfy.supported_models
import full_size_models
import pytest
import torch
from inst_pack.inst_core import host
from inst_pack.inst_core.bank import held_out_bank, prepare
from inst_pack.inst_core.encoders import DirectEncoder
from inst_pack.inst_core.host.denoiser import Conditioning, Denoiser
from inst_pack.inst_core.host.families import style_blocks
from inst_pack.inst_core.host.style_layers import StyleLayersDenoiser, first_late_block, restricted
from inst_pack.inst_core.inversion import fresh_noise, noise_between
from inst_pack.inst_core.learning import Painting, learn_style
from inst_pack.inst_core.memory import kept_for_backward
from inst_pack.inst_core.objective import squared_error
from inst_pack.inst_core.recipes import Recipe
from inst_pack.inst_core.style import Style, load_style, save_style
from inst_pack.nodes.style import InSTStyleConditioning

NARROW = {"model_channels": 32, "num_heads": 4, "num_head_channels": -1, "context_dim": 48}
SD15 = full_size_models.SD15 | NARROW
SDXL = full_size_models.SDXL | NARROW | {
    "transformer_depth": [0, 0, 2, 2, 3, 3], "transformer_depth_output": [0, 0, 0, 2, 2, 2, 3, 3, 3],
    "transformer_depth_middle": 3, "adm_in_channels": 16 + 6 * 256}
DEVICE = torch.device("cpu")


def patcher(layout: dict):
    """A MODEL with random weights, outside inference mode."""
    family = comfy.supported_models.SD15 if layout is SD15 else comfy.supported_models.SDXL
    config = family(dict(layout))
    config.set_inference_dtype(torch.float32, None)
    with torch.inference_mode(False):
        model = config.get_model({}, device=DEVICE)
        generator = torch.Generator().manual_seed(0)
        for weight in model.diffusion_model.parameters():
            scale = weight[0].numel() ** -0.5 if weight.ndim > 1 else 0.1
            weight.data = torch.randn(weight.shape, generator=generator) * scale + float(weight.ndim == 1)
            weight.requires_grad_(False)
    patcher = comfy.model_patcher.ModelPatcher(model, DEVICE, DEVICE)
    patcher.pre_run()
    return patcher


@pytest.fixture(params=[SD15, SDXL], ids=["SD1.5", "SDXL"])
def model(request):
    return patcher(request.param)


def prompt(seed: int, windows: int = 1) -> Conditioning:
    generator = torch.Generator().manual_seed(seed)
    return Conditioning(torch.randn(1, 77 * windows, 48, generator=generator), torch.randn(1, 16, generator=generator))


def bank(count: int = 4):
    return held_out_bank(torch.randn(8, 4, 16, 16, generator=torch.Generator().manual_seed(9))).take(
        torch.arange(0, 8, 8 // count))


def gradient(denoiser, context: Conditioning, samples=None, at_once: int = 4):
    """(loss, d loss / d context) of some samples, ``at_once`` through the denoiser at a time."""
    with host.training.training_mode():
        samples, errors = samples or bank(), []
        leaf = Conditioning(context.context.clone().requires_grad_(), context.pooled)
        for part in samples.split(at_once):
            error, _ = squared_error(denoiser, part, leaf, DEVICE)
            (error.sum() / samples.latent.numel()).backward()
            errors.append(error.detach())
    return torch.cat(errors), leaf.context.grad


def prepared(denoiser, samples, at_once: int):
    with host.training.training_mode():
        return prepare(denoiser, samples, at_once, DEVICE, lambda done: None)


class RestrictedDenoiser(Denoiser):
    """The whole U-Net, forward and backward, restricted by the hook that sampling uses."""

    def __init__(self, patcher, neutral: Conditioning, blocks=None):
        super().__init__(patcher)
        self._neutral, self._blocks = neutral, blocks

    def denoised(self, x, sigma, conditioning, prepared=()):
        styled = [[conditioning.context, {"pooled_output": conditioning.pooled}]]
        plain = [[self._neutral.context, {"pooled_output": self._neutral.pooled}]]
        (context, extra), = restricted(styled, plain, self._blocks)
        patches = extra["hooks"].hooks[0].transformers_dict["patches"]
        return self._run(x, sigma, Conditioning(context, extra["pooled_output"]), patches)


def test_the_late_blocks_begin_at_half_resolution():
    assert first_late_block(patcher(SD15).model.diffusion_model) == 6
    assert first_late_block(patcher(SDXL).model.diffusion_model) == 3


@pytest.mark.parametrize("size, at_once", [((16, 16), 4), ((16, 16), 1), ((16, 24), 1)])
def test_prepared_and_whole_gradients_agree_to_rounding(model, size, at_once):
    """Exactly the same function: everything before the late blocks computed once, or every time with backward."""
    style, neutral = prompt(1), prompt(2)
    samples = held_out_bank(torch.randn(8, 4, *size, generator=torch.Generator().manual_seed(9)))
    late = StyleLayersDenoiser(model, neutral)
    (loss, wanted), *others = [gradient(RestrictedDenoiser(model, neutral), style, samples),
                               gradient(late, style, prepared(late, samples, at_once), at_once),
                               gradient(late, style, prepared(late, samples, 3), 2),
                               gradient(late, style, samples)]
    assert wanted.abs().max() > 1e-6
    for other_loss, found in others:
        torch.testing.assert_close(other_loss, loss, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-4 * float(wanted.abs().max()))


@pytest.mark.parametrize("blocks", [(1,), (1, 4)])
def test_single_blocks_see_the_style_alone(blocks):
    """Learned with everything before the first of them computed once, and by the hook that sampling uses."""
    model, style, neutral, samples = patcher(SDXL), prompt(1), prompt(2), bank(2)
    wanted_loss, wanted = gradient(RestrictedDenoiser(model, neutral, blocks), style, samples)
    few = StyleLayersDenoiser(model, neutral, blocks=blocks)
    for part in (samples, prepared(few, samples, 2)):
        loss, found = gradient(few, style, part)
        torch.testing.assert_close(loss, wanted_loss, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-4 * float(wanted.abs().max()))
    late = gradient(StyleLayersDenoiser(patcher(SDXL), neutral), style, samples)[0]
    assert (late - wanted_loss).abs().max() > 1e-4


class Session:
    """Of a denoiser without a text encoder: the style is the context."""

    device, text = DEVICE, None

    def __init__(self, denoiser, free: float):
        self.denoiser, self.free, self.text = denoiser, free, self

    def encode(self, vectors):
        return Conditioning(vectors["clip_l"].unsqueeze(0), prompt(2).pooled)

    def recording(self):
        return contextlib.nullcontext()

    def free_bytes(self):
        return self.free

    def is_out_of_memory(self, error):
        return False


@pytest.mark.parametrize("free", [2**40, 1], ids=["plenty", "short"])
def test_a_whole_run_on_late_layers_is_the_run_on_the_whole_network(free):
    """One sample at a time, a painting that is not square: the samples of the painting, of its crops and of the trial
    do not mix."""
    model, generator = patcher(SD15), torch.Generator().manual_seed(5)
    painting = Painting(torch.randn(3, 4, 16, 16, generator=generator), torch.randn(1, 4, 16, 24, generator=generator))
    runs = []
    for denoiser in (RestrictedDenoiser(model, prompt(2)), StyleLayersDenoiser(model, prompt(2))):
        with host.training.training_mode():
            encoder = DirectEncoder({"clip_l": prompt(1).context[0, :1] * 0.1}, 77)
            runs.append(learn_style(Session(denoiser, free), encoder, painting,
                                    Recipe(tokens=77, steps=4, batch=1, rate=1e-3, bank=3, patience=None)))
    whole, late = runs
    assert [c.loss for c in late.checks] == pytest.approx([c.loss for c in whole.checks], rel=1e-4)
    assert late.losses == pytest.approx(whole.losses, rel=1e-3)
    assert ("memory was short" in late.verdict) == (free == 1)


def test_a_longer_neutral_prompt_is_no_obstacle(model):
    style, neutral = prompt(1), prompt(2, windows=2)
    wanted = gradient(RestrictedDenoiser(model, neutral), style)[1]
    torch.testing.assert_close(gradient(StyleLayersDenoiser(model, neutral), style)[1], wanted, rtol=1e-3,
                               atol=1e-4 * float(wanted.abs().max()))


@pytest.mark.parametrize("kind", [Denoiser, lambda m: StyleLayersDenoiser(m, prompt(2))], ids=["all", "late"])
def test_recomputing_gives_the_same_gradient_and_leaves_no_trace(model, kind):
    before = [module.forward.__func__ for module in model.model.diffusion_model.modules()]
    wanted, denoiser = gradient(kind(model), prompt(1))[1], kind(model)
    denoiser.recompute = True
    found = gradient(denoiser, prompt(1))[1]
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5 * float(wanted.abs().max()))
    assert [module.forward.__func__ for module in model.model.diffusion_model.modules()] == before


def kept(denoiser, samples) -> int:
    leaf = Conditioning(prompt(1).context.clone().requires_grad_(), prompt(1).pooled)
    return kept_for_backward(lambda: squared_error(denoiser, samples, leaf, DEVICE)[0])


def test_what_is_kept_is_of_samples_and_not_of_weights(model):
    """So that the room for them is not taken for too small where the network is large."""
    with host.training.training_mode():
        one, all_of_them = (kept(Denoiser(model), samples) for samples in (next(bank().split(1)), bank()))
    assert all_of_them == pytest.approx(one * len(bank().latent), rel=0.02)


def test_recomputing_keeps_less(model):
    denoiser = Denoiser(model)
    with host.training.training_mode():
        everything = kept(denoiser, bank())
        denoiser.recompute = True
        assert kept(denoiser, bank()) < everything / 2


def test_recomputing_sees_patches_of_the_blocks_as_they_were_the_first_time():
    """The host notes in one dictionary which block it is in."""
    model, seen = patcher(SD15), []

    def louder_in_one_block(q, k, v, options):
        seen.append(options["block"])
        return q, k, v * (3.0 if options["block"] == ("input", 2) else 1.0)

    model.set_model_attn2_patch(louder_in_one_block)
    wanted = gradient(Denoiser(model), prompt(1))[1]
    denoiser, plain = Denoiser(model), len(seen)
    denoiser.recompute = True
    found = gradient(denoiser, prompt(1))[1]
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5 * float(wanted.abs().max()))
    assert set(seen) == set(seen[:plain]) and seen[plain:].count(("input", 2)) == 2


def test_an_attention_without_gradient_is_not_used(model):
    def no_gradient(chosen, *arguments, **named):
        raise RuntimeError("no backward here")

    model.model_options.setdefault("transformer_options", {})["optimized_attention_override"] = no_gradient
    assert gradient(Denoiser(model), prompt(1))[1].abs().max() > 1e-6


def test_late_layers_are_refused_without_a_unet():
    other = patcher(SD15)
    other.model.diffusion_model = torch.nn.Linear(1, 1)
    with pytest.raises(ValueError, match="layers is 'late', which only U-Nets have.*a Linear.*Use layers 'all'"):
        StyleLayersDenoiser(other, prompt(2))


def test_the_style_block_is_known_for_sdxl_alone(small):
    assert style_blocks("SDXL") == (1,)
    for call in (lambda: host.training.check_layers(small[0], "style block"),
                 lambda: host.text.style_conditioning(small[1], "*", late_style().vectors, layers="style block",
                                                      family="SD15")):
        with pytest.raises(ValueError, match="layers is 'style block', which is known for SDXL; .* of SD15. Use"):
            call()


# ---- in the graph ----

def late_style() -> Style:
    vectors = torch.randn(2, 768, generator=torch.Generator().manual_seed(0)) * 0.02
    return Style({"clip_l": vectors}, family="SD15", layers="late")


def test_sampling_sees_a_late_style_as_learning_did(small, rounding):
    """Apply InST Style and a host sampler's own call, against the denoiser that learns."""
    model, clip, _ = small
    style = late_style()
    positive = InSTStyleConditioning.execute(clip, style, "a house, *", 1.0).result[0]
    latent = {"samples": torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))}
    seen = host.sampling.invert(model, positive, latent, 0.6, 0).noise
    everywhere, without = (
        host.sampling.invert(model, host.text.style_conditioning(clip, "a house, *", style.vectors, strength), latent,
                             0.6, 0).noise for strength in (1.0, 0.0))
    near = max(1e-4, 4 * rounding(model))
    assert (seen.noise - everywhere.noise).abs().max() > near and (seen.noise - without.noise).abs().max() > near

    with (host.training.training_mode(), torch.no_grad(),
          host.training.training_session(model, clip, "a house, *", 2, "late") as session):
        sigma = torch.tensor([seen.sigma]).to(session.device)
        noise = fresh_noise(latent["samples"].shape, 0).to(session.device)
        z0 = model.model.process_latent_in(latent["samples"]).to(session.device)
        x = session.denoiser.noised(z0.clone(), noise.clone(), sigma)
        denoised = session.denoiser.denoised(x, sigma, session.text.encode(style.vectors))
        predicted = noise_between(session.denoiser.model_sampling, sigma, x, denoised)
    torch.testing.assert_close(predicted.cpu(), seen.noise.clone(), rtol=1e-3, atol=near)


def test_a_late_style_does_not_restrict_the_negative_prompt_beside_it(small):
    model, clip, _ = small
    negative = clip.encode_from_tokens_scheduled(clip.tokenize("blurry"))
    latent = {"samples": torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))}
    sigmas = host.sampling.sampling_sigmas(model, "simple", 1, 0.6)
    guided = []
    for style in (late_style(), Style(late_style().vectors, family="SD15")):
        positive = InSTStyleConditioning.execute(clip, style, "a house, *", 1.0).result[0]
        noise = host.sampling.invert(model, positive, latent, 0.6, 0).noise
        one, three = (host.sampling.sample(model, positive, negative, latent, noise, sigmas, cfg, "euler")["samples"]
                      for cfg in (1.0, 3.0))
        # One Euler step to 0 is the guided prediction: (3 - 1) / 2 more of positive over negative.
        guided.append(one - (three - one) / 2)
    plain = host.sampling.sample(model, negative, negative, latent, noise, sigmas, 1.0, "euler")["samples"]
    assert (guided[1] - plain).abs().max() < 1e-3  # with its own noise: the negative prediction itself


def test_learning_late_layers_lowers_the_loss_and_is_saved_as_such(small, tmp_path):
    model, clip, _ = small
    views = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    with host.training.training_mode():
        encoder = DirectEncoder(host.text.word_vectors(clip, "painting"), 2)
        with host.training.training_session(model, clip, "*", 2, "late") as session:
            learned = learn_style(session, encoder, Painting(views, views[:1]),
                                  Recipe(tokens=2, steps=10, rate=0.01))
    assert learned.kept < learned.checks[0].loss
    save_style(Style(learned.vectors, family="SD15", layers="late"), tmp_path / "late.safetensors", False)
    assert load_style(tmp_path / "late.safetensors").layers == "late"


def test_a_style_for_unknown_layers_is_refused(tmp_path):
    path = tmp_path / "odd.safetensors"
    save_style(Style({"clip_l": torch.ones(1, 768)}, layers="middle"), path)
    with pytest.raises(ValueError, match="odd.safetensors is for the layers 'middle'; .* knows all, late"):
        load_style(path)
