"""keep_structure of InST Sample: both ways on the host's own samplers, and that everything composes with them."""
from itertools import combinations

import comfy.model_patcher
import comfy_extras.nodes_post_processing  # noqa: F401  the host imports nodes_latent through it, in a circle
import pytest
import torch
from comfy_extras.nodes_context_windows import ContextWindowsManualNode
from comfy_extras.nodes_tomesd import TomePatchModel
from graph import close, content, differ, stock
from inst_pack.inst_core import host
from inst_pack.inst_core.host import structure
from inst_pack.inst_core.host.style_layers import restricted
from inst_pack.inst_core.structure import coarse, steps_held, with_coarse_layout
from inst_pack.nodes.inversion import InSTSample

import nodes as host_nodes

STEPS = 2


@pytest.fixture()
def wired(small):
    """MODEL, positive, negative."""
    model, clip, _ = small
    return model, stock(clip, "a house by the sea"), stock(clip, "")


def sample(model, positive, negative, latent=None, keep: float = 1.0, way: str = "queries", steps: int = STEPS,
           **more) -> torch.Tensor:
    return InSTSample.execute(model, positive, negative, latent or content(), steps, 3.0, "euler", "normal", 0.7, 0,
                              "matched", keep_structure=keep, keep_structure_by=way, **more).result[0]["samples"]


def counting(model, calls: list):
    """The MODEL, noting how many pictures each call of its network has."""
    def count(apply, call):
        calls.append(len(call["input"]))
        return apply(call["input"], call["timestep"], **call["c"])

    model = model.clone()
    model.set_model_unet_function_wrapper(count)
    return model


# ---- the layout ----

def test_low_frequencies_come_from_the_photograph_and_the_rest_does_not():
    photograph, painted = content(2, 8, 12)["samples"], content(2, 8, 12)["samples"].flip(0) * 2 + 3
    held = with_coarse_layout(painted, photograph)
    torch.testing.assert_close(held - coarse(photograph), painted - coarse(painted), atol=1e-4, rtol=1e-4)
    assert torch.equal(with_coarse_layout(photograph, photograph), photograph)
    flat = torch.full((1, 4, 1, 5, 7), 2.0)  # of a family whose latents have frames, at odd sides
    torch.testing.assert_close(coarse(flat), flat)


@pytest.mark.parametrize("keep, steps, held", [(0.0, 12, 0), (0.01, 12, 1), (0.5, 12, 6), (0.7, 10, 7), (1.0, 3, 3)])
def test_the_share_of_steps_is_rounded_up(keep, steps, held):
    assert steps_held(keep, steps) == held


def test_off_is_bit_equal_and_each_way_is_another(wired):
    model, positive, negative = wired
    found = [sample(*wired, way=way) for way in host.structure.WAYS]
    without = InSTSample.execute(model, positive, negative, content(), STEPS, 3.0, "euler", "normal", 0.7, 0,
                                 "matched").result[0]["samples"]
    assert torch.equal(sample(*wired, keep=0.0), without)  # and nothing of the others stays on the model
    assert all(differ(*pair) for pair in combinations([without, *found], 2))


def test_the_coarse_layout_is_held(wired):
    def apart(keep: float) -> float:
        return float((coarse(sample(*wired, keep=keep, way="coarse")) - coarse(content()["samples"])).abs().mean())

    assert apart(1.0) < 0.5 * apart(0.0)


def test_what_it_costs_in_calls(wired):
    """One picture for the inversion, two with guidance for a step, and as many again for each step but the first."""
    for way, more in (("coarse", 0), ("queries", 2), ("both", 2)):
        calls = []
        sample(counting(wired[0], calls), *wired[1:], way=way)
        assert sum(calls) == 1 + 2 * STEPS + more


def test_queries_of_the_decoder_are_the_photographs(wired, monkeypatch):
    """With the whole of them taken, each layer of the decoder asks for the picture what it asked for the photograph."""
    monkeypatch.setattr(structure, "SHARE_OF_QUERIES", 1.0)
    asked = []

    def spy(queries, keys, values, options):
        asked.append((options["block"][0], float(options["sigmas"][0]), queries.clone()))
        return queries, keys, values

    model = wired[0].clone()
    model.set_model_attn1_patch(spy)
    sample(model, *wired[1:])
    level = sorted({sigma for _, sigma, _ in asked})[-2]  # the second step: photograph, then picture
    of_level = [(block, queries) for block, sigma, queries in asked if sigma == level]
    half = len(of_level) // 2
    same = {"output": [], "other": []}
    for (block, first), (_, second) in zip(of_level[:half], of_level[half:], strict=True):
        same["output" if block == "output" else "other"].append(torch.equal(first, second))
    assert same["output"] and all(same["output"]) and not any(same["other"])


