"""StyleShot as users meet it: released files in models/style_transfer, stock samplers, CFG, LoRA and ControlNets."""
import json
import mmap
from collections import OrderedDict
from pathlib import Path
from types import SimpleNamespace

import comfy.controlnet
import comfy.memory_management
import comfy.model_management
import comfy.ops
import comfy.sd
import comfy.supported_models
import comfy.utils
import folder_paths
import full_size_models
import pytest
import small_styleshot
import torch
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from inst_pack.inst_core import host
from inst_pack.inst_core.host import styleshot as on_host
from inst_pack.inst_core.methods import styleshot as methods
from inst_pack.inst_core.methods import styleshot_files
from inst_pack.inst_core.methods.styleshot import LEVELS, KeyValue
from inst_pack.inst_core.state_dicts import read_weights
from inst_pack.nodes import styleshot as nodes
from inst_pack.nodes.inversion import InSTSample
from inst_pack.nodes.styleshot import InSTApplyStyleShot, InSTLoadStyleShot
from safetensors.torch import load_file

import nodes as host_nodes

ATOL = 5e-5  # of the golden data
ENCODER, ADAPTER = (Path(name).name for name in small_styleshot.FILES)
CFG, STEPS = 3.0, 2


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The folder style_transfer with the small StyleShot."""
    models = tmp_path_factory.mktemp("styleshot")
    with torch.inference_mode():
        small_styleshot.write(models)
    return models / "style_transfer"


@pytest.fixture(scope="module")
def networks(made):
    """The STYLESHOT socket; its networks are made once for all tests."""
    with torch.inference_mode():
        return host.styleshot.StyleShot({path.name: read_weights(path, mapped=True) for path in made.iterdir()})


@pytest.fixture()
def write(folders):
    """Puts a torch file into models/style_transfer and returns its name; deleted afterwards, some are large."""
    folder, paths = folders / "models" / "style_transfer", []

    def write(name: str, weights: dict) -> str:
        folder.mkdir(parents=True, exist_ok=True)
        paths.append(folder / name)
        torch.save(OrderedDict(weights), paths[-1])
        folder_paths.filename_list_cache.clear()
        return name

    yield write
    for path in paths:
        path.unlink()


@pytest.fixture(scope="module")
def prompts(loaded):
    clip = loaded[1]
    with torch.inference_mode():
        return [clip.encode_from_tokens_scheduled(clip.tokenize(text)) for text in ("a house by the sea", "ugly")]


@pytest.fixture(scope="module")
def styles():
    """Three different style pictures, IMAGE (3, 40, 48, 3)."""
    y, x = torch.meshgrid(torch.linspace(0, 1, 40), torch.linspace(0, 1, 48), indexing="ij")
    waves = [torch.stack([(a * x).sin(), (b * y).cos(), (c * x * y).sin()], -1)
             for a, b, c in ((3, 9, 20), (50, 30, 1), (0, 1, 90))]
    return torch.stack(waves) / 2 + 0.5


def apply(model, prompts, networks, style, weight=1.0, **options):
    return InSTApplyStyleShot.execute(model, *prompts, networks, style, weight, **options).result


def sample(model, positive, negative, places=(0,), cfg=CFG):
    """KSampler; ``places`` are the samples' numbers in a batch, which decide their noise."""
    latent = {"samples": torch.zeros(len(places), 4, 8, 8), "batch_index": list(places)}
    return host_nodes.common_ksampler(model, 0, STEPS, cfg, "euler", "normal", positive, negative, latent)[0]["samples"]


def differ(a, b) -> bool:
    return bool((a - b).abs().mean() > 1e-2)


# ---- files ----

