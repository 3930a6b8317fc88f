"""What people wire around the nodes: each thing changes the result, and only as it should."""
import comfy.samplers
import comfy_extras.nodes_post_processing  # noqa: F401  the host imports nodes_latent through it, in a circle
import pytest
import torch
from comfy_extras.nodes_context_windows import ContextWindowsManualNode
from comfy_extras.nodes_custom_sampler import CFGGuider, SamplerCustomAdvanced
from comfy_extras.nodes_freelunch import FreeU_V2
from comfy_extras.nodes_latent import LatentBatch, LatentBatchSeedBehavior
from comfy_extras.nodes_model_advanced import RescaleCFG
from comfy_extras.nodes_pag import PerturbedAttentionGuidance
from comfy_extras.nodes_rebatch import LatentRebatch
from graph import close, content, differ, random_style, stock
from inst_pack.inst_core import host
from inst_pack.inst_core.host.sampling import level_of
from inst_pack.inst_core.style import save_style
from inst_pack.nodes.color import InSTMatchColor
from inst_pack.nodes.inversion import InSTSample, InSTStochasticInvert
from inst_pack.nodes.style import InSTStyleConditioning

import nodes as host_nodes

STRENGTH, LORA, CONTROLNET = 0.7, "inst-small-lora.safetensors", "inst-small-controlnet.safetensors"


def apply(clip, seed: int = 0) -> list:
    return InSTStyleConditioning.execute(clip, random_style(seed=seed), "a house, *", 1.0).result[0]


def invert(model, positive, latent=None):
    """The NOISE."""
    return InSTStochasticInvert.execute(model, positive, latent or content(), STRENGTH, 0, "matched").result[0]


def seen(model, positive, latent=None) -> torch.Tensor:
    """The predicted noise."""
    return invert(model, positive, latent).noise


def sample(model, positive, negative, latent=None, cfg: float = 3.0, steps: int = 2, sampler: str = "euler",
           scheduler: str = "normal", **more) -> torch.Tensor:
    return InSTSample.execute(model, positive, negative, latent or content(), steps, cfg, sampler, scheduler, STRENGTH,
                              0, "matched", **more).result[0]["samples"]


@pytest.fixture()
def wired(small):
    """MODEL, CLIP, styled positive, negative."""
    model, clip, _ = small
    return model, clip, apply(clip), stock(clip, "")


# ---- LoRA ----

def test_several_loras_add_up_in_any_order(wired, rounding):
    model, clip, positive, _ = wired

    def with_loras(*strengths: float):
        patched = model
        for strength in strengths:
            patched = host_nodes.LoraLoader().load_lora(patched, clip, LORA, strength, 0.0)[0]
        return seen(patched, positive)

    near = max(1e-4, 4 * rounding(model))
    close(with_loras(0.75, 0.5), with_loras(0.5, 0.75), near)
    close(with_loras(0.75, 0.5), with_loras(1.25), near)
    assert differ(with_loras(0.75, 0.5), with_loras(0.75), max(1e-3, near))
    assert torch.equal(with_loras(0.0), with_loras())


def test_a_lora_added_after_learning_changes_style_and_picture(wired):
    """On the text encoder it changes what the style says, on the denoiser what it makes of that."""
    model, clip, positive, negative = wired
    patched_model, patched_clip = host_nodes.LoraLoader().load_lora(model, clip, LORA, 1.0, 1.0)
    assert differ(apply(patched_clip)[0][0], positive[0][0])
    only_sampling = sample(patched_model, positive, negative, noise=invert(model, positive))
    assert differ(only_sampling, sample(model, positive, negative))
    assert differ(sample(patched_model, positive, negative), only_sampling, 1e-4)


# ---- ControlNet ----

@pytest.fixture()
def controlled(wired, pictures):
    """[positive, negative] with a ControlNet from ``start`` to ``end``."""
    _, _, positive, negative = wired
    net = host_nodes.ControlNetLoader().load_controlnet(CONTROLNET)[0]
    return lambda start, end: host_nodes.ControlNetApplyAdvanced().apply_controlnet(
        positive, negative, net, pictures[:1], 1.0, start, end)


def test_controlnet_acts_in_an_inversion_within_its_percentages(wired, controlled):
    """Strength 0.7 inverts at 30 percent of the way."""
    model, _, positive, _ = wired

    def noise(start: float, end: float) -> torch.Tensor:
        return seen(model, controlled(start, end)[0])

    plain, whole = seen(model, positive), noise(0.0, 1.0)
    assert differ(whole, plain)
    assert torch.equal(noise(0.0, 0.0), plain)
    assert torch.equal(noise(0.0, 0.29), plain) and torch.equal(noise(0.31, 1.0), plain)
    assert torch.equal(noise(0.0, 0.31), whole) and torch.equal(noise(0.29, 1.0), whole)


