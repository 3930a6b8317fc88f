import pytest
import torch
import torchvision
from inst_pack.inst_core.methods import vgg
from torch import Tensor

ATOL = 1e-4


def random_weights(family: vgg.Family, seed: int = 0) -> dict[str, Tensor]:
    """A whole file of a family, activations neither vanishing nor exploding."""
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name, prefix in family.keys.items():
        inputs, outputs, side = vgg._geometry(name)
        scale = (2 / (inputs * side * side)) ** 0.5
        weights[f"{prefix}.weight"] = torch.randn(outputs, inputs, side, side, generator=generator) * scale
        weights[f"{prefix}.bias"] = torch.randn(outputs, generator=generator) * 0.01
    return weights


@pytest.mark.parametrize("family, build", [(vgg.TORCHVISION_16, torchvision.models.vgg16),
                                           (vgg.TORCHVISION_19, torchvision.models.vgg19)])
def test_torchvision_layout_computes_what_torchvision_computes(family, build):
    weights = random_weights(family)
    with torch.device("meta"):
        theirs = build(weights=None).features.eval()
    theirs.load_state_dict({k.removeprefix("features."): v for k, v in weights.items()}, assign=True)
    ours = vgg.load(weights | {"classifier.0.bias": torch.zeros(4096)})
    assert ours.family is family
    picture = torch.rand(2, 3, 37, 50, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        normalise = torchvision.transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
        expected = theirs[:-1](normalise(picture))
        last = ours.layers[-1]
        torch.testing.assert_close(ours(ours.normalise(picture), [last])[last], expected, atol=1e-5, rtol=1e-4)


def test_normalised_network_matches_the_official_features(golden):
    data = golden("adaattn")
    net = vgg.load(data.state_dict("vgg_normalised.pth"))
    assert net.family is vgg.NORMALISED
    picture = data.tensor("sq64/content_u8").permute(2, 0, 1)[None] / 255
    features = net(net.normalise(picture), [f"relu{n}_1" for n in range(1, 6)])
    for n in range(1, 6):
        found = torch.stack([features[f"relu{n}_1"][0].mean((1, 2)), features[f"relu{n}_1"][0].std((1, 2))])
        torch.testing.assert_close(found, data.tensor(f"sq64/content_relu{n}_1_mean_std"), atol=ATOL, rtol=0)
    torch.testing.assert_close(features["relu5_1"], data.tensor("sq64/content_relu5_1"), atol=ATOL, rtol=0)


def test_gatys_network_takes_the_authors_input(golden):
    data = golden("gatys")
    net = vgg.load(data.state_dict("vgg_conv.pth"))
    assert net.family is vgg.GATYS
    picture = data.tensor("rect/content_u8").permute(2, 0, 1)[None] / 255
    torch.testing.assert_close(net.normalise(picture), data.tensor("rect/content_input_bgr255"), atol=1e-4, rtol=0)


@pytest.mark.parametrize("family", vgg.FAMILIES, ids=lambda family: family.name)
def test_normalise_can_be_undone(family):
    net = vgg.VGG(family, random_weights(family))
    picture = torch.rand(1, 3, 4, 4)
    torch.testing.assert_close(net.denormalise(net.normalise(picture)), picture)


@pytest.mark.parametrize("family", vgg.FAMILIES, ids=lambda family: family.name)
def test_each_family_is_recognised_under_any_name_and_prefix(family):
    meta = {k: torch.empty(shape, device="meta") for k, shape in family.shapes().items()}
    assert vgg.recognise(dict(reversed(meta.items()))) is family
    assert vgg.load({f"module.{k}": torch.zeros(v.shape) for k, v in meta.items()}).family is family


def test_files_may_end_after_conv5_1():
    weights = random_weights(vgg.NORMALISED)
    net = vgg.load({k: v for k, v in weights.items() if int(k.split(".")[0]) <= 42})
    assert net.layers[-1] == "relu5_1"
    with pytest.raises(ValueError, match="relu5_2 are not in normalised VGG-19"):
        net(torch.rand(1, 3, 32, 32), ["relu5_2"])


def test_damaged_files_are_refused_by_naming_what_is_missing():
    weights = random_weights(vgg.TORCHVISION_16)
    del weights["features.7.weight"]
    with pytest.raises(ValueError, match=r"looks like torchvision VGG-16, but 1 tensors .*features\.7\.weight"):
        vgg.load(weights)
    weights["features.7.weight"] = torch.zeros(128, 128, 1, 1)
    with pytest.raises(ValueError, match=r"features\.7\.weight"):
        vgg.load(weights)


@pytest.mark.parametrize("weights", [{}, {"proj.weight": torch.zeros(512, 3, 8, 8)}], ids=["empty", "other"])
def test_other_files_are_refused(weights):
    with pytest.raises(ValueError, match="not a VGG network"):
        vgg.load(weights)


def test_batch_normalised_networks_are_refused():
    with torch.device("meta"):
        weights = torchvision.models.vgg16_bn(weights=None).state_dict()
    with pytest.raises(ValueError, match="without batch normalisation"):
        vgg.load(weights)


def test_recomputing_activations_changes_nothing():
    net = vgg.load(random_weights(vgg.GATYS))
    x = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(2)).requires_grad_()
    gradients = []
    for recompute in (False, True):
        loss = sum(f.square().mean() for f in net(x, ["relu1_1", "relu4_2"], recompute=recompute).values())
        gradients.append(torch.autograd.grad(loss, x)[0])
    assert torch.equal(*gradients)
    assert gradients[0].abs().sum() > 0


def test_average_pooling_is_another_network():
    net = vgg.load(random_weights(vgg.GATYS))
    x = torch.randn(1, 3, 32, 32)
    assert not torch.allclose(net(x, ["relu2_1"], "avg")["relu2_1"], net(x, ["relu2_1"])["relu2_1"])
