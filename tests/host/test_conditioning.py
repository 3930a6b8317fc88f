"""Styles in prompts: the same as stock embeddings, bit for bit."""
import copy
import sys
import tempfile
from pathlib import Path

import folder_paths
import pytest
import torch
from graph import random_style, stock
from inst_pack.inst_core import host, saving
from inst_pack.inst_core.stages import Stage
from inst_pack.inst_core.strength import BORDER
from inst_pack.inst_core.style import Style
from inst_pack.nodes.style import NO_STYLES, InSTLoadStyle, InSTStyleConditioning

import nodes as host_nodes


def saved(tokens: int = 3) -> str:
    saving.save_new(random_style(tokens), "wave", host.files.style_folders(), True)
    folder_paths.filename_list_cache.clear()
    return "wave_00001.safetensors"


def same(a: list, b: list) -> bool:
    return all(torch.equal(x[0], y[0]) and torch.equal(x[1]["pooled_output"], y[1]["pooled_output"])
               for x, y in zip(a, b, strict=True))


def apply(clip, text: str, strength: float = 1.0, value: Style | None = None) -> list:
    return InSTStyleConditioning.execute(clip, value or random_style(3), text, strength).result[0]


PROMPTS = ["*", "a house in the style of *", "*, a house", "a (red:1.2) house by (*:1.3), at night",
           "a very old house " * 25 + "in the style of *", "two of * and *", "house (in the style of *) at sea"]

LONG = "a very old house " * 18 + " * at night"


@pytest.mark.parametrize("tokens", [1, 3, 12])
@pytest.mark.parametrize("text", [*PROMPTS, "(*:0.5) by (embedding:wave_00001:1.2)"])
def test_apply_equals_embedding_in_a_stock_prompt(small, text, tokens):
    clip = small[1]
    name = saved(tokens).removesuffix(".safetensors")
    assert same(apply(clip, text, value=random_style(tokens)), stock(clip, text.replace("*", f" embedding:{name} ")))


OPENED: list[str] = []


@pytest.fixture(scope="module")
def watch_files():
    """What this process opens or makes is noted in ``OPENED`` (an audit hook stays until the process ends)."""
    watching = [True]
    sys.addaudithook(lambda event, arguments: OPENED.append(f"{event} {arguments[0]}") if watching and event in
                     ("open", "os.mkdir", "os.listdir", "os.scandir", "tempfile.mkdtemp", "tempfile.mkstemp") else None)
    yield
    watching.clear()


def mapped_files() -> set[str]:
    maps = Path("/proc/self/maps")
    return {line.split()[-1] for line in maps.read_text().splitlines() if "/" in line} if maps.exists() else set()


@pytest.mark.parametrize("strength", [1.0, 0.5])
def test_a_style_is_put_into_a_prompt_without_any_file(small, watch_files, monkeypatch, strength):
    """On Windows no file can be removed that a tensor is mapped on; and a temporary folder may be missing or full."""
    clip = small[1]
    before, maps = apply(clip, "a house, *", strength), mapped_files()
    monkeypatch.setattr(tempfile, "tempdir", "/nowhere/at/all")
    OPENED.clear()
    assert same(apply(clip, "a house, *", strength), before)
    assert not OPENED and mapped_files() <= maps


def test_learning_puts_pseudo_words_into_a_prompt_without_any_file(small, watch_files):
    clip = small[1]
    host.text.tokenize(clip, "a house, *", 3)
    OPENED.clear()
    host.text.tokenize(clip, "a house, *", 3)
    assert not OPENED


@pytest.mark.parametrize("text", [*PROMPTS, LONG])
def test_a_clip_without_an_embeddings_folder_takes_styles(small, text):
    """Loaders that pass no folder to the tokenizer."""
    clip = small[1]
    without = clip.clone()
    without.tokenizer = copy.copy(clip.tokenizer)
    without.tokenizer.clip_l = copy.copy(clip.tokenizer.clip_l)
    without.tokenizer.clip_l.embedding_directory = None
    assert same(apply(without, text), apply(clip, text))


def test_a_prompt_without_placeholder_gets_one(small):
    clip = small[1]
    assert same(apply(clip, "a house"), apply(clip, "a house in the style of *"))
    assert same(apply(clip, "  "), apply(clip, "*"))


@pytest.mark.parametrize("text", ["a house by (*:1.3), at night", LONG])
def test_strength_goes_from_the_starting_word_to_the_style(small, text):
    clip, learned = small[1], random_style(12)
    start = host.text.word_vectors(clip, "painting")["clip_l"].expand(12, -1)
    for strength in (0.0, 0.5, 2.0):
        between = Style({"clip_l": torch.lerp(start, learned.vectors["clip_l"], strength)}, family="SD15")
        found = apply(clip, text, strength, learned)
        assert same(found, apply(clip, text, value=between)) and len(found) == 1
        assert found[0][0].shape[1] == (77 if text != LONG else 154)