def test_controlnet_acts_in_sampling_within_its_percentages(wired, controlled):
    """Two steps from strength 0.7, the first at 30 percent of the way and the second near its end."""
    model, _, positive, negative = wired
    noise = invert(model, positive)

    def picture(start: float, end: float) -> torch.Tensor:
        return sample(model, *controlled(start, end), noise=noise)

    plain, whole = sample(model, positive, negative, noise=noise), picture(0.0, 1.0)
    first, second = picture(0.0, 0.5), picture(0.5, 1.0)
    assert torch.equal(picture(0.0, 0.29), plain) and torch.equal(picture(1.0, 1.0), plain)
    assert differ(first, plain) and differ(second, plain) and differ(first, second)
    assert differ(first, whole) and differ(second, whole)


# ---- masks and regions ----

def left_half(value_left: float = 1.0) -> torch.Tensor:
    mask = torch.full((1, 64, 128), 1 - value_left)
    mask[..., :64] = value_left
    return mask


def test_a_masked_latent_is_kept_outside_by_stock_samplers_too(wired):
    model, _, positive, negative = wired
    latent = host_nodes.SetLatentNoiseMask().set_mask(content(1, 8, 16), left_half())[0]
    sigmas = host.sampling.sampling_sigmas(model, "normal", 2, STRENGTH)
    guider = CFGGuider.execute(model, positive, negative, 3.0).result[0]
    out = SamplerCustomAdvanced.execute(invert(model, positive, latent), guider, comfy.samplers.sampler_object("euler"),
                                        sigmas, latent).result[0]["samples"]
    close(out[..., 9:], latent["samples"][..., 9:])
    assert differ(out[..., :8], latent["samples"][..., :8])
    own = sample(model, positive, negative, latent)
    assert torch.equal(own[..., 9:], latent["samples"][..., 9:])
    close(own[..., :8], out[..., :8])


def test_an_inpainting_latent(small, pictures):
    """VAE Encode (for Inpainting) greys the masked part out and sets the mask."""
    model, clip, vae = small
    mask = torch.zeros(1, 96, 128)
    mask[..., :48] = 1
    latent = host_nodes.VAEEncodeForInpaint().encode(vae, pictures[:1], mask, grow_mask_by=0)[0]
    out = sample(model, apply(clip), stock(clip, ""), latent)
    assert torch.equal(out[..., 7:], latent["samples"][..., 7:])
    assert differ(out[..., :6], latent["samples"][..., :6])


def test_colours_outside_a_mask_stay_through_matching_and_sampling(wired):
    """Set Latent Noise Mask -> Match Latent Color -> InST Sample: outside it is the photograph's own latent."""
    model, _, positive, negative = wired
    photograph, painting = content(2, 8, 16), {"samples": content(1, 6, 6)["samples"] * 2 + 1}
    masked = host_nodes.SetLatentNoiseMask().set_mask(photograph, left_half())[0]
    matched = InSTMatchColor.execute(masked, painting, "mk", 1.0).result[0]
    assert torch.equal(matched["samples"][..., 9:], photograph["samples"][..., 9:])
    assert torch.equal(matched["samples"][..., :7], InSTMatchColor.execute(photograph, painting, "mk",
                                                                          1.0).result[0]["samples"][..., :7])
    out = sample(model, positive, negative, matched)
    assert torch.equal(out[..., 9:], photograph["samples"][..., 9:])
    assert differ(out[..., :8], photograph["samples"][..., :8])


@pytest.mark.parametrize("kind", ["area", "mask"])
def test_a_style_in_one_region_only(wired, kind):
    """Conditioning (Set Area) or (Set Mask), then Combine: the other region is as without the style."""
    model, clip, positive, _ = wired
    plain, latent = stock(clip, "a house, "), content(1, 8, 16)

    def part(conditioning, x: int) -> list:
        if kind == "area":
            return host_nodes.ConditioningSetArea().append(conditioning, 64, 64, x, 0, 1.0)[0]
        mask = left_half(1.0 if x == 0 else 0.0)
        return host_nodes.ConditioningSetMask().append(conditioning, mask, "default", 1.0)[0]

    def combined(left, right) -> torch.Tensor:
        both = host_nodes.ConditioningCombine().combine(part(left, 0), part(right, 64))[0]
        return seen(model, both, latent)

    mixed, without = combined(positive, plain), combined(plain, plain)
    assert differ(mixed[..., :8], without[..., :8])
    close(mixed[..., 8:], without[..., 8:])
    close(combined(positive, positive)[..., :8], mixed[..., :8])


# ---- styles and prompts ----

def test_two_styles_combined_are_the_mean_of_their_predictions(wired):
    model, clip, _, _ = wired
    one, two = apply(clip, seed=1), apply(clip, seed=2)
    both = host_nodes.ConditioningCombine().combine(one, two)[0]
    assert differ(seen(model, one), seen(model, two))
    close(seen(model, both), (seen(model, one) + seen(model, two)) / 2)


