"""The style file: round trip, what stock loaders see, and every way a file can be wrong."""
import json
import struct

import pytest
import torch
from inst_pack.inst_core import saving
from inst_pack.inst_core.style import (
    Style,
    StyleError,
    check_fits,
    load_style,
    save_style,
    thumbnail,
    to_bytes,
)
from safetensors import safe_open
from safetensors.torch import save_file


def style(tokens: int = 2, **vectors: torch.Tensor) -> Style:
    generator = torch.Generator().manual_seed(0)
    vectors = vectors or {"clip_l": torch.randn(tokens, 768, generator=generator)}
    return Style(vectors, "direct", "SD15", {"vectors.clip_l": torch.ones(tokens, 768)},
                 {"image_embed": torch.ones(1, 768)}, {"inst.text": "*", "modelspec.title": "x"})


def test_round_trip_is_bit_equal(tmp_path):
    save_style(style(), tmp_path / "a.safetensors")
    loaded = load_style(tmp_path / "a.safetensors")
    assert torch.equal(loaded.vectors["clip_l"], style().vectors["clip_l"])
    assert (loaded.encoder, loaded.family, loaded.tokens) == ("direct", "SD15", 2)
    assert set(loaded.encoder_weights) == {"vectors.clip_l"} and set(loaded.extra) == {"image_embed"}
    assert loaded.metadata["inst.text"] == "*"


def test_the_first_tensor_is_the_embedding_even_for_loaders_that_take_the_first(tmp_path):
    save_style(style(clip_h=torch.ones(1, 1024)), tmp_path / "a.safetensors")
    with safe_open(tmp_path / "a.safetensors", "pt") as file:
        assert next(iter(file.keys())) == "clip_h"


def test_disabled_metadata_keeps_format_and_family_only(tmp_path):
    save_style(style(), tmp_path / "a.safetensors", with_metadata=False)
    assert load_style(tmp_path / "a.safetensors").metadata == {
        "inst.version": "1", "inst.encoder": "direct", "inst.family": "SD15", "inst.layers": "all"}


def test_saving_leaves_nothing_but_the_file_and_a_failure_leaves_nothing(tmp_path, monkeypatch):
    save_style(style(), tmp_path / "a.safetensors")
    assert [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]

    def disk_full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", disk_full)
    with pytest.raises(OSError):
        save_style(style(), tmp_path / "b.safetensors")
    assert [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]


def test_a_style_that_cannot_be_saved_in_models_goes_elsewhere_and_says_so(tmp_path):
    blocked = tmp_path / "models"
    blocked.write_text("a file where the folder should be")
    text = saving.save_new(style(), "wave", [blocked / "inst_styles", tmp_path / "output"], True)
    assert "saved as" in text and str(tmp_path / "output" / "wave_00001.safetensors") in text
    assert "could not be saved in" in text
    load_style(tmp_path / "output" / "wave_00001.safetensors")
    nowhere = saving.save_new(style(), "wave", [blocked / "inst_styles"], True)
    assert "NOT SAVED" in nowhere and "on this node's output" in nowhere


def test_names_are_numbered_and_never_overwrite(tmp_path):
    for expected in ("wave_00001", "wave_00002"):
        assert expected in saving.save_new(style(), "wave", [tmp_path], True)
    assert "wave_x_00001" in saving.save_new(style(), "wave_x", [tmp_path], True)


@pytest.mark.parametrize("name", ["../up", "a/b", "a\\b", "", "..", ".hidden", "two words", "a,b", "a*", "x" * 101])
def test_unusable_names_are_refused(name):
    with pytest.raises(ValueError, match="expected a plain file name"):
        saving.check_name(name)


@pytest.mark.parametrize("name", ["starry_night", "星月夜", "été-2"])
def test_unicode_names_work(tmp_path, name):
    saving.check_name(name)
    assert f"embedding:{name}_00001" in saving.save_new(style(), name, [tmp_path], True)
    load_style(tmp_path / f"{name}_00001.safetensors")


