import pytest
import torch
import torchvision
from inst_pack.inst_core.methods import vgg
from torch import Tensor


def random_weights(family: vgg.Family, seed: int = 0) -> dict[str, Tensor]:
    """A whole file of a family, activations neither vanishing nor exploding."""
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name, prefix in family.keys.items():
        inputs, outputs, side = vgg._geometry(name)
        scale = (2 / (inputs * side * side)) ** 0.5
        weights[f"{prefix}.weight"] = torch.randn(outputs, inputs, side, side, generator=generator) * scale
        weights[f"{prefix}.bias"] = torch.randn(outputs, generator=generator) * 0.01
    return marked(family, weights)


def marked(family: vgg.Family, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights with the numbers by which the training is told from others."""
    for key, index, value in family.marks:
        weights[key][index] = value
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
    picture, _ = data.pair("sq64")
    found = net(net.normalise(picture), ["relu5_1"])["relu5_1"]
    torch.testing.assert_close(found, data.tensor("sq64/content_relu5_1"), atol=1e-4, rtol=0)


@pytest.mark.parametrize("family", vgg.FAMILIES, ids=lambda family: family.name)
def test_normalise_can_be_undone(family):
    net = vgg.VGG(family, random_weights(family))
    picture = torch.rand(1, 3, 4, 4)
    torch.testing.assert_close(net.denormalise(net.normalise(picture)), picture)


@pytest.mark.parametrize("family", vgg.FAMILIES, ids=lambda family: family.name)
def test_each_family_is_recognised_under_any_name_and_prefix(family):
    blank = marked(family, {k: torch.zeros(shape) for k, shape in family.shapes().items()})
    assert vgg.recognise(dict(reversed(blank.items()))) is family
    assert vgg.load({f"module.{k}": v for k, v in blank.items()}).family is family
    for kind in (torch.float16, torch.bfloat16, torch.float64):
        assert vgg.recognise({k: v.to(kind) for k, v in blank.items()}) is family


# The first numbers of real files: torchvision's of the file itself, the others as printed by those who have them.
CAFFE_BIASES = [0.73429835, 0.093403675, 0.06775674, 0.8862966]
REAL = [
    (vgg.TORCHVISION_16, [[[-0.5537, 0.1427, 0.5290]]], [0.4034, 0.3778, 0.4644, -0.3228]),
    (vgg.TORCHVISION_19, [[[-5.3474e-02, -4.9257e-02, -6.7942e-02]]], []),
    (vgg.CAFFE_16, [[[0.42947057]], [[0.55037946]], [[0.48001540]]], CAFFE_BIASES),
    (vgg.CAFFE_16_RGB, [[[0.48001540]], [[0.55037946]], [[0.42947057]]], CAFFE_BIASES),
    (vgg.CAFFE_19, [[[0.341195]], [[0.464184]]], [0.7301776, 0.06493629, 0.03428847, 0.8260386]),
]


@pytest.mark.parametrize("family, kernel, biases", REAL, ids=lambda value: getattr(value, "name", ""))
def test_trainings_with_the_same_keys_are_told_apart_by_their_numbers(family, kernel, biases):
    weights = {k: torch.zeros(shape) for k, shape in family.shapes().items()}
    kernel, biases = torch.tensor(kernel), torch.tensor(biases)
    weights["features.0.weight"][0, :len(kernel), :1, :kernel.shape[-1]] = kernel
    weights["features.0.bias"][:len(biases)] = biases
    assert vgg.recognise(weights) is family


@pytest.mark.parametrize("depth", [16, 19])
def test_a_training_of_unknown_scale_is_refused(depth):
    family = vgg.TORCHVISION_16 if depth == 16 else vgg.TORCHVISION_19
    known = random_weights(family)
    with pytest.raises(ValueError, match=rf"layers of torchvision VGG-{depth}, Caffe VGG-{depth}.*another training"):
        vgg.load({**known, "features.0.weight": known["features.0.weight"] / 255})  # rescaled to 0..255
    with pytest.raises(ValueError, match="another training"):
        vgg.load({**known, "features.0.weight": known["features.0.weight"].flip(1)})  # made for BGR
    with pytest.raises(ValueError, match="another training"):
        vgg.load({k: torch.zeros_like(v) for k, v in known.items()})


def test_caffes_networks_see_what_caffe_showed_them():
    """The same colours for BGR and RGB: 0..255 less the mean of ImageNet; a network and its mirror agree."""
    picture = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(3))
    bgr = vgg.load(random_weights(vgg.CAFFE_16))
    expected = picture.flip(1) * 255 - torch.tensor([103.939, 116.779, 123.68]).view(1, 3, 1, 1)
    torch.testing.assert_close(bgr.normalise(picture), expected, atol=1e-3, rtol=0)
    weights = random_weights(vgg.CAFFE_16)
    weights["features.0.weight"] = weights["features.0.weight"].flip(1)
    rgb = vgg.load(weights)
    assert rgb.family is vgg.CAFFE_16_RGB
    found = [net(net.normalise(picture), ["relu2_1"])["relu2_1"] for net in (bgr, rgb)]
    torch.testing.assert_close(*found, atol=1e-2, rtol=1e-4)


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