def test_the_photograph_is_asked_under_its_own_noise(wired):
    model, positive, negative = wired
    seen, sampling = [], model.get_model_object("model_sampling")

    def look(apply, call):
        seen.append((float(call["timestep"][0]), call["input"].clone()))
        return apply(call["input"], call["timestep"], **call["c"])

    watched, latent = model.clone(), content(2)
    watched.set_model_unet_function_wrapper(look)
    noise = host.sampling.invert(model, positive, latent, 0.7, 0).noise
    sample(watched, positive, negative, latent, noise=noise)
    sigma, asked = seen[-2]  # of the last step: the photographs, then the pictures
    expected = sampling.noise_scaling(torch.tensor([sigma]), noise.noise.clone(),
                                      model.model.process_latent_in(latent["samples"]))
    close(asked[:2].float().cpu(), expected, 1e-3)


# ---- what it composes with ----

def test_a_batch_is_its_pictures_in_context_windows_too(wired):
    model, positive, negative = wired
    whole = sample(*wired, content(2))
    parts = [sample(*wired, {"samples": content(2)["samples"][i], "batch_index": i}) for i in ([0], [1])]
    close(torch.cat(parts), whole, 1e-3)
    windowed = ContextWindowsManualNode.execute(model, 1, 0, "standard_static", 1, False, "flat", 0, False).result[0]
    close(sample(windowed, positive, negative, content(2)), whole, 1e-3)


def test_a_batch_that_the_host_cuts_up_for_memory(wired, monkeypatch):
    calls = []
    model = counting(wired[0], calls)
    together, joint = sample(model, *wired[1:]), len(calls)
    monkeypatch.setattr(comfy.model_patcher.ModelPatcher, "get_free_memory", lambda self, device: 0)
    apart = sample(model, *wired[1:])
    assert len(calls) - joint > joint  # positive and negative went one after the other
    close(apart, together, 1e-3)


@pytest.mark.parametrize("way", ["coarse", "both"])
def test_a_mask_keeps_the_outside_bit_equal(wired, way):
    latent, mask = content(), torch.zeros(1, 64, 64)
    mask[..., :32] = 1
    out = sample(*wired, {**latent, "noise_mask": mask}, way=way)
    assert torch.equal(out[..., 5:], latent["samples"][..., 5:]) and differ(out[..., :3], latent["samples"][..., :3])


def test_a_region_of_its_own_prompt(wired):
    """Conditioning (Set Area): parts of other sizes and places, each with the photograph's queries of its own part."""
    model, positive, negative = wired
    latent = content(1, 8, 16)

    def halves(left, right) -> list:
        parts = [host_nodes.ConditioningSetArea().append(c, 64, 64, x, 0, 1.0)[0] for c, x in ((left, 0), (right, 64))]
        return host_nodes.ConditioningCombine().combine(*parts)[0]

    out = sample(model, halves(positive, negative), halves(negative, negative), latent)
    seen = host.sampling.invert(model, halves(positive, negative), latent, 0.7, 0).noise.noise
    left = sample(model, positive, negative, {"samples": latent["samples"][..., :8]}, noise=_Given(seen[..., :8]))
    close(out[..., :8], left, 1e-3)


class _Given:
    """NOISE"""
    seed = 0

    def __init__(self, noise):
        self.noise = noise

    def generate_noise(self, latent):
        return self.noise


def test_lora_controlnet_merged_tokens_and_late_styles(wired, small, pictures):
    model, positive, negative = wired
    held = sample(*wired)
    with_lora = host_nodes.LoraLoader().load_lora(model, small[1], "inst-small-lora.safetensors", 1.0, 1.0)[0]
    assert differ(sample(with_lora, positive, negative), held)
    net = host_nodes.ControlNetLoader().load_controlnet("inst-small-controlnet.safetensors")[0]
    both = host_nodes.ControlNetApplyAdvanced().apply_controlnet(positive, negative, net, pictures[:1], 1.0, 0.0, 1.0)
    assert differ(sample(model, *both), held)
    assert differ(sample(model, restricted(positive, negative), negative), held)
    merged = TomePatchModel.execute(model, 0.5).result[0]
    assert torch.isfinite(sample(merged, positive, negative)).all()


# ---- what is refused ----

@pytest.fixture(scope="module")
def transformer(tmp_path_factory):
    """MODEL and CLIP of a small random Z-Image, which has no U-Net."""
    import shrunk_families

    with torch.inference_mode():
        return shrunk_families.open_shrunk(tmp_path_factory.mktemp("shrunk"), "z-image", [""])


def test_a_transformer_holds_the_coarse_layout_and_has_no_queries(transformer):
    model, clip = transformer
    positive, negative = stock(clip, "a house"), stock(clip, "")
    latent = {"samples": torch.randn(1, 16, 8, 8, generator=torch.Generator().manual_seed(0))}
    assert differ(sample(model, positive, negative, latent, way="coarse", steps=2),
                  sample(model, positive, negative, latent, way="coarse", steps=2, keep=0.0))
    calls = []
    for way in ("queries", "both"):
        with pytest.raises(ValueError, match=f"keep_structure_by is '{way}', which needs a U-Net .* choose 'coarse'"):
            sample(counting(model, calls), positive, negative, latent, way=way)
    assert not calls


@pytest.mark.parametrize("keep", [-0.1, 1.5, float("nan")])
def test_a_share_outside_its_range_is_refused(wired, keep):
    with pytest.raises(ValueError, match=f"keep_structure is {keep}; expected a number from 0 to 1"):
        sample(*wired, keep=keep)