def write(path, tensors, metadata=None):
    save_file(tensors, path, metadata)
    return path


def test_wrong_files_say_what_they_are(tmp_path):
    pickle = tmp_path / "pickle.safetensors"
    torch.save({"clip_l": torch.ones(1, 768)}, pickle)
    garbage = tmp_path / "garbage.safetensors"
    garbage.write_bytes(b"\xff" * 100)
    header = json.dumps({"clip_l": {"dtype": "F32", "shape": [9, 768], "data_offsets": [0, 27648]}}).encode()
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(struct.pack("<Q", len(header)) + header + b"\0" * 100)
    huge = tmp_path / "huge.safetensors"
    with huge.open("wb") as file:
        file.truncate(300 * 2**20)
    nan = torch.ones(1, 768)
    nan[0, 3] = float("nan")
    cases = {
        tmp_path / "gone.safetensors": "is not there",
        pickle: "is a pickle",
        garbage: "is not a safetensors file",
        cut: "is damaged",
        huge: "looks like a model checkpoint",
        write(tmp_path / "lora.safetensors", {"lora_up.weight": torch.ones(2)}): "is not a style: it holds lora_up",
        write(tmp_path / "nan.safetensors", {"clip_l": nan}): "NaN",
        write(tmp_path / "wide.safetensors", {"clip_l": torch.ones(1, 1024)}): "width 1024, that text encoder takes",
        write(tmp_path / "flat.safetensors", {"clip_l": torch.ones(768)}): r"\(768,\)",
        write(tmp_path / "int.safetensors", {"clip_l": torch.ones(1, 768).long()}): "int64",
        write(tmp_path / "many.safetensors", {"clip_l": torch.ones(100, 768)}): "expected floating point",
        write(tmp_path / "odd.safetensors", {"clip_l": torch.ones(1, 768), "clip_g": torch.ones(2, 1280)}): "disagree",
        write(tmp_path / "new.safetensors", {"clip_l": torch.ones(1, 768)}, {"inst.version": "9"}): "format 9",
        write(tmp_path / "enc.safetensors", {"clip_l": torch.ones(1, 768), "inst.encoder.x": nan}): "inst.encoder.x",
    }
    for path, message in cases.items():
        with pytest.raises(StyleError, match=message):
            load_style(path)


def test_plain_textual_inversion_files_are_styles_too(tmp_path):
    loaded = load_style(write(tmp_path / "ti.safetensors", {"clip_l": torch.ones(3, 768).half()}))
    assert loaded.tokens == 3 and loaded.vectors["clip_l"].dtype == torch.float32


def test_a_style_of_another_family_is_refused_with_both_sides_named():
    xl = style(clip_l=torch.ones(1, 768), clip_g=torch.ones(1, 1280))
    check_fits(xl, {"clip_l": 768, "clip_g": 1280})
    with pytest.raises(StyleError, match=r"clip_l \(768\), clip_g \(1280\).*takes clip_l \(768\)\."):
        check_fits(xl, {"clip_l": 768})
    with pytest.raises(StyleError, match=r"takes clip_l \(768\), clip_g \(1280\)"):
        check_fits(style(), {"clip_l": 768, "clip_g": 1280})


def test_a_style_with_nan_is_not_written(tmp_path):
    bad = Style({"clip_l": torch.full((1, 768), float("nan"))})
    with pytest.raises(StyleError, match="NaN"):
        save_style(bad, tmp_path / "a.safetensors")
    assert not list(tmp_path.iterdir())


def test_thumbnail_is_a_small_jpeg():
    uri = thumbnail(torch.rand(300, 900, 3, generator=torch.Generator().manual_seed(0)))
    assert uri.startswith("data:image/jpeg;base64,") and len(uri) < 60_000


def test_file_size_is_small():
    assert len(to_bytes(Style({"clip_l": torch.ones(4, 768)}))) < 20_000
