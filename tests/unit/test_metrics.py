"""Metrics equal their definitions, and order pictures as a person would."""
import json
import math
import os
import warnings
from pathlib import Path

import pytest
import torch
from inst_pack.inst_core import metrics
from inst_pack.inst_core.methods import vgg
from inst_pack.inst_core.metrics import alexnet, artfid, cfsd, gram, judge, leakage, palette, structure, tables, trivial
from inst_pack.inst_core.metrics import lpips as ours
from safetensors.torch import load_file
from torch import nn

REAL = Path(os.environ.get("INST_MODELS", ""), "style_transfer", "lpips-alex.safetensors")


def random_weights(shapes: dict, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {k: torch.randn(s, generator=generator) / math.prod(s[1:]) ** 0.5 for k, s in shapes.items()}


@pytest.fixture(scope="module")
def weights():
    """AlexNet and heads filled from a seed; heads are positive, as learned ones are."""
    filled = random_weights(alexnet.shapes() | ours.HEADS)
    return {k: v.abs() if k in ours.HEADS else v for k, v in filled.items()}


@pytest.fixture(scope="module")
def networks(weights):
    return metrics.load_networks(weights)


def picture(seed: int = 0, height: int = 72, width: int = 96) -> torch.Tensor:
    """Coloured waves (1, 3, height, width)."""
    y, x = torch.meshgrid(torch.linspace(0, 1, height), torch.linspace(0, 1, width), indexing="ij")
    waves = [((seed + 3) * (a * x + b * y) + seed).sin() for a, b in ((5, 1), (2, 7), (4, -6))]
    return (torch.stack(waves)[None] / 2 + 0.5).clamp(0, 1)


def noise(seed: int = 0, height: int = 72, width: int = 96) -> torch.Tensor:
    return torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(seed))


BATCH = torch.cat([picture(1), picture(2)]), noise(3), torch.cat([picture(2), picture(1)])  # contents, style, results


# ---- LPIPS ----

@pytest.fixture(scope="module")
def package():
    reference = pytest.importorskip("lpips")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return reference.LPIPS(net="alex", pnet_rand=True, verbose=False).eval()


@pytest.mark.parametrize("real", [False, pytest.param(True, marks=pytest.mark.skipif(
    not REAL.is_file(), reason="needs lpips-alex.safetensors, see tools/packaged_weights.py"))])
def test_lpips_is_the_packages(package, weights, real):
    heads = {k: v.clone() for k, v in package.state_dict().items() if k.startswith("lin") and ".model." in k}
    held = load_file(REAL) if real else weights
    if real:
        assert all(torch.equal(held[k], heads[k]) for k in ours.HEADS)
    layers = {k: held["features." + k.split(".", 2)[2]] for k in package.state_dict() if k.startswith("net.slice")}
    package.load_state_dict(layers | {k: held[k] for k in ours.HEADS}, strict=False)
    network, lins = alexnet.AlexNet(held), ours.load_heads(held)
    a, b = torch.cat([picture(1), noise(1)]), torch.cat([picture(2), picture(1)])
    with torch.no_grad():
        expected = package(a * 2 - 1, b * 2 - 1).flatten()
        expected_grey = package(ours.grey(a) * 2 - 1, ours.grey(b) * 2 - 1).flatten()
    package.load_state_dict(heads, strict=False)
    torch.testing.assert_close(ours.lpips(network(a), network(b), lins), expected, atol=1e-4, rtol=0)
    found = ours.lpips(network(ours.grey(a)), network(ours.grey(b)), lins)
    torch.testing.assert_close(found, expected_grey, atol=1e-4, rtol=0)
    assert expected.min() > 0.01 and (expected - expected_grey).abs().max() > 1e-3


# ---- style ----

def test_gram_distance_by_hand():
    a, b = torch.tensor([[[[1.0, 1.0]], [[0.0, 0.0]]]]), torch.tensor([[[[0.0, 0.0, 0.0]], [[2.0, 2.0, 2.0]]]])
    # G_a = diag(1, 0), G_b = diag(0, 4): (1 + 16) / (1 + 16) = 1; of a and 2 a: (4 - 1)^2 / (16 + 1) = 9 / 17
    assert gram.gram_distance((a,), (b,)).item() == pytest.approx(1)
    assert gram.gram_distance((a, a), (2 * a, a)).item() == pytest.approx(9 / 17 / 2)
    assert gram.gram_distance((a,), (a,)).item() == 0


def test_lab_by_known_colours():
    colours = torch.tensor([[1, 1, 1], [0, 0, 0], [1, 0, 0], [0, 0, 1], [0.5, 0.5, 0.5]]).float().T[None, :, None]
    expected = torch.tensor([[100, 0, 0], [0, 0, 0], [53.24, 80.09, 67.20], [32.30, 79.19, -107.86], [53.39, 0, 0]])
    torch.testing.assert_close(palette.lab(colours)[0, :, 0].T, expected, atol=0.02, rtol=0)