def test_the_word_that_a_style_started_from_is_remembered(small):
    learned = Style(random_style(3).vectors, family="SD15", metadata={"inst.start": "oil painting"})
    start = {k: v.expand(3, -1) for k, v in host.text.word_vectors(small[1], "oil painting").items()}
    assert same(apply(small[1], "*", 0.0, learned), apply(small[1], "*", value=Style(start, family="SD15")))


def with_direction(clip, word: str) -> Style:
    """A style of the starting word, a direction of its own, and that of a word of the vocabulary."""
    table = host.text.text_parts(clip)["clip_l"].table.float()
    token = clip.tokenizer.clip_l.tokenizer(word)["input_ids"][1]
    towards = table[token] - table.mean(0)
    return Style({"clip_l": random_style(2).vectors["clip_l"] + 3 * towards}, family="SD15")


def test_content_words_take_their_direction_out_of_a_style(small):
    clip = small[1]
    learned, table = with_direction(clip, "sunflower"), host.text.text_parts(clip)["clip_l"].table.float()
    start = host.text.word_vectors(clip, "painting")["clip_l"]

    def apply_part(**more):
        return InSTStyleConditioning.execute(clip, learned, "a house, *", 1.0, **more).result[0]

    (without, _), (alone, nothing) = (host.text.part_of_style(clip, learned, "sunflower", part)
                                      for part in ("style", "content"))
    token = clip.tokenizer.clip_l.tokenizer("sunflower")["input_ids"][1]
    word = torch.nn.functional.normalize(table[token] - table.mean(0), dim=0)
    share = (learned.vectors["clip_l"] - start) @ word
    assert ((without.vectors["clip_l"] - start) @ word).abs().max() < 1e-4 < 0.1 < share.min()
    torch.testing.assert_close(alone.vectors["clip_l"] - nothing["clip_l"], share[:, None] * word, atol=1e-5, rtol=1e-4)
    for part, split in (("style", without), ("content", alone)):
        assert same(apply_part(content="sunflower", part=part), apply(clip, "a house, *", value=split))
    assert same(apply_part(content=" "), apply_part()) and same(apply_part(part="style"), apply_part())
    assert not same(apply_part(content="sunflower"), apply_part())


def test_the_content_part_comes_from_an_empty_prompt(small):
    """Where a style has nothing of the content, and at strength 0. (The pooled output, which SD 1.x ignores, is that of
    the place behind the padding.)"""
    clip = small[1]
    empty = stock(clip, "")

    def close(found) -> bool:
        return torch.allclose(found[0][0], empty[0][0], atol=1e-5)

    def negative(value, strength):
        return InSTStyleConditioning.execute(clip, value, "*", strength, content="sunflower", part="content").result[0]

    clean = Style(host.text.word_vectors(clip, "painting"), family="SD15")
    assert close(negative(clean, 1.0)) and close(negative(with_direction(clip, "sunflower"), 0.0))
    assert not close(negative(with_direction(clip, "sunflower"), 1.0))


