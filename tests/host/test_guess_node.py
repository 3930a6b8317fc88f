"""A style at a glance, as users meet it: from files to a style that applies, is saved, and is learned on from."""
import os
from dataclasses import replace
from pathlib import Path

import comfy.clip_vision
import pytest
import torch
from inst_pack.inst_core import guessing, host
from inst_pack.inst_core.recipes import choose_recipe
from inst_pack.nodes.guess import NO_ENCODERS, InSTGuessStyle
from inst_pack.nodes.style import InSTLoadStyle, InSTSaveStyle, InSTStyleConditioning

MODELS = os.environ.get("INST_MODELS", "")
SHIPPED = "inst-demo-guesser.safetensors"
ABOUT = guessing.About("alexnet", {"clip_l": 768}, tokens=2, hidden=8, rank=4, side=64, family="SD15",
                       base_model="inst-small.safetensors")


@pytest.fixture()
def encoder(folders, small):
    """Writes an encoder with random heads into models/inst_encoders; returns its name."""
    def write(about: guessing.About = ABOUT, name: str = "mine.safetensors") -> str:
        with torch.inference_mode(False), torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            start = {k: host.text.word_vectors(small[1], "painting").get(k, torch.ones(1, w)).clone()
                     for k, w in about.widths.items()}
            made = guessing.Guesser(about, start).requires_grad_(False)
            for head in made.heads.values():
                head.weight.normal_()
            guessing.save(made, folders / "models" / "inst_encoders" / name)
        return name
    return write


def test_a_guess_is_applied_saved_loaded_and_learned_on_from(lpips_file, encoder, small, pictures, folders):
    style, text = InSTGuessStyle.execute(pictures, encoder(), "ukiyo-e, woodblock print").result
    assert (style.encoder, style.tokens, style.family, text) == ("direct", 2, "SD15", "*, ukiyo-e, woodblock print")
    other, _ = InSTGuessStyle.execute(pictures[:1], "mine.safetensors").result
    assert not torch.allclose(style.vectors["clip_l"], other.vectors["clip_l"])
    conditioning = InSTStyleConditioning.execute(small[1], style, text, 1.0).result[0]
    assert torch.isfinite(conditioning[0][0]).all()

    InSTSaveStyle.execute(style, "glance")
    loaded = InSTLoadStyle.execute("glance_00001.safetensors")
    assert loaded.ui.as_dict()["text"] == ("ukiyo-e, woodblock print",)
    assert torch.equal(loaded.result[0].vectors["clip_l"], style.vectors["clip_l"])

    module = host.learning.make_encoder(small[1], choose_recipe("direct", tokens=2), loaded.result[0])
    assert torch.equal(module()["clip_l"], style.vectors["clip_l"])


def test_words_of_the_context_are_what_it_starts_from_where_a_clip_reads_them(lpips_file, encoder, small, pictures):
    name, words = encoder(), "woodblock print"
    plain = InSTGuessStyle.execute(pictures, name).result[0]
    there = InSTGuessStyle.execute(pictures, name, words, small[1]).result[0]
    assert (plain.metadata["inst.start"], there.metadata["inst.start"]) == ("painting", words)
    start = {k: host.text.word_vectors(small[1], w)["clip_l"] for k, w in (("painting", "painting"), ("words", words))}
    apart = [(style.vectors["clip_l"] - v) / v.norm() for style, v in zip((plain, there), start.values(), strict=True)]
    assert torch.allclose(*apart, atol=1e-2)  # the file is in half precision


def test_an_encoder_may_see_through_clip(encoder, pictures):
    vision = comfy.clip_vision.load(str(Path(MODELS, "clip_vision", "inst-small-vit-l.safetensors")))
    name = encoder(replace(ABOUT, features="clip_vit_l14"))
    words = InSTGuessStyle.execute(pictures[:1], name, clip_vision=vision).result[0].vectors["clip_l"]
    assert torch.isfinite(words).all() and not torch.allclose(words[0], words[1])


def test_what_cannot_be_guessed_is_refused_by_name(encoder, small, pictures, folders):
    name = encoder()
    with pytest.raises(ValueError, match="lpips-alex.safetensors is not in models/style_transfer"):
        InSTGuessStyle.execute(pictures, name)
    clip_eyes = encoder(replace(ABOUT, features="clip_vit_l14"), "clip.safetensors")
    with pytest.raises(ValueError, match="clip_vision is not connected"):
        InSTGuessStyle.execute(pictures, clip_eyes)
    sdxl = encoder(replace(ABOUT, widths={"clip_l": 768, "clip_g": 1280}), "sdxl.safetensors")
    with pytest.raises(ValueError, match=r"clip_l \(768\), clip_g \(1280\); the connected clip has clip_l \(768\)"):
        InSTGuessStyle.execute(pictures, sdxl, clip=small[1])
    assert "put one into" in InSTGuessStyle.validate_inputs(NO_ENCODERS).lower()
    assert "gone.safetensors" in InSTGuessStyle.validate_inputs("gone.safetensors")
    assert InSTGuessStyle.validate_inputs(name) is True


def test_the_shipped_encoder_is_found_without_copying_and_is_for_the_demo_model():
    assert SHIPPED in host.files.guesser_files()
    path = Path(host.files.guesser_path(SHIPPED))
    about = guessing.load(path).about
    assert (about.base_model, about.features, about.tokens) == ("inst-demo.safetensors", "alexnet", 4)
    assert path.stat().st_size <= 3_000_000
