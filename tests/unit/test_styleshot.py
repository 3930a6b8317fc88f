"""StyleShot and its HED contours against the official code's numbers, and the recognition of released files."""
import json

import pytest
import torch
from inst_pack.inst_core.methods import hed, styleshot, styleshot_files
from inst_pack.inst_core.methods.styleshot import LEVELS, AdapterSizes, EncoderSizes
from torchvision.transforms.v2.functional import to_pil_image

ATOL = 5e-5
PICTURES = {"sq512": ("style_sq512", 512, 512), "resize300x400": ("style_resize300x400", 300, 400)}
SMALL_ENCODER = EncoderSizes(width=64, layers=3, hidden=32, embed=8)
SMALL_ADAPTER = AdapterSizes(embed=8, tokens=2, context=768, widths=(320, 320, 640))


@pytest.fixture(scope="module")
def data(golden):
    return golden("styleshot")


@pytest.fixture(scope="module")
def official(data):
    """Names and shapes of the released files; tensors that take no memory."""
    manifest = json.loads((data.folder / "manifest_official_full.json").read_text())
    return {name: {key: torch.zeros(1).expand(shape) for key, shape in shapes.items()}
            for name, shapes in manifest.items()}


@pytest.fixture()
def small():
    """A complete release of small networks, as files."""
    torch.manual_seed(0)
    encoder = styleshot.StyleAwareEncoder(SMALL_ENCODER).state_dict()
    unused = {"image_encoder.vision_model.embeddings.class_embedding": torch.zeros(64)}
    return {"style_aware_encoder.bin": encoder | unused,
            "ip.bin": styleshot.StyleAdapter(SMALL_ADAPTER).state_dict() | {"unet.conv_in.weight": torch.zeros(1)}}


# ---- numbers of the official code ----

@pytest.mark.parametrize("case", PICTURES)
def test_patches_lie_where_the_official_ones_do(data, case):
    patches = styleshot.multi_scale_patches(styleshot.style_square(data.image(*PICTURES[case])))
    for level, found in zip(LEVELS, patches, strict=True):
        found = found[0] * 2 - 1
        corners = torch.stack([found[:, :, y, x] for y, x in ((0, 0), (0, -1), (-1, 0), (-1, -1))], 1)
        torch.testing.assert_close(found.mean((2, 3)), data.tensor(f"{case}/{level}_patch_mean"), atol=ATOL, rtol=0)
        torch.testing.assert_close(corners, data.tensor(f"{case}/{level}_patch_corners"), atol=ATOL, rtol=0)


def test_a_seed_draws_the_official_order(data):
    for level, order in zip(LEVELS, styleshot.shuffled_order(7), strict=True):
        assert torch.equal(order, data.tensor(f"perm/seed7_{level}"))


@torch.no_grad()
def test_style_attention_adds_to_the_text(data):
    weights, context = data.state_dict("ip_attn#320"), data.tensor("ipattn320/context_text77_style6")
    text, tokens = context[:, :77], context[:, 77:]
    query = data.tensor("ipattn320/hidden") @ weights["to_q.weight"].T
    plain = styleshot.attention(query, text @ weights["to_k.weight"].T, text @ weights["to_v.weight"].T, 8)
    style = styleshot.KeyValue(*(tokens @ weights[f"processor.to_{x}_ip.weight"].T for x in "kv"))
    for weight in (1.0, 0.5, 0.0):
        mixed = styleshot.with_style(plain, query, style, 8, weight)
        out = mixed @ weights["to_out.0.weight"].T + weights["to_out.0.bias"]
        torch.testing.assert_close(out, data.tensor(f"ipattn320/out_scale{weight}"), atol=ATOL, rtol=0)


@torch.no_grad()
def test_contours(data):
    network, levels = hed.PART.load(data.state_dict("ControlNetHED.pth")), data.tensor("hed/in_u8")
    picture = levels.movedim(-1, 0)[None].float()
    for i, side in enumerate(network(picture), 1):
        expected = data.tensor(f"hed/projection{i}")
        torch.testing.assert_close(side / expected.abs().max(), expected / expected.abs().max(), atol=ATOL, rtol=0)
    for threshold in (200, 100):
        found = hed.contours(network, picture / 255, threshold)
        expected = data.tensor(f"hed/contour_u8_threshold{threshold}") > 0
        assert found.shape == picture.shape and set(found.unique().tolist()) == {0.0, 1.0}
        assert (found[0].bool() != expected).float().mean() <= 1e-3


# ---- any picture ----

@pytest.mark.parametrize("height, width", [(1, 1), (8, 8), (1, 4096), (4096, 3), (700, 513)])
def test_a_style_picture_may_have_any_size(height, width):
    square = styleshot.style_square(torch.rand(2, 3, height, width))
    assert square.shape == (2, 3, 512, 512) and square.min() >= 0 and square.max() <= 1