def test_official_numbers_through_files_and_nodes(write, golden):
    data = golden("styleshot")
    attention = data.state_dict("ip_attn#320")
    adapters = {f"adapter_modules.1.to_{x}_ip.weight": attention[f"processor.to_{x}_ip.weight"] for x in "kv"}
    names = (write("style_aware_encoder.bin", data.state_dict("style_aware_encoder.bin#tiny")),
             write("ip.bin", data.state_dict("ip.bin#proj") | adapters | {"unet.conv_in.bias": torch.zeros(320)}),
             write("ControlNetHED.pth", data.state_dict("ControlNetHED.pth")))
    assert InSTLoadStyleShot.validate_inputs(*names) is True
    loaded, = InSTLoadStyleShot.execute(*names).result

    for case, height, width in (("sq512", 512, 512), ("resize300x400", 300, 400)):
        style = loaded.encode(data.image(f"style_{case}", height, width))
        torch.testing.assert_close(style.tokens.style, data.tensor(f"{case}/style_tokens"), atol=ATOL, rtol=0)
        torch.testing.assert_close(style.tokens.none, data.tensor(f"{case}/uncond_tokens"), atol=ATOL, rtol=0)
    encoder, square = loaded._encoder.model, data.image("style_sq512", 512, 512)
    for level, vectors in zip(LEVELS, encoder.encode_patches(methods.multi_scale_patches(square)), strict=True):
        torch.testing.assert_close(vectors[0], data.tensor(f"sq512/cnn_{level}"), atol=ATOL, rtol=0)
    torch.testing.assert_close(encoder(square), data.tensor("sq512/style_embeds"), atol=ATOL, rtol=0)

    contours = nodes._control_map(loaded, data.tensor("hed/in_u8")[None] / 255, nodes.PHOTOGRAPH)
    expected = data.tensor("hed/contour_u8_threshold200")[None, ..., None] > 0
    assert contours.shape == (1, 96, 128, 3) and (contours.bool() != expected).float().mean() <= 1e-3

    hidden, context = data.tensor("ipattn320/hidden"), data.tensor("ipattn320/context_text77_style6")
    key, value = (context[:, :77] @ attention[f"to_{x}.weight"].T for x in "kv")
    pairs = loaded._adapter.model.keys_values(context[:, 77:])
    options = {"n_heads": 8, "attn_precision": None, "cond_or_uncond": [1, 0]}
    style, none = (KeyValue(*(x[row:row + 1] for x in pairs[0])) for row in (1, 0))
    for weight in (1.0, 0.5):
        patch = on_host.StyleAttention(style, none, weight)
        out = patch(hidden @ attention["to_q.weight"].T, key, value, options)
        out = out @ attention["to_out.0.weight"].T + attention["to_out.0.bias"]
        torch.testing.assert_close(out, data.tensor(f"ipattn320/out_scale{weight}"), atol=ATOL, rtol=0)


@pytest.fixture(scope="module")
def official(golden):
    """Released files without their numbers."""
    manifest = json.loads((golden("styleshot").folder / "manifest_official_full.json").read_text())
    with torch.inference_mode():
        return {name: {key: torch.zeros(1).expand(shape) for key, shape in shapes.items()}
                for name, shapes in manifest.items()}


def test_official_files_fit_sd15_and_not_the_small_model(official, small):
    released = host.styleshot.StyleShot(official)
    assert len(released._controlnet_weights) == 340
    with pytest.raises(ValueError, match="made for a U-Net with 16 cross-attentions .* connected model has 7"):
        host.styleshot.check_styleshot(small[0], released)
    with torch.device("meta"):
        unet = UNetModel(**full_size_models.SD15, operations=comfy.ops.disable_weight_init)
    places = on_host.cross_attentions(unet)
    assert tuple(place.width for place in places) == released.widths
    assert [place[:2] for place in places] == [
        *(("input", n) for n in (1, 2, 4, 5, 7, 8)), *(("output", n) for n in range(3, 12)), ("middle", 0)]


@pytest.mark.parametrize("key", ["controlnet.mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight",
                                 "controlnet.controlnet_cond_embedding.blocks.5.bias",
                                 "controlnet.controlnet_down_blocks.11.weight",
                                 "controlnet.down_blocks.0.attentions.1.proj_in.weight",
                                 "controlnet.down_blocks.3.resnets.1.conv1.bias"])
def test_an_incomplete_controlnet_names_what_is_missing(official, key):
    damaged = {k: v for k, v in official["ip.bin"].items() if k != key}
    with pytest.raises(ValueError, match=f"ControlNet .* is incomplete: 1 tensors .*: {key}"):
        host.styleshot.StyleShot(official | {"ip.bin": damaged})


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux to ask for the memory in use")
def test_tensors_stay_in_the_files(write, made):
    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * mmap.PAGESIZE

    weights = load_file(made / ADAPTER)
    path = Path(host.files.model_path(host.files.TRANSFER_FOLDER, write("ip.bin", weights)))
    before = resident()
    opened = read_weights(path, mapped=True)
    release = host.styleshot.StyleShot({ADAPTER: opened, ENCODER: read_weights(made / ENCODER, mapped=True)})
    assert resident() - before < 2**23 < sum(tensor.nbytes for tensor in opened.values())
    assert release.widths and opened.keys() == weights.keys()
    assert all(torch.equal(opened[key], tensor) for key, tensor in weights.items())