def test_the_negative_prompt_counts_with_guidance_and_not_without(wired):
    model, clip, positive, empty = wired
    negative = stock(clip, "blurry, a car")
    assert torch.equal(sample(model, positive, negative, cfg=1.0), sample(model, positive, empty, cfg=1.0))
    assert differ(sample(model, positive, negative), sample(model, positive, empty))
    assert differ(sample(model, empty, positive), sample(model, empty, empty))  # a style to stay away from


def test_clip_skip(wired):
    """CLIP Set Last Layer: the style goes through the same layers as the words."""
    model, clip, positive, _ = wired
    skipped = host_nodes.CLIPSetLastLayer().set_last_layer(clip, -2)[0]
    save_style(random_style(), host.files.style_folders()[0] / "skipped.safetensors")
    found = apply(skipped)
    assert differ(found[0][0], positive[0][0])
    assert torch.equal(found[0][0], stock(skipped, "a house,  embedding:skipped ")[0][0])
    with host.training.training_mode():
        contexts = []
        for c in (clip, skipped):
            with host.training.training_session(model, c, "a house, *", 2) as session:
                contexts.append(session.text.encode(random_style().vectors).context.detach())
    close(contexts[0], positive[0][0])
    close(contexts[1], found[0][0])


# ---- batches ----

def test_every_frame_has_its_own_inversion_noise(wired):
    model, _, positive, negative = wired
    still = {"samples": content()["samples"].repeat(4, 1, 1, 1)}
    noise = invert(model, positive, still)
    assert all(differ(noise.noise[i], noise.noise[i + 1]) for i in range(3))
    whole = sample(model, positive, negative, still, noise=noise)
    part = host_nodes.LatentFromBatch().frombatch(still, 2, 2)[0]
    close(sample(model, positive, negative, part, noise=noise), whole[2:])
    close(sample(model, positive, negative, part), whole[2:])  # inverted apart: the same, too


def from_batch(latent: dict, start: int, length: int) -> dict:
    return host_nodes.LatentFromBatch().frombatch(latent, start, length)[0]


def rebatched(latent: dict, size: int) -> list[dict]:
    return LatentRebatch.execute([latent], [size]).result[0]


def joined(first: dict, second: dict) -> dict:
    return LatentBatch.execute(first, second).result[0]


def repeated(latent: dict, amount: int) -> dict:
    return host_nodes.RepeatLatentBatch().repeat(latent, amount)[0]


def fixed(latent: dict) -> dict:
    return LatentBatchSeedBehavior.execute(latent, "fixed").result[0]


# Stock nodes that regroup four photographs; which of them come out.
REGROUPED = {
    "part": (lambda four: from_batch(four, 1, 3), [1, 2, 3]),
    "part of a part": (lambda four: from_batch(from_batch(four, 1, 3), 1, 2), [2, 3]),
    "rebatched": (lambda four: rebatched(four, 3)[-1], [3]),
    "joined, swapped": (lambda four: joined(from_batch(four, 3, 1), from_batch(four, 1, 1)), [3, 1]),
    "item repeated": (lambda four: repeated(from_batch(four, 2, 1), 3), [2, 2, 2]),
    "all repeated": (lambda four: repeated(four, 2), [0, 1, 2, 3, 0, 1, 2, 3]),
    "fixed": (fixed, [0, 1, 2, 3]),
    "fixed, then a part": (lambda four: from_batch(fixed(four), 2, 2), [2, 3]),
    "two without index": (lambda four: joined(*({"samples": four["samples"][i:i + 1]} for i in (0, 2))), [0, 2]),
}


@pytest.fixture()
def quick(small):
    """The small MODEL without its network, and a conditioning."""
    model = small[0].clone()
    model.set_model_unet_function_wrapper(dull)
    return model, [[torch.zeros(1, 77, 768), {}]]


@pytest.mark.parametrize("regroup, which", REGROUPED.values(), ids=REGROUPED)
def test_stock_batch_nodes_keep_each_photograph_its_noise(quick, regroup, which):
    """Between the inversion and the sampler."""
    model, prompt = quick
    four = content(4)
    noise = invert(model, prompt, four)
    latent = regroup(four)
    assert torch.equal(latent["samples"], four["samples"][which])
    assert torch.equal(noise.generate_noise(latent), noise.noise[which])
    whole = sample(model, prompt, prompt, four, noise=noise)
    close(sample(model, prompt, prompt, latent, noise=noise), whole[which])