def test_sliced_wasserstein_of_a_moved_cloud():
    cloud = torch.randn(1, 3, 500, generator=torch.Generator().manual_seed(0))
    shift = torch.tensor([3.0, 0.0, 4.0]).view(1, 3, 1)
    moved = (cloud + shift)[:, :, torch.randperm(500, generator=torch.Generator().manual_seed(1))]
    assert palette.sliced_wasserstein(cloud, moved).item() == pytest.approx(2.5, rel=0.01)  # |shift| / 2


def test_hellinger_by_hand():
    black, white = torch.zeros(1, 3, 4, 4), torch.ones(1, 3, 2, 2)
    half = torch.cat([torch.zeros(1, 3, 2, 4), torch.ones(1, 3, 2, 4)], 2)
    assert palette.hellinger(black, white).item() == 1
    assert palette.hellinger(black, half).item() == pytest.approx((1 - 0.5**0.5) ** 0.5)
    assert palette.hellinger(half, half).item() == pytest.approx(0, abs=1e-3)


# ---- structure ----

def test_self_similarity_by_hand():
    a = torch.tensor([[[[1.0, 0.0]], [[0.0, 1.0]]]])  # two orthogonal positions
    b = torch.tensor([[[[1.0, 1.0]], [[0.0, 0.0]]]])  # two equal ones
    torch.testing.assert_close(structure.self_similarity(a), torch.tensor([[[0.0, 1.0], [1.0, 0.0]]]))
    assert structure.self_similarity_distance(a, b).item() == pytest.approx(1)  # mean |D / 1 - 0| = 1/2, times 2
    assert structure.self_similarity_distance(a, 3 * a).item() == 0


def test_ssim_structure_ignores_contrast_and_sees_inversion():
    grey = noise(3)[:, :1]
    assert structure.ssim_structure(grey, grey).item() == pytest.approx(1, abs=1e-4)
    assert structure.ssim_structure(grey, grey * 0.5 + 0.2).item() > 0.99
    assert structure.ssim_structure(grey, 1 - grey).item() < -0.95
    assert abs(structure.ssim_structure(grey, noise(4)[:, :1]).item()) < 0.1


def test_edge_correlation():
    grey = picture(1)[:, :1]
    assert structure.edge_correlation(grey, 1 - grey).item() == pytest.approx(1, abs=1e-4)
    assert structure.edge_correlation(grey, picture(2)[:, 1:2]).item() < 0.5
    assert structure.edge_correlation(grey, torch.ones_like(grey)).item() == pytest.approx(0, abs=1e-4)


def test_cfsd_by_hand(monkeypatch):
    content, result = torch.tensor([[[[4.0, 0.0]], [[0.0, 4.0]]]]), torch.tensor([[[[4.0, 4.0]], [[0.0, 0.0]]]])
    # F / C = rows (2, 0), (0, 2): S_content rows softmax(4, 0); S_result rows softmax(4, 4) = (1/2, 1/2)
    p = 1 / (1 + math.exp(-4))
    expected = 2 * (p * math.log(2 * p) + (1 - p) * math.log(2 * (1 - p)))
    assert cfsd.cfsd(content, result).item() == pytest.approx(expected, rel=1e-5)
    assert cfsd.cfsd(result, content).item() != pytest.approx(expected, rel=0.1)
    a, b = noise(1, 12, 9), noise(2, 12, 9)
    whole = cfsd.cfsd(a, b)
    monkeypatch.setattr(cfsd, "ROWS", 5 * 108)
    torch.testing.assert_close(cfsd.cfsd(a, b), whole)


# ---- ArtFID ----

def test_frechet_distance_of_few_samples_equals_the_matrix_square_root():
    linalg = pytest.importorskip("scipy.linalg")
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(40, 6, generator=generator) + 1, torch.randn(30, 6, generator=generator) * 2
    (mean_a, cov_a), (mean_b, cov_b) = artfid.mean_covariance(a), artfid.mean_covariance(b)
    root = linalg.sqrtm((cov_a @ cov_b).numpy()).real
    expected = (mean_a - mean_b).square().sum() + cov_a.trace() + cov_b.trace() - 2 * root.trace()
    assert artfid.frechet_distance(a, b) == pytest.approx(float(expected))
    with pytest.raises(ValueError, match="at least 2 results and 2 styles, got 1 and 30"):
        artfid.frechet_distance(a[:1], b)


