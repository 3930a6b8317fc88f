"""Styles in prompts: the same as stock embeddings, bit for bit."""
import folder_paths
import pytest
import torch
from inst_pack.inst_core import host, saving
from inst_pack.inst_core.style import Style
from inst_pack.nodes.style import NO_STYLES, InSTLoadStyle, InSTSaveStyle, InSTStyleConditioning

import nodes as host_nodes


def style(tokens: int = 3) -> Style:
    return Style({"clip_l": torch.randn(tokens, 768, generator=torch.Generator().manual_seed(0)) * 0.02}, family="SD15")


def saved(tokens: int = 3) -> str:
    saving.save_new(style(tokens), "wave", host.style_folders(), True)
    folder_paths.filename_list_cache.clear()
    return "wave_00001.safetensors"


def same(a: list, b: list) -> bool:
    return all(torch.equal(x[0], y[0]) and torch.equal(x[1]["pooled_output"], y[1]["pooled_output"])
               for x, y in zip(a, b, strict=True))


def apply(clip, text: str, strength: float = 1.0, value: Style | None = None) -> list:
    return InSTStyleConditioning.execute(clip, value or style(), text, strength).result[0]


def stock(clip, text: str) -> list:
    return host_nodes.CLIPTextEncode().encode(clip, text)[0]


PROMPTS = ["*", "a house in the style of *", "*, a house", "a (red:1.2) house by (*:1.3), at night",
           "a very old house " * 25 + "in the style of *", "two of * and *", "house (in the style of *) at sea"]


@pytest.mark.parametrize("tokens", [1, 3, 12])
@pytest.mark.parametrize("text", PROMPTS)
def test_apply_equals_embedding_in_a_stock_prompt(small, text, tokens):
    clip = small[1]
    name = saved(tokens).removesuffix(".safetensors")
    assert same(apply(clip, text, value=style(tokens)), stock(clip, text.replace("*", f" embedding:{name} ")))


def test_the_style_is_not_silently_ignored(small):
    clip = small[1]
    assert not torch.equal(apply(clip, "a house, *")[0][0], stock(clip, "a house, ")[0][0])


def test_a_loaded_style_gives_bit_equal_conditioning(small):
    clip, name = small[1], saved()
    loaded = InSTLoadStyle.execute(name).result[0]
    assert same(apply(clip, "a house, *", value=loaded), apply(clip, "a house, *"))


def test_a_prompt_without_placeholder_gets_one(small):
    clip = small[1]
    assert same(apply(clip, "a house"), apply(clip, "a house in the style of *"))
    assert same(apply(clip, "  "), apply(clip, "*"))


def test_strength_zero_is_no_style_and_others_lie_on_the_line(small):
    clip, text = small[1], "a house, *"
    none, full = apply(clip, text, 0.0), apply(clip, text, 1.0)
    assert same(none, stock(clip, "a house, "))
    for strength in (0.25, 2.0):
        found = apply(clip, text, strength)
        torch.testing.assert_close(found[0][0], none[0][0] + strength * (full[0][0] - none[0][0]), atol=1e-4, rtol=1e-4)
    longer = apply(clip, "a very old house " * 18 + " * at night", 0.5, style(12))
    assert torch.isfinite(longer[0][0]).all()


def test_users_own_embeddings_still_work_beside_a_style(small, folders):
    clip, name = small[1], saved().removesuffix(".safetensors")
    both = apply(clip, f"embedding:{name} and *")
    assert not torch.equal(both[0][0], apply(clip, "and *")[0][0])


def test_other_families_are_refused(small):
    xl = Style({"clip_l": torch.ones(1, 768), "clip_g": torch.ones(1, 1280)}, family="SDXL")
    with pytest.raises(ValueError, match="SDXL; the connected CLIP takes clip_l"):
        apply(small[1], "*", value=xl)


def test_load_lists_and_validates(small):
    assert InSTLoadStyle.define_schema().inputs[0].options == [NO_STYLES]
    assert "Run Learn InST Style once" in InSTLoadStyle.validate_inputs(NO_STYLES)
    assert "is not in the folder" in InSTLoadStyle.validate_inputs("gone.safetensors")
    assert "is not in the folder" in InSTLoadStyle.validate_inputs("../../etc/passwd")
    name = saved()
    assert InSTLoadStyle.define_schema().inputs[0].options == [name]
    assert InSTLoadStyle.validate_inputs(name) is True
    before = InSTLoadStyle.fingerprint_inputs(name)
    path = host.style_path(name)
    path.write_bytes(path.read_bytes()[:-1] + b"\x01")
    assert InSTLoadStyle.fingerprint_inputs(name) != before


def test_save_node_numbers_its_files(small):
    texts = [InSTSaveStyle.execute(style(), "été").ui.as_dict()["text"][0] for _ in range(2)]
    assert "été_00001" in texts[0] and "été_00002" in texts[1]
    with pytest.raises(ValueError, match="Expected a file name"):
        InSTSaveStyle.execute(style(), "../été")
