"""Guessing styles: the network, its file, and what wrong files are told."""
import json
from dataclasses import replace

import pytest
import safetensors.torch
import torch
from inst_pack.inst_core import guessing
from inst_pack.inst_core.content import span
from inst_pack.inst_core.metrics.alexnet import AlexNet, shapes
from inst_pack.inst_core.style import Style, save_style

ABOUT = guessing.About("alexnet", {"clip_l": 8, "clip_g": 12}, tokens=3, hidden=16, rank=4, side=64, family="SDXL",
                       base_model="some.safetensors", trained_on="nothing")


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def start() -> dict[str, torch.Tensor]:
    return {k: random(1, w, seed=w) for k, w in ABOUT.widths.items()}


@pytest.fixture()
def guesser() -> guessing.Guesser:
    torch.manual_seed(0)
    made = guessing.Guesser(ABOUT, start())
    with torch.no_grad():
        for head in made.heads.values():
            head.weight.normal_()
            head.bias.normal_()
    return made


@pytest.fixture(scope="module")
def alexnet() -> AlexNet:
    return AlexNet({k: 0.05 * random(*s, seed=i) for i, (k, s) in enumerate(shapes().items())})


def features(pictures: int = 2) -> torch.Tensor:
    return random(pictures, guessing.FEATURES["alexnet"], seed=5)


def test_a_fresh_guesser_says_the_starting_words():
    vectors = guessing.guess(guessing.Guesser(ABOUT, start()), features())
    assert all(torch.equal(vectors[k], v.expand(3, -1)) for k, v in start().items())


def test_the_best_linear_guess_is_found_and_loses_no_width():
    """Words that are a linear map of the features, in as many dimensions as the network is wide inside."""
    about = replace(ABOUT, rank=6)
    guesser, seen = guessing.Guesser(about, start()), random(40, guessing.FEATURES["alexnet"])
    guesser.standardize(seen)
    hidden = (seen @ random(seen.shape[1], 3, seed=1)) / 50
    words = {k: 0.3 + v + hidden @ random(3, v.shape[1], seed=2) for k, v in start().items()}
    guesser.solve(seen, words, 1e-6)
    for key, vectors in guesser(seen).items():
        assert torch.allclose(vectors, words[key][:, None].expand_as(vectors), atol=1e-2)
    guesser.solve(seen, words, 1e9)  # nothing but the mean is left
    assert torch.allclose(guesser(seen)["clip_g"][0, 0], words["clip_g"].mean(0), atol=1e-2)


def test_offsets_are_in_the_length_of_the_starting_words(guesser):
    """Words ten times as long, as in another vocabulary, move ten times as far."""
    usual, longer = (guessing.guess(guesser, features(), {k: n * v for k, v in start().items()}) for n in (1, 10))
    assert all(torch.allclose(longer[k], 10 * usual[k], rtol=1e-4, atol=1e-3) for k in usual)


def test_pictures_of_one_style_count_together_and_in_any_order(guesser):
    first, second = (guessing.guess(guesser, features()[order]) for order in ([0, 1], [1, 0]))
    assert torch.allclose(first["clip_l"], second["clip_l"], atol=1e-5)
    assert not torch.allclose(first["clip_l"], guessing.guess(guesser, features()[:1])["clip_l"])


def test_removed_directions_are_gone_from_every_guess(guesser):
    words = {k: random(2, w, seed=9) for k, w in ABOUT.widths.items()}
    guesser.remove({k: span(w) for k, w in words.items()})
    for key, offset in guesser.offsets(features()).items():
        assert (offset @ words[key].mT).abs().max() < 1e-4 and offset.norm() > 1


def test_features_are_finite_and_as_many_as_promised_whatever_the_size(alexnet):
    for height, width in ((64, 64), (40, 200), (3, 3)):
        seen = guessing.alexnet_features(alexnet, torch.rand(2, height, width, 3), 64)
        assert seen.shape == (2, guessing.FEATURES["alexnet"]) and torch.isfinite(seen).all()


def test_the_file_gives_the_guesser_back(guesser, tmp_path):
    guesser.standardize(random(9, guessing.FEATURES["alexnet"]))
    guessing.save(guesser, tmp_path / "guesser.safetensors")
    again = guessing.load(tmp_path / "guesser.safetensors")
    assert again.about == ABOUT and not list(tmp_path.glob(".*"))
    expected, found = (guessing.guess(g, features()) for g in (guesser, again))
    assert all(torch.allclose(found[k], expected[k], atol=0.05, rtol=0.02) for k in expected)  # half precision


def header(**changes: object) -> dict[str, str]:
    return {guessing.ABOUT: guessing.FORMAT, "about": json.dumps({**vars(ABOUT), **changes})}


@pytest.mark.parametrize(("metadata", "said"), [
    (None, "a file of 1 tensors"),
    ({guessing.ABOUT: "2", "about": "{}"}, "format '2'"),
    (header(features="vgg"), "Update ComfyUI-InST"),
    (header(colour=1), "Update ComfyUI-InST"),
    (header(tokens=-1), "Update ComfyUI-InST"),
    (header(), "does not hold what its header says"),
])
def test_another_file_is_refused_by_what_it_is(tmp_path, metadata, said):
    path = tmp_path / "other.safetensors"
    path.write_bytes(safetensors.torch.save({"x": torch.zeros(2)}, metadata))
    with pytest.raises(ValueError, match=said):
        guessing.load(path)


def test_styles_and_damaged_files_are_refused_by_what_they_are(guesser, tmp_path):
    style, cut, empty = (tmp_path / f"{name}.safetensors" for name in ("style", "cut", "empty"))
    save_style(Style({"clip_l": torch.ones(1, 8)}), style)
    guessing.save(guesser, cut)
    cut.write_bytes(cut.read_bytes()[:-100])
    empty.touch()
    with pytest.raises(ValueError, match="is a style, for Load InST Style. Choose an encoder"):
        guessing.load(style)
    for path in (cut, empty, tmp_path / "nowhere.safetensors"):
        with pytest.raises(ValueError, match=path.name):
            guessing.load(path)


def test_numbers_that_are_not_finite_are_refused(guesser, tmp_path):
    guesser.mean[0] = float("nan")
    guessing.save(guesser, tmp_path / "g.safetensors")
    with pytest.raises(ValueError, match="mean contains NaN"):
        guessing.load(tmp_path / "g.safetensors")


def test_a_guessed_style_is_an_ordinary_one_that_says_where_it_is_from(guesser):
    vectors = guessing.guess(guesser, features())
    style = guessing.guessed_style(guesser, vectors, torch.rand(1, 8, 8, 3), "g.safetensors", "ukiyo-e", "ukiyo-e")
    assert (style.encoder, style.family, style.tokens) == ("direct", "SDXL", 3)
    assert style.metadata["inst.guessed_by"] == "g.safetensors" and style.metadata["inst.context"] == "ukiyo-e"
    assert replace(ABOUT).describe().startswith("3 tokens for clip_l (8), clip_g (12), SDXL, from alexnet features")