def test_inception_is_recognised_and_small_pictures_are_refused():
    with torch.device("meta"):
        keys = artfid.inception_v3(weights=None, aux_logits=False, init_weights=False).state_dict()
    broken = {k: v for k, v in keys.items() if k != "Mixed_7c.branch1x1.conv.weight" and not k.startswith("fc")}
    with pytest.raises(ValueError, match=r"Inception-v3: 1 of \d+ tensors .*Mixed_7c\.branch1x1\.conv\.weight"):
        artfid.load_inception(broken)
    with pytest.raises(ValueError, match="is 80 x 60 px; FID needs at least 75 px"):
        artfid.of_sets(nn.Linear(1, 1), [noise(0, 60, 80)], [noise(0, 60, 80)], 0.0)


@pytest.mark.parametrize("styles, results, message", [
    ((1, 100, 100), (2, 100, 100), "at least 2 results and 2 styles, got 2 and 1"),
    ((1, 100, 100), (1, 100, 100), "got 1 and 1.*art_inception to none"),
    ((2, 60, 100), (2, 100, 100), "style is 100 x 60 px; FID needs"),
    ((2, 100, 100), (2, 100, 74), "result is 74 x 100 px; FID needs"),
])
def test_sets_that_fid_cannot_use_are_refused_before_anything_is_measured(styles, results, message):
    judge = metrics.Judge(None)  # has nothing to measure with
    styles, results = (torch.zeros(n, 3, h, w) for n, h, w in (styles, results))
    with pytest.raises(ValueError, match=message):
        metrics.measure_batches(judge, results[:1], styles, results, inception=nn.Identity())


# ---- leakage ----

def test_leakage_is_alarmed_by_parts_of_the_style_only():
    style, content = [torch.nn.functional.interpolate(noise(s, 12, 16), (96, 128), mode="bicubic").clamp(0, 1)
                      for s in (1, 2)]
    pasted = content.clone()
    pasted[..., 20:84, 30:94] = style[..., 10:74, 40:104]
    values = [float(leakage.leakage(*(p.mean(1, keepdim=True) for p in (content, style, result))))
              for result in (content, (content + picture(1, 96, 128)) / 2, pasted, style)]
    assert values[0] == 0 and values[1] < 0.06 < values[2] < values[3] and values[3] > 0.3


def test_a_flat_style_cannot_leak():
    assert leakage.leakage(noise(1)[:, :1], torch.full((1, 1, 50, 60), 0.5), noise(2)[:, :1]).item() == 0


# ---- all together ----

def test_trivial_results_have_the_values_that_their_names_promise(networks):
    content, style, other = picture(1), noise(2, 80, 200), picture(4, 150, 90)
    pair = metrics.Judge(networks, 72).pair(content, style)
    made = metrics.trivial_results(content, style, other)
    assert list(made) == list(metrics.TRIVIAL) and all(p.shape == content.shape for p in made.values())
    values = {name: pair.measure(p) for name, p in made.items()}
    assert values["copy of content"]["lpips"] == 0 and values["copy of content"]["self_similarity"] == 0
    assert values["copy of content"]["edge_correlation"] == pytest.approx(1, abs=1e-4)
    assert values["copy of content"]["leakage"] == 0
    style_like = values["copy of style"]
    assert style_like["gram"] < values["colours only"]["gram"] and style_like["lpips"] > values["colours only"]["lpips"]
    assert values["colours only"]["palette_lab"] < values["copy of content"]["palette_lab"]
    assert list(style_like) == [m.key for m in metrics.MEASURES if m.key in style_like]
    assert not {"cfsd", "csd", "clip_style"} & set(style_like)


def test_the_unrelated_picture_is_upside_down_where_there_is_none():
    content = picture(1)
    assert torch.equal(metrics.trivial_results(content, noise())["unrelated picture"], content.flip(2, 3))
    assert torch.equal(metrics.trivial_results(content, noise(), noise(3))["unrelated picture"], noise(3))


def test_cfsd_clip_and_csd_come_with_their_networks(weights):
    net = vgg.VGG(vgg.TORCHVISION_19, random_weights(vgg.TORCHVISION_19.shapes()))
    networks = judge.Networks(alexnet.AlexNet(weights), ours.load_heads(weights), net,
                              clip=lambda p: p.mean((2, 3)), csd=lambda p: p[:, :, 9, ::9].flatten(1))
    content, style = picture(1, 64, 64), noise(2, 64, 64)
    pair = metrics.Judge(networks).pair(content, style)
    same, other = pair.measure(content), pair.measure(style)
    assert same["cfsd"] == 0 < other["cfsd"]
    assert same["clip_content"] == pytest.approx(1) and other["clip_style"] == pytest.approx(1)
    assert other["csd"] == pytest.approx(1) and same["csd"] < 0.99