@pytest.mark.parametrize("regroup, which", REGROUPED.values(), ids=REGROUPED)
def test_an_inversion_of_regrouped_photographs_agrees_with_itself(quick, regroup, which):
    """Both outputs of Stochastic Invert Latent start the sampler at the same place, and so does InST Sample alone."""
    model, prompt = quick
    latent = regroup(content(4))
    noise, noised = InSTStochasticInvert.execute(model, prompt, latent, STRENGTH, 0, "matched").result
    sampling, format_ = model.get_model_object("model_sampling"), model.model
    start = sampling.noise_scaling(torch.tensor(noise.sigma), noise.generate_noise(latent),
                                   format_.process_latent_in(latent["samples"]))
    close(start, format_.process_latent_in(noised["samples"]))
    assert torch.equal(sample(model, prompt, prompt, latent), sample(model, prompt, prompt, latent, noise=noise))


def test_pieces_sampled_apart_equal_the_whole(quick):
    """Five photographs as 3 + 2, each piece inverted by InST Sample itself: as with stock samplers."""
    model, prompt = quick
    whole = sample(model, prompt, prompt, content(5))
    close(torch.cat([sample(model, prompt, prompt, piece) for piece in rebatched(content(5), 3)]), whole)


def test_context_windows_show_each_frame_its_own_noise(quick):
    """Frames in windows of two, with and without the noise mask of a part: the same as all at once."""
    model, prompt = quick
    frames = content(4)
    noise = invert(model, prompt, frames)
    windowed = ContextWindowsManualNode.execute(model, 2, 1, "standard_static", 1, False, "flat", 0, False).result[0]
    close(sample(windowed, prompt, prompt, frames, noise=noise), sample(model, prompt, prompt, frames, noise=noise))


def test_a_photograph_that_was_not_inverted_is_an_error(quick):
    model, prompt = quick
    noise = invert(model, prompt, from_batch(content(4), 0, 2))
    with pytest.raises(ValueError, match=r"inverted from latents \[0, 1\].*asks for latent 3, which is none of them"):
        sample(model, prompt, prompt, from_batch(content(4), 3, 1), noise=noise)


# ---- model patches ----

def test_a_patch_of_the_network_acts_everywhere(wired, monkeypatch):
    """FreeU scales decoder features; it finds them by their width, which the small U-Net has another of."""
    model, _, positive, negative = wired
    monkeypatch.setitem(model.model.model_config.unet_config, "model_channels", 160)
    patched = FreeU_V2.execute(model, 1.3, 1.4, 0.9, 0.2).result[0]
    assert differ(seen(patched, positive), seen(model, positive))
    noise = invert(model, positive)
    assert differ(sample(patched, positive, negative, noise=noise), sample(model, positive, negative, noise=noise))


@pytest.mark.parametrize("patch", [lambda model: PerturbedAttentionGuidance.execute(model, 3.0).result[0],
                                   lambda model: RescaleCFG().patch(model, 1.0)[0]], ids=["PAG", "RescaleCFG"])
def test_a_patch_of_the_guidance_acts_on_sampling_only(wired, patch):
    """An inversion has no guidance."""
    model, _, positive, negative = wired
    patched = patch(model)
    assert torch.equal(seen(patched, positive), seen(model, positive))
    noise = invert(model, positive)
    assert differ(sample(patched, positive, negative, noise=noise), sample(model, positive, negative, noise=noise))
    assert not {"sampler_cfg_function", "sampler_post_cfg_function"} & set(model.model_options)


# ---- samplers and schedulers ----

@pytest.mark.parametrize("steps", [1, 4, 20])
@pytest.mark.parametrize("scheduler", comfy.samplers.KSampler.SCHEDULERS)
def test_every_scheduler_starts_at_the_strength(small, scheduler, steps):
    model = small[0]
    for sampler in ("euler", next(iter(comfy.samplers.KSampler.DISCARD_PENULTIMATE_SIGMA_SAMPLERS))):
        for strength in (0.2, 0.55, 0.9):
            sigmas = host.sampling.sampling_sigmas(model, scheduler, steps, strength, sampler)
            assert float(sigmas[0]) == pytest.approx(float(level_of(model, strength)))
            assert len(sigmas) == steps + 1 and sigmas[-1] == 0 and (sigmas.diff() < 0).all()


def dull(apply, call) -> torch.Tensor:
    """Stands for the network: a denoiser that is nothing but a number."""
    return call["input"] * (0.5 / (1 + call["timestep"].view(-1, 1, 1, 1)))


@pytest.mark.parametrize("sampler", comfy.samplers.KSampler.SAMPLERS)
def test_every_sampler_on_every_scheduler(quick, sampler):
    """The whole table: the host's and our own arithmetic, without the network."""
    model, prompt = quick
    noise = invert(model, prompt)
    for scheduler in comfy.samplers.KSampler.SCHEDULERS:
        out = sample(model, prompt, prompt, sampler=sampler, scheduler=scheduler, noise=noise)
        assert torch.isfinite(out).all() and differ(out, content()["samples"]), scheduler