def test_swapped_files_load_and_others_are_refused(write, made, folders):
    folder_paths.add_model_folder_path("style_transfer", str(made))
    folder_paths.filename_list_cache.clear()
    assert InSTLoadStyleShot.execute(ADAPTER, ENCODER).result[0].widths == (320,) * 7
    with pytest.raises(ValueError, match=r"ip\.bin \(style adapter\) is missing"):
        InSTLoadStyleShot.execute(ENCODER, ENCODER)
    with pytest.raises(ValueError, match=r"other\.pt is not a file of StyleShot"):
        InSTLoadStyleShot.execute(ENCODER, write("other.pt", {"x": torch.zeros(1)}))
    with pytest.raises(ValueError, match=r"nested\.pt is not opened: it does not hold a plain"):
        InSTLoadStyleShot.execute(ENCODER, write("nested.pt", {"ip": {"x": torch.zeros(1)}, "more": torch.zeros(1)}))
    Path(folders, "models/style_transfer/broken.bin").write_bytes(b"not a weight file")
    with pytest.raises(ValueError, match=r"broken\.bin is not opened: it is neither"):
        InSTLoadStyleShot.execute(ENCODER, "broken.bin")
    assert "gone.bin" in InSTLoadStyleShot.validate_inputs(ENCODER, "gone.bin")


# ---- style ----

def test_style_and_weight_change_the_picture(small, prompts, networks, styles):
    plain = sample(small[0], *prompts)
    once, again, other, half, shuffled = (sample(*apply(small[0], prompts, networks, *options[:2], **options[2]))
                                          for options in ((styles[:1], 1.0, {}), (styles[:1], 1.0, {"patch_seed": 3}),
                                                          (styles[1:2], 1.0, {}), (styles[:1], 0.5, {}),
                                                          (styles[:1], 1.0, {"patch_order": nodes.SHUFFLED})))
    assert torch.equal(once, again)
    assert all(differ(once, x) for x in (plain, other, half)) and not torch.equal(once, shuffled)


def test_weight_zero_is_no_styleshot(small, prompts, networks, styles):
    plain = sample(small[0], *prompts)
    model, positive, negative = apply(small[0], prompts, networks, styles[:1], 0.0)
    assert torch.equal(sample(model, positive, negative), plain)
    options = {"control_image": styles[:1], "control_strength": 0.0}
    assert torch.equal(sample(*apply(small[0], prompts, networks, styles[:1], 0.0, **options)), plain)
    controlled = apply(small[0], prompts, networks, styles[:1], 0.0, control_image=styles[:1])
    assert differ(sample(*controlled), plain) and "patches_replace" not in controlled[0].model_options[
        "transformer_options"]
    assert torch.equal(sample(small[0], *prompts), plain)


def test_each_half_of_guidance_gets_its_own_tokens(small, prompts, networks, styles):
    style = networks.encode(styles[:1].movedim(-1, 1))

    def halves(seen):
        """(positive, negative) predictions of the first step."""
        found = []
        model = on_host.styled_model(small[0], seen, 1.0) if seen else small[0].clone()
        model.set_model_sampler_cfg_function(
            lambda x: found.append((x["cond"], x["uncond"])) or x["uncond"] + CFG * (x["cond"] - x["uncond"]))
        sample(model, *prompts)
        return found[0]

    styled, none, plain = halves(style), halves(style._replace(style=style.none)), halves(None)
    assert torch.equal(styled[1], none[1]) and differ(styled[1], plain[1])
    assert differ(styled[0], none[0]) and differ(styled[0], plain[0])


def test_a_batch_equals_singles(small, prompts, networks, styles, rounding):
    """Two styles for two latents, with two control images."""
    def run(rows):
        result = apply(small[0], prompts, networks, styles[rows], control_image=styles[rows])
        return sample(*result, places=range(3)[rows])

    both = run(slice(0, 2))
    # Noise at the highest level is multiplied by 80 on its way to the latent.
    near = max(1e-3, 200 * rounding(small[0]))
    torch.testing.assert_close(both, torch.cat([run(slice(0, 1)), run(slice(1, 2))]), atol=near, rtol=1e-4)
    assert differ(both[0], both[1]) and (both[0] - both[1]).abs().max() > near