@pytest.mark.parametrize("height, width", [(1, 1), (8, 8), (1, 300), (2000, 8), (600, 500)])
def test_any_size_has_finite_numbers_and_large_ones_are_reduced(networks, height, width):
    content, style = noise(1, height, width), picture(2)
    pair = metrics.Judge(networks, 64).pair(content, style)
    assert min(pair.content.picture.shape[2:]) == 64 and max(pair.content.picture.shape[2:]) <= 64 * judge.MAX_ASPECT
    assert all(math.isfinite(v) for v in pair.measure(content).values())


def test_self_similarity_is_bounded():
    seen = judge.Seen(picture(), (None, None, torch.zeros(1, 2, 40, 200)), (), None, None, None)
    assert seen.layout.shape[2] * seen.layout.shape[3] <= judge.POSITIONS**2


@pytest.mark.parametrize("content, style, result, message", [
    (picture(1).expand(2, -1, -1, -1), picture(2), picture(3).expand(3, -1, -1, -1),
     "content has 2 pictures, result has 3"),
    (picture(1), picture(2).expand(3, -1, -1, -1), picture(3).expand(2, -1, -1, -1), "style has 3 pictures"),
    (picture(1), picture(2), picture(3, 72, 225), "result is 225 x 72 px, whose aspect is 2.34 times the content's"),
    (picture(1) * torch.nan, picture(2), picture(3), "content contains NaN"),
    (picture(1), picture(2), picture(3) / 0, "result contains NaN or infinite"),
])
def test_bad_pictures_are_refused(networks, content, style, result, message):
    with pytest.raises(ValueError, match=message):
        metrics.measure_batches(metrics.Judge(networks, 64), content, style, result)


def test_batches_are_measured_one_by_one(networks):
    (contents, style, results), examiner, done = BATCH, metrics.Judge(networks, 64), []
    measured = metrics.measure_batches(examiner, *BATCH, progress=done.append)
    assert done == [1, 2]
    assert measured.results[1] == examiner.pair(contents[1:], style).measure(results[1:])
    assert measured.trivial[0]["unrelated picture"] == examiner.pair(contents[:1], style).measure(contents[1:])


@pytest.mark.parametrize("damage, message", [
    (lambda w: w.pop("features.6.bias"), r"AlexNet: 1 of 10 tensors are missing .*features\.6\.bias.*lpips-alex"),
    (lambda w: w.update({"features.0.weight": torch.zeros(64, 3, 3, 3)}), r"features\.0\.weight"),
    (lambda w: w["features.3.bias"].fill_(torch.nan), r"AlexNet has NaN .*features\.3\.bias"),
    (lambda w: [w.pop(k) for k in ours.HEADS], "LPIPS heads for AlexNet: 5 of 5"),
])
def test_wrong_weight_files_are_named(weights, damage, message):
    held = {k: v.clone() for k, v in weights.items()}
    damage(held)
    with pytest.raises(ValueError, match=message):
        metrics.load_networks(held)


def test_dataparallel_prefixes_are_accepted_and_another_vgg_is_not(weights):
    prefixed = {f"module.{k}": v for k, v in weights.items()}
    assert metrics.load_networks(prefixed).vgg19 is None
    other = random_weights(vgg.TORCHVISION_16.shapes())
    for key, index, value in vgg.TORCHVISION_16.marks:
        other[key][index] = value
    with pytest.raises(ValueError, match="CFSD is defined with torchvision VGG-19; the file is torchvision VGG-16"):
        metrics.load_networks(weights, vgg19=other)


def test_tables_for_people_and_programs(networks):
    measured = metrics.measure_batches(metrics.Judge(networks, 64), *BATCH)
    text, values = metrics.report(*measured), json.loads(metrics.as_json(*measured))
    lines = text.splitlines()
    assert lines[0].split("|")[2].strip() == "result" and all(name in lines[0] for name in metrics.TRIVIAL)
    assert len({len(line) for line in lines if line.startswith("|")}) == 2  # two tables, each in line
    assert "LPIPS v (content)" in text and "SSIM structure ^ (content)" in text and "picture 2" in text
    assert values["mean"]["lpips"] == pytest.approx((values["pictures"][0]["lpips"] + measured.results[1]["lpips"]) / 2)
    assert set(values["trivial"]) == set(metrics.TRIVIAL)
    assert values["higher_is_better"] == ["ssim_structure", "edge_correlation"]
    assert tables.number(0.12345) == "0.123" and tables.number(1234.5) == "1234.5"


def test_covering_does_not_distort():
    circle = torch.zeros(1, 3, 60, 60)
    circle[..., 20:40, 20:40] = 1
    covered = trivial.covering(circle, (30, 60))[0, 0] > 0.5
    assert covered.any(0).sum() == covered.any(1).sum() == 20