def test_a_learned_word_is_content_too(small):
    """The direction from the starting word to it is taken out whole."""
    clip, name = small[1], saved(2).removesuffix(".safetensors")
    start = host.text.word_vectors(clip, "painting")["clip_l"]
    towards = random_style(2).vectors["clip_l"] - start
    own = torch.randn(2, 768, generator=torch.Generator().manual_seed(5)) * 0.02
    both = Style({"clip_l": start + own + 2 * towards}, family="SD15")
    found = host.text.part_of_style(clip, both, f"embedding:{name}")[0].vectors["clip_l"]
    basis = torch.linalg.qr(towards.T).Q
    torch.testing.assert_close(found, start + own - own @ basis @ basis.T, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("more, says", [({"part": "content"}, "content is empty"), ({"content": ",;"}, "no words")])
def test_content_without_words_is_refused(small, more, says):
    with pytest.raises(ValueError, match=says):
        InSTStyleConditioning.execute(small[1], random_style(3), "*", 1.0, **more)


def test_stages_are_applied_in_their_ranges(small):
    """Each is conditioned as the style of one stage is; embedding:name reads the middle one."""
    clip = small[1]
    vectors = [torch.randn(2, 768, generator=torch.Generator().manual_seed(i)) * 0.02 for i in range(3)]
    stages = tuple(Stage(start, {"clip_l": v}) for start, v in zip((0.0, 0.4, 0.7), vectors, strict=True))
    whole = Style(stages[1].vectors, family="SD15", stages=stages)
    alone = [Style(stage.vectors, family="SD15") for stage in stages]

    def apply_all(value, **more):
        return InSTStyleConditioning.execute(clip, value, "a house, *", 0.8, **more).result[0]

    for more in ({}, {"content": "sunflower"}, {"content": "sunflower", "part": "content"}):
        found = apply_all(whole, **more)
        assert same(found, [apply_all(one, **more)[0] for one in alone])
        ranges = [(extra["start_percent"], extra["end_percent"]) for _, extra in found]
        assert ranges == [(0.0, 0.4 + BORDER), (0.4 + BORDER, 0.7 + BORDER), (0.7 + BORDER, 1.0)]
    late = apply_all(whole, start_percent=0.5)
    assert [extra["start_percent"] for _, extra in late] == [0.0, 0.4 + BORDER, 0.5 - BORDER, 0.7 + BORDER]
    assert torch.equal(late[3][0], apply_all(alone[2])[0][0])
    saving.save_new(whole, "stages", host.files.style_folders(), True)
    middle = apply(clip, "*", value=alone[1])
    assert same(stock(clip, "embedding:stages_00001"), middle)
    loaded = InSTLoadStyle.execute("stages_00001.safetensors").result[0]
    assert same(apply(clip, "*", value=loaded), apply(clip, "*", value=whole))


@pytest.mark.parametrize("text", ["a house, (*:1.2)", "((*))", "a house, * and (*:0.5)"])
def test_nothing_of_the_style_is_left_in_the_neutral_prompt(small, text):
    """What the other blocks see while a style acts in the late ones."""
    without = {"a house, (*:1.2)": "a house, ", "((*))": "", "a house, * and (*:0.5)": "a house, and"}[text]
    assert host.text.tokenize(small[1], text, 0).tokens == small[1].tokenize(without)


def test_an_escaped_star_is_a_star(small):
    clip = small[1]
    assert host.text.tokenize(clip, r"a 5\*4 grid", 3).tokens == clip.tokenize("a 5*4 grid")
    assert same(apply(clip, r"a 5\*4 grid"), apply(clip, r"a 5\*4 grid in the style of *"))
    stars = clip.tokenize("star * star")["l"][0]
    assert host.text.tokenize(clip, r"star \* star", 3).tokens["l"][0] == stars


def test_strength_over_steps(small):
    """With the end at a half, the second half of the sampling is the plain prompt's, the first half the style's."""
    model, clip, _ = small
    sampling = model.get_model_object("model_sampling")
    latent = {"samples": 10 * torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))}

    def course(start: float, end: float, shape: str = "constant") -> list:
        return InSTStyleConditioning.execute(clip, random_style(3), "a house, *", 1.0, start, end, shape).result[0]

    always, plain = apply(clip, "a house, *"), apply(clip, "a house, *", 0.0)
    early, late = course(0, 0.5), course(0.5, 1)
    assert same(course(0, 1), always) and "start_percent" not in course(0, 1)[0][1]

    def sampled(positive: list, latent: dict, first: int, last: int) -> torch.Tensor:
        return host_nodes.KSamplerAdvanced().sample(model, "disable", 0, 4, 3.0, "euler", "normal", positive, plain,
                                                    latent, first, last, "enable")[0]["samples"]

    middle = sampled(always, latent, 0, 2)
    assert torch.equal(sampled(early, latent, 0, 2), middle)
    assert not torch.equal(sampled(plain, latent, 0, 2), middle)

    def rest(positive: list) -> torch.Tensor:
        return sampled(positive, {"samples": middle}, 2, 4)

    assert torch.equal(rest(early), rest(plain)) and torch.equal(rest(late), rest(always))
    assert not torch.equal(rest(early), rest(always))
    for shape in ("ease in", "ease out"):
        assert len(course(0, 0.5, shape)) == 9 and torch.equal(rest(course(0, 0.5, shape)), rest(plain))
    # A step right on the border is the style's alone.
    border = float(sampling.percent_to_sigma(0.5))
    noise, levels = host.sampling.invert(model, plain, latent, 0.5, 0).noise, torch.tensor([border, 0.0])
    one = {name: host.sampling.sample(model, positive, plain, latent, noise, levels, 1.0, "euler")["samples"]
           for name, positive in (("early", early), ("always", always), ("late", late))}
    assert torch.equal(one["early"], one["always"]) and torch.equal(one["late"], one["always"])


@pytest.mark.parametrize("text", ["embedding:*", "(embedding:) *", "* embedding:"])
def test_an_embedding_without_a_name_is_named(small, text):
    with pytest.raises(ValueError, match=r"'embedding:' without a name.* or \* alone"):
        apply(small[1], text)


def test_load_lists_and_validates(small, monkeypatch):
    shipped = host.files.style_files()
    assert shipped and InSTLoadStyle.define_schema().inputs[0].options == shipped
    monkeypatch.setattr(host.files, "SHIPPED_STYLES", Path("nowhere"))
    folder_paths.folder_names_and_paths.pop(host.files.STYLE_FOLDER)
    host.files.register_folders()
    folder_paths.filename_list_cache.clear()
    assert InSTLoadStyle.define_schema().inputs[0].options == [NO_STYLES]
    assert "Run Learn InST Style once" in InSTLoadStyle.validate_inputs(NO_STYLES)
    name = saved()
    assert "is not in the folder" in InSTLoadStyle.validate_inputs("gone.safetensors")
    assert "is not in the folder" in InSTLoadStyle.validate_inputs("../../etc/passwd")
    assert InSTLoadStyle.define_schema().inputs[0].options == [name]
    assert InSTLoadStyle.validate_inputs(name) is True
    before = InSTLoadStyle.fingerprint_inputs(name)
    path = host.files.style_path(name)
    path.write_bytes(path.read_bytes()[:-1] + b"\x01")
    assert InSTLoadStyle.fingerprint_inputs(name) != before