def test_the_ends_of_a_long_picture_cost_nothing_and_do_not_matter(monkeypatch):
    sizes = []
    monkeypatch.setattr(styleshot, "to_pil_image", lambda x: sizes.append(x.shape) or to_pil_image(x))
    picture = torch.rand(1, 3, 20, 100)
    whole = styleshot.style_square(picture)
    picture[..., :8] = picture[..., -8:] = 0.5
    assert torch.equal(styleshot.style_square(picture), whole)
    assert max(sizes[0]) == 80


@torch.no_grad()
def test_pictures_of_a_batch_do_not_mix(small):
    encoder, pictures = styleshot_files.style_encoder(styleshot_files.read_release(small)), torch.rand(2, 3, 512, 512)
    order = styleshot.shuffled_order(0)
    both = encoder(pictures, order)
    torch.testing.assert_close(both, torch.cat([encoder(one, order) for one in pictures.split(1)]))
    assert (both[0] - both[1]).abs().max() > 1e-4
    assert (encoder(pictures) - both).abs().max() > 1e-4


@pytest.mark.parametrize("picture, message", [
    (torch.rand(1, 3, 8, 40), "control_image is 40 x 8 px; finding contours needs at least 16 px"),
    (torch.full((1, 3, 32, 32), torch.nan), "control_image contains NaN"),
])
def test_pictures_without_contours_are_refused(picture, message):
    with pytest.raises(ValueError, match=message):
        hed.contours(None, picture)


# ---- files ----

def test_the_official_key_lists_are_accepted(official):
    release = styleshot_files.read_release(official)
    assert (len(official["style_aware_encoder.bin"]), len(official["ip.bin"])) == (608, 384)
    assert EncoderSizes.of(release.encoder) == EncoderSizes() and AdapterSizes.of(release.adapter) == AdapterSizes()
    assert len(release.controlnet) == 340 and release.contour is None
    assert sum(map(len, (release.encoder, release.adapter))) == 608 - 3 + 384 - 340


@pytest.mark.parametrize("name, key", [
    ("style_aware_encoder.bin", "image_encoder.vision_model.encoder.layers.31.mlp.fc1.weight"),
    ("style_aware_encoder.bin", "image_encoder.vision_model.encoder.layers.0.mlp.fc1.weight"),
    ("style_aware_encoder.bin", "position_embedding.weight"),
    ("style_aware_encoder.bin", "cnn.2.adapter.bias"),
    ("ip.bin", "adapter_modules.31.to_k_ip.weight"),
    ("ip.bin", "adapter_modules.1.to_v_ip.weight"),
    ("ip.bin", "style_image_proj_modules.0.norm.weight"),
    ("ip.bin", "style_image_proj_modules.0.proj.weight"),
])
def test_incomplete_official_files_name_what_is_missing(official, name, key):
    damaged = official | {name: {k: v for k, v in official[name].items() if k != key}}
    with pytest.raises(ValueError, match=rf"{name} looks like {name} .*1 tensors are missing.* {key}\."):
        styleshot_files.read_release(damaged)


def test_other_shapes_are_refused(official):
    adapter = official["ip.bin"] | {"adapter_modules.5.to_k_ip.weight": torch.zeros(1).expand(640, 1024)}
    with pytest.raises(ValueError, match=r"another shape: adapter_modules\.5\.to_k_ip\.weight"):
        styleshot_files.read_release(official | {"ip.bin": adapter})


def test_order_names_and_prefixes_do_not_matter(small):
    release = styleshot_files.read_release(small)
    swapped = {"a": {f"module.{k}": v for k, v in small["ip.bin"].items()}, "b": small["style_aware_encoder.bin"]}
    again = styleshot_files.read_release(swapped)
    assert (release.encoder.keys(), release.adapter.keys()) == (again.encoder.keys(), again.adapter.keys())
    assert "unet.conv_in.weight" not in again.adapter and not any("embeddings.class" in key for key in again.encoder)
    assert EncoderSizes.of(again.encoder) == SMALL_ENCODER and AdapterSizes.of(again.adapter) == SMALL_ADAPTER


def only(*names):
    return lambda files: {name: files[name] for name in names}