def test_one_style_serves_a_batch_and_other_numbers_are_refused(small, prompts, networks, styles):
    result = apply(small[0], prompts, networks, styles[:1])
    three, last = sample(*result, places=(0, 1, 2)), sample(*result, places=(2,))
    torch.testing.assert_close(three[2:], last, atol=1e-3, rtol=1e-4)
    with pytest.raises(ValueError, match="style has 3 pictures, and 2 latents are sampled at once"):
        sample(*apply(small[0], prompts, networks, styles), places=(0, 1))


def test_inst_sample_and_loras_work_with_it(small, prompts, networks, styles):
    model, clip, _ = small
    content = {"samples": torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))}

    def inst(model, positive, negative):
        return InSTSample.execute(model, positive, negative, content, 2, CFG, "euler", "normal", 0.7, 0,
                                  "matched").result[0]["samples"]

    styled = apply(model, prompts, networks, styles[:1])
    plain = inst(*styled)
    assert differ(inst(model, *prompts), plain)
    lora = comfy.utils.load_torch_file(folder_paths.get_full_path("loras", "inst-small-lora.safetensors"))
    before = apply(comfy.sd.load_lora_for_models(model, clip, lora, 1.0, 0.0)[0], prompts, networks, styles[:1])
    after = comfy.sd.load_lora_for_models(styled[0], clip, lora, 1.0, 0.0)[0]
    assert torch.equal(inst(*before), inst(after, *prompts)) and differ(inst(*before), plain)


def test_attention_of_other_nodes_is_kept(small, prompts, networks, styles):
    """Another node's replacement still replaces the text's attention, whichever address it took."""
    plain, results = sample(*apply(small[0], prompts, networks, styles[:1])), []
    for index in (None, 0):
        model, calls = small[0].clone(), []
        model.set_model_attn2_replace(lambda q, k, v, options, calls=calls: calls.append(1) or q, "middle", 0, index)
        replaced = sample(model, *prompts)
        del calls[:]
        results.append(sample(*apply(model, prompts, networks, styles[:1])))
        assert len(calls) == STEPS and differ(results[-1], replaced) and differ(results[-1], plain)
    assert torch.equal(*results)


def test_patches_follow_the_models_device_and_not_its_number_format():
    pair = KeyValue(torch.zeros(1, 6, 8), torch.zeros(1, 6, 8))
    patch = on_host.StyleAttention(pair, pair, 1.0, on_host.StyleAttention(pair, pair, 1.0))
    assert patch.to(torch.float16).style.key.dtype == torch.float32
    moved = patch.to(torch.device("meta"))
    assert {x.device.type for p in (moved, moved.previous) for x in (*p.style, *p.none)} == {"meta"}


def test_networks_are_managed_by_the_host(networks, styles):
    networks.encode(styles[:1].movedim(-1, 1))
    loaded = [entry.model for entry in comfy.model_management.current_loaded_models]
    assert networks._encoder in loaded and networks._adapter in loaded
    assert {p.dtype for p in networks._encoder.model.parameters()} == {torch.float16}  # as stored


def test_networks_are_made_of_layers_that_the_host_fills_late(networks, monkeypatch):
    """As with dynamic VRAM: layers have no weights before a file is loaded."""
    monkeypatch.setattr(comfy.memory_management, "aimdo_enabled", True)
    for make, weights in ((styleshot_files.style_encoder, networks._release.encoder),
                          (styleshot_files.style_adapter, networks._release.adapter)):
        made = make(networks._release, comfy.ops.manual_cast).state_dict()
        assert made.keys() == weights.keys() and all(torch.equal(made[key], weights[key]) for key in weights)


# ---- content ----

def test_the_control_image_is_followed_between_start_and_end(small, prompts, networks, styles):
    def run(**options):
        return sample(*apply(small[0], prompts, networks, styles[:1], **options))

    plain, control = run(), run(control_image=styles[1:2])
    assert differ(plain, control) and differ(control, run(control_image=styles[2:]))
    assert differ(control, run(control_image=styles[1:2], control_strength=0.5))
    assert differ(control, run(control_image=styles[1:2], control_type=nodes.INVERTED))
    late = run(control_image=styles[1:2], start_percent=0.5)
    assert differ(late, control) and differ(late, plain)
    with pytest.raises(ValueError, match=r"start_percent is 0\.5 and end_percent 0\.5"):
        run(control_image=styles[1:2], start_percent=0.5, end_percent=0.5)


