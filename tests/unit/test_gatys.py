from collections import OrderedDict

import pytest
import torch
from inst_pack.inst_core.methods import gatys, vgg
from inst_pack.inst_core.methods.gatys import Objective, Settings
from inst_pack.inst_core.pictures import luminance

TERMS = [*(f"style relu{n}_1" for n in range(1, 6)), "content relu4_2"]


@pytest.fixture(scope="module")
def data(golden):
    return golden("gatys")


@pytest.fixture(scope="module")
def net(data, tmp_path_factory):
    """Through a file with the official name, as released."""
    path = tmp_path_factory.mktemp("gatys") / "vgg_conv.pth"
    torch.save(OrderedDict(data.state_dict(path.name)), path)
    return vgg.load(torch.load(path, weights_only=True))


def pictures(height=40, width=32, seed=0):
    return torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(seed))


CONTENT, STYLE = pictures(), pictures(seed=1)


def paint(net, content=CONTENT, style=STYLE, **settings):
    """A small picture, (1, 3, height, width)."""
    return gatys.stylize(net, content, style, Settings(**{"size": 32, "steps": 5} | settings)).pictures


@pytest.mark.parametrize("case", ["sq64", "rect"])
@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("pooling", ["max", "avg"])
@pytest.mark.parametrize("noise", ["", "_plus_noise"])
def test_official_losses_and_gradient(net, data, case, pooling, noise, recompute):
    content, style = data.pair(case)
    objective = Objective(net, content, style, Settings(pooling=pooling))
    objective.recompute = recompute
    levels = objective.levels(content)
    if noise:
        levels = levels + data.array(f"gatys_noise_{case}", levels.shape, 20.0)
    terms = objective.terms(levels)
    assert list(terms) == TERMS
    expected = data.tensor(f"{case}/{pooling}/weighted_losses_at_content{noise}")
    torch.testing.assert_close(torch.stack(list(terms.values())).double(), expected, rtol=1e-5, atol=1e-9)
    loss, gradient = objective.loss_and_gradient(levels)
    torch.testing.assert_close(gradient, data.tensor(f"{case}/{pooling}/grad_at_content{noise}"), atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(loss.double(), expected.sum(), rtol=1e-5, atol=0)


def test_one_call_of_lbfgs_goes_the_official_way(net, data):
    content, style = data.pair("sq64")
    objective = Objective(net, content, style, Settings())
    _, losses = gatys.minimise(objective, objective.levels(content), 20, lambda done, levels: None)
    drift = [abs(found / expected - 1) for found, expected in
             zip(losses, data.expected["lbfgs_one_step/loss_history"], strict=True)]
    assert max(drift[:2]) < 1e-5
    # Rounding grows from step to step, on every processor in its own way.
    assert max(drift[2:11]) < 0.05
    assert max(drift[11:]) < 0.15


def test_pictures_are_resized_like_the_authors(net, data):
    picture = data.picture("preproc/in_u8")
    found = net.normalise(gatys.resized(picture, 48))[0]
    assert found.shape == (3, 48, 64)
    # theirs is rounded to 8-bit levels twice
    assert (found - data.tensor("preproc/resize48_bgr255")).abs().max() <= 1.0


def test_long_pictures_keep_a_bounded_area():
    assert gatys.resized(torch.zeros(1, 3, 100, 400), 64).shape[2:] == (64, 256)
    height, width = gatys.resized(torch.zeros(1, 3, 16, 4096), 512).shape[2:]
    assert height >= gatys.MINIMUM and height * width <= 4 * 512**2


@pytest.mark.parametrize("start", ["content", "noise"])
def test_the_loss_falls(net, start):
    result = gatys.stylize(net, CONTENT, STYLE, Settings(steps=20, size=32, start=start))
    assert result.pictures.shape == (1, 3, 40, 32)
    assert result.pictures.min() >= 0 and result.pictures.max() <= 1
    assert len(result.losses[0]) == 20
    assert min(result.losses[0]) < 0.7 * result.losses[0][0]


@pytest.mark.parametrize("steps", [1, 7, 20, 33])
def test_every_evaluation_is_counted(net, steps):
    seen = []
    gatys.stylize(net, pictures(16, 16), pictures(16, 16, 1), Settings(steps=steps, size=16),
                  lambda done, picture: seen.append(done))
    assert seen == list(range(1, steps + 1))


def test_high_resolution_pass_starts_from_the_first_result(net):
    seen = []
    settings = Settings(steps=5, size=16, high_resolution=32)
    assert settings.total_steps == 7
    result = gatys.stylize(net, CONTENT, STYLE, settings,
                           lambda done, picture: seen.append((done, tuple(picture.shape[2:]))))
    assert seen == [(n, (20, 16)) for n in range(1, 6)] + [(n, (40, 32)) for n in (6, 7)]
    assert result.pictures.shape[2:] == (40, 32)
    first = paint(net, size=16)
    again = Objective(net, gatys.resized(CONTENT, 32), gatys.resized(STYLE, 32), settings)
    larger = torch.nn.functional.interpolate(first, (40, 32), mode="bilinear", align_corners=False)
    assert result.losses[0][5] == pytest.approx(float(again.loss_and_gradient(again.levels(larger))[0]), rel=1e-4)


def test_official_numbers_are_the_defaults():
    settings = Settings(high_resolution=800)
    assert (settings.steps, settings.high_resolution_steps, settings.size) == (500, 200, 512)
    assert settings.style_layers["relu5_1"] == pytest.approx(1000 / 512**2)


def test_the_global_generator_is_left_alone_and_seeds_decide(net):
    before = torch.random.get_rng_state()
    first, again, other = (paint(net, start="noise", seed=seed) for seed in (0, 0, 1))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(first, again) and not torch.allclose(first, other)


def test_pictures_may_lie_in_memory_like_images(net):
    """IMAGE batches keep their channels last."""
    content, style = (p.to(memory_format=torch.channels_last) for p in (CONTENT, STYLE))
    assert torch.equal(paint(net, content, style), paint(net))


def test_luminance_only_keeps_the_contents_chroma(net):
    content = 0.25 + 0.5 * pictures(32, 32)
    result = paint(net, content, preserve_color="luminance")
    inside = ((result > 0) & (result < 1)).all(1, keepdim=True).expand_as(result)
    assert inside.float().mean() > 0.5
    chroma = (result - luminance(result)) - (content - luminance(content))
    assert chroma[inside].abs().max() < 1e-5
    assert (result - content).abs().max() > 1e-3


def test_histogram_matching_gives_the_style_the_contents_colours():
    content, style = pictures(32, 32) * 0.3 + 0.4, pictures(32, 32, 1)
    _, matched = gatys._prepared(content, style, "histogram")
    torch.testing.assert_close(matched.mean((2, 3)), content.mean((2, 3)), atol=0.01, rtol=0)
    torch.testing.assert_close(torch.cov(matched[0].flatten(1)), torch.cov(content[0].flatten(1)), atol=2e-3, rtol=0)


def test_a_batch_is_painted_one_by_one(net):
    content, style = torch.cat([pictures(), pictures(seed=2)]), torch.cat([STYLE, pictures(seed=3)])
    alone = torch.cat([paint(net, *pair) for pair in zip(content.split(1), style.split(1), strict=True)])
    torch.testing.assert_close(paint(net, content, style), alone, atol=1e-4, rtol=0)


def test_activations_are_recomputed_when_memory_runs_out(net, monkeypatch):
    forward = vgg.VGG.forward

    def scarce(self, x, layers, pooling="max", recompute=False):
        if x.requires_grad and not recompute:
            raise torch.OutOfMemoryError("out of memory")
        return forward(self, x, layers, pooling, recompute)

    expected = paint(net)
    monkeypatch.setattr(vgg.VGG, "forward", scarce)
    torch.testing.assert_close(paint(net), expected, atol=1e-4, rtol=0)


def test_networks_on_another_scale_get_a_comparable_loss(net, data):
    """The same network with features ten times smaller, under another family's keys."""
    weights = {f"{prefix}.{kind}": value for name, prefix in vgg.TORCHVISION_19.keys.items()
               for kind, value in net.convolutions[name].state_dict().items()}
    other = vgg.VGG(vgg.TORCHVISION_19, weights)
    for parameter in other.convolutions["conv1_1"].parameters():
        parameter.data = parameter.data / 10
    content, style = data.pair("sq64")
    losses = []
    for network in (vgg.VGG(vgg.TORCHVISION_19, weights), other):
        objective = Objective(network, content, style, Settings())
        losses.append(objective.terms(objective.levels(content))["style relu1_1"])
    assert losses[0] > 0
    torch.testing.assert_close(*losses, rtol=1e-3, atol=0)


@pytest.mark.parametrize("content, style, message", [
    (torch.rand(1, 3, 1, 1), torch.rand(1, 3, 32, 32), "content is 1 x 1 px; Gatys style transfer needs at least 16"),
    (torch.rand(1, 3, 32, 32), torch.rand(1, 3, 8, 40), "style is 40 x 8 px"),
    (torch.rand(2, 3, 32, 32), torch.rand(3, 3, 32, 32), "style has 3 pictures, content has 2"),
])
def test_bad_pictures_are_refused(net, content, style, message):
    with pytest.raises(ValueError, match=message):
        paint(net, content, style)


def test_divergence_is_named(net):
    with pytest.raises(ValueError, match="diverged after .* Lower style_weight"):
        paint(net, style_weight=1e38)


@pytest.mark.parametrize("names, message", [("relu1_1, relu9_1", "relu9_1"), (" ", "is empty"), ("conv1_1", "conv1_1")])
def test_unknown_style_layers_are_refused(names, message):
    with pytest.raises(ValueError, match=message):
        gatys.style_layers(names)


def test_style_layers_are_read_with_the_authors_weights():
    assert gatys.style_layers("relu1_1, relu3_1,relu5_1") == {
        k: gatys.STYLE_LAYERS[k] for k in ("relu1_1", "relu3_1", "relu5_1")}