@pytest.mark.parametrize("change, message", [
    (only("ip.bin"), r"style_aware_encoder\.bin \(style-aware encoder\) is missing among the files \(ip\.bin\)"),
    (only("style_aware_encoder.bin"), r"ip\.bin \(style adapter\) is missing"),
    (only(), r"style_aware_encoder\.bin .* and ip\.bin .* is missing among the files \(none\)"),
    (lambda files: files | {"copy.bin": files["ip.bin"]}, r"ip\.bin and copy\.bin are the same part \(style adapter\)"),
    (lambda files: files | {"vae.pt": {"decoder.weight": torch.zeros(1)}},
     r"vae\.pt is not a file of StyleShot \(it starts with decoder\.weight\)\. Choose one of these: style_aware_en"),
    (lambda files: files | {"empty.pt": {}}, r"empty\.pt is not a file of StyleShot \(it starts with nothing\)"),
    (lambda files: files | {"hed.pth": {"block1.convs.0.weight": torch.zeros(64, 3, 3, 3)}},
     r"hed\.pth looks like ControlNetHED\.pth .*36 tensors are missing.* norm"),
    (lambda files: files | {"ip.bin": styleshot.StyleAdapter(SMALL_ADAPTER._replace(embed=9)).state_dict()},
     r"style_aware_encoder\.bin makes embeddings of 8 numbers, ip\.bin takes 9"),
])
def test_wrong_sets_of_files_are_refused(small, change, message):
    with pytest.raises(ValueError, match=message):
        styleshot_files.read_release(change(small))


def split(weights, *starts):
    return {k: v for k, v in weights.items() if k.startswith(starts)}


PROJECTIONS = "style_image_proj_modules."


@pytest.mark.parametrize("first, second", [
    ((PROJECTIONS, "adapter_modules."), (PROJECTIONS, "controlnet.")),  # stages 1 and 2 of StyleShot's own training
    ((PROJECTIONS, "adapter_modules."), ("controlnet.",)),
    (("adapter_modules.",), (PROJECTIONS, "controlnet.")),
    ((PROJECTIONS, "adapter_modules."), ("module.controlnet.",)),
])
def test_adapter_and_controlnet_may_lie_in_two_files(small, first, second):
    whole = small["ip.bin"] | {"controlnet.conv_in.weight": torch.ones(1)}
    known = styleshot_files.read_release(small | {"ip.bin": whole})
    prefixed = whole | {f"module.{k}": v for k, v in whole.items() if k.startswith("controlnet.")}
    later = {k: v + 1 if k.startswith(PROJECTIONS) and PROJECTIONS in first else v
             for k, v in split(prefixed, *second).items()}
    for files in ({"a.bin": split(whole, *first), "b.bin": later}, {"b.bin": later, "a.bin": split(whole, *first)}):
        release = styleshot_files.read_release({"encoder.bin": small["style_aware_encoder.bin"], **files})
        assert release.adapter.keys() == known.adapter.keys() and release.controlnet.keys() == {"conv_in.weight"}
        assert all(torch.equal(release.adapter[k], v) for k, v in known.adapter.items())


@pytest.mark.parametrize("parts, message", [
    ([(PROJECTIONS, "controlnet.")], r"a\.bin holds no adapter_modules\. StyleShot's training leaves them in the file "
                                     r"of its first stage .*choose both"),
    ([("controlnet.",)], r"a\.bin holds no adapter_modules"),
    ([(PROJECTIONS, "controlnet."), (PROJECTIONS, "controlnet.")], r"a\.bin and b\.bin are the same part"),
    ([(PROJECTIONS, "adapter_modules."), (PROJECTIONS,)], r"a\.bin and b\.bin are the same part"),
    ([("adapter_modules.",), ("controlnet.",)], r"a\.bin and b\.bin looks like ip\.bin .*style_image_proj_modules"),
])
def test_parts_that_lack_one_say_where_it_is(small, parts, message):
    whole = small["ip.bin"] | {"controlnet.conv_in.weight": torch.ones(1)}
    files = {name: split(whole, *starts) for name, starts in zip(("a.bin", "b.bin"), parts, strict=False)}
    with pytest.raises(ValueError, match=message):
        styleshot_files.read_release({"encoder.bin": small["style_aware_encoder.bin"], **files})


def test_networks_are_made_around_the_files_tensors(small):
    half = {name: {k: v.half() for k, v in weights.items()} for name, weights in small.items()}
    release = styleshot_files.read_release(half)
    for make, weights in ((styleshot_files.style_encoder, release.encoder),
                          (styleshot_files.style_adapter, release.adapter)):
        for key, tensor in make(release).state_dict().items():
            assert tensor.data_ptr() == weights[key].data_ptr() and tensor.dtype == torch.float16
    assert not any(p.requires_grad for p in styleshot_files.style_encoder(release).parameters())


def test_no_style_is_not_zero(small):
    tokens = styleshot_files.style_adapter(styleshot_files.read_release(small))(torch.randn(2, 3, 8))
    assert tokens.style.shape == (2, 6, 768) and tokens.none.shape == (1, 6, 768)
    assert tokens.none.abs().mean() > 0.1 and (tokens.style - tokens.none).abs().mean() > 0.1