def test_inverted_maps_are_the_same_as_maps_inverted_by_hand(networks, styles):
    swapped = nodes._control_map(networks, 1 - styles, nodes.INVERTED)
    torch.testing.assert_close(swapped, nodes._control_map(networks, styles, nodes.CONTROL_MAP))


def test_the_controlnet_sees_style_tokens_and_others_see_text(small, prompts, networks, styles):
    """With a stock ControlNet before it in the chain, and with one behind it."""
    stock = comfy.controlnet.load_controlnet(folder_paths.get_full_path("controlnet",
                                                                        "inst-small-controlnet.safetensors"))
    apply_stock = host_nodes.ControlNetApplyAdvanced().apply_controlnet
    tokens = networks.encode(styles[:1].movedim(-1, 1)).tokens
    text = [conditioning[0][0] for conditioning in prompts]
    seen = {"style": [], "stock": []}
    watched = [(networks._controlnet.control_model, "style"), (stock.control_model, "stock")]
    hooks = [network.register_forward_pre_hook(lambda _, args, kwargs, name=name: seen[name].append(kwargs["context"]),
                                               with_kwargs=True) for network, name in watched]
    try:
        before = apply(small[0], apply_stock(*prompts, stock, styles[2:], 1.0, 0.0, 1.0), networks, styles[:1],
                       control_image=styles[1:2])
        model, *styled = apply(small[0], prompts, networks, styles[:1], control_image=styles[1:2])
        after = (model, *apply_stock(*styled, stock, styles[2:], 1.0, 0.0, 1.0))
        results = [sample(*result) for result in (before, after)]
    finally:
        for hook in hooks:
            hook.remove()
    torch.testing.assert_close(*results, atol=1e-3, rtol=1e-4)
    assert differ(results[0], sample(model, *styled))
    assert len(seen["style"]) == len(seen["stock"]) == 2 * STEPS
    assert {x.dtype for x in seen["style"] + seen["stock"]} == {small[0].model.get_dtype_inference()}
    for style, stock_sees in zip(seen["style"], seen["stock"], strict=True):
        for half, words in zip(style, stock_sees, strict=True):
            positive = torch.equal(words.cpu(), text[0][0].to(words.dtype))
            assert positive or torch.equal(words.cpu(), text[1][0].to(words.dtype))
            assert torch.equal(half, (tokens.style if positive else tokens.none)[0].to(half))


def test_text_driven_releases_work_without_control(made, small, prompts, styles):
    files = {path.name: load_file(path) for path in made.iterdir()}
    without_control = {k: v for k, v in files[ADAPTER].items() if "controlnet" not in k}
    early = host.styleshot.StyleShot(files | {ADAPTER: without_control})
    assert differ(sample(*apply(small[0], prompts, early, styles[:1])), sample(small[0], *prompts))
    with pytest.raises(ValueError, match="this ip.bin holds none"):
        apply(small[0], prompts, early, styles[:1], control_image=styles[:1])


# ---- bad input ----

@pytest.mark.parametrize("style, options, message", [
    (torch.full((1, 8, 8, 3), torch.nan), {}, "style contains NaN"),
    (torch.rand(1, 8, 8, 2), {}, "style has shape"),
    (torch.rand(1, 8, 8, 3), {"control_image": torch.full((1, 8, 8, 3), torch.inf)}, "control_image contains NaN"),
    (torch.rand(1, 8, 8, 3), {"control_image": torch.rand(1, 8, 8, 3), "control_type": nodes.PHOTOGRAPH},
     r"ControlNetHED\.pth, which was not loaded"),
])
def test_bad_images_are_refused(small, prompts, networks, style, options, message):
    with pytest.raises(ValueError, match=message):
        apply(small[0], prompts, networks, style, **options)


@pytest.mark.parametrize("name", ["SDXL", "SD20", "Flux"])
def test_other_models_are_refused(name, networks):
    family = getattr(comfy.supported_models, name)
    model = SimpleNamespace(model=SimpleNamespace(model_config=family.__new__(family)))
    with pytest.raises(ValueError, match=f"Stable Diffusion 1.5 models only, and the connected model is {name}"):
        apply(model, (None, None), networks, None)
