"""The style file: round trip, what stock loaders see, and every way a file can be wrong."""
import json
import os
import struct
from pathlib import Path

import pytest
import torch
from inst_pack.inst_core.style import Style, check_fits, load_style, save_style, thumbnail
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


def test_what_a_death_left_behind_is_cleared_a_day_later(tmp_path):
    old, new, other = tmp_path / ".1.partial", tmp_path / ".2.partial", tmp_path / "3.partial"
    for path in (old, new, other):
        path.touch()
    for path in (old, other):
        os.utime(path, (0, 0))
    save_style(style(), tmp_path / "a.safetensors")
    assert {p.name for p in tmp_path.iterdir()} == {".2.partial", "3.partial", "a.safetensors"}


def overwritten(path):
    with path.open("r+b") as file:
        file.write(b"\xff" * path.stat().st_size)


def cut(path):
    os.truncate(path, 10)


def test_a_loaded_style_does_not_follow_its_file(tmp_path):
    """Every tensor of it: a mapped one would change, or end the process where the file is cut off."""
    for change in (overwritten, cut):
        path = tmp_path / f"{change.__name__}.safetensors"
        save_style(style(), path)
        loaded = load_style(path)
        assert str(path) not in Path("/proc/self/maps").read_text() if Path("/proc/self/maps").exists() else True
        change(path)
        assert torch.equal(loaded.vectors["clip_l"], style().vectors["clip_l"])
        assert torch.equal(loaded.encoder_weights["vectors.clip_l"], torch.ones(2, 768))
        assert torch.equal(loaded.extra["image_embed"], torch.ones(1, 768))


@pytest.mark.parametrize("error", [OSError(5, "Input/output error"), PermissionError(13, "Permission denied")])
def test_a_file_that_cannot_be_read_is_named(tmp_path, monkeypatch, error):
    def fail(*_):
        raise error

    save_style(style(), tmp_path / "a.safetensors")
    monkeypatch.setattr(Path, "open", fail)
    with pytest.raises(ValueError, match=rf"a\.safetensors cannot be read \({error.strerror}\)"):
        load_style(tmp_path / "a.safetensors")


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
        pickle: "is a pickle.*Give it its ending .pt again",
        garbage: "is not a safetensors file",
        cut: "is damaged",
        huge: "looks like a model checkpoint",
        write(tmp_path / "lora.safetensors", {"lora_up.weight": torch.ones(2)}): r"is not a style: it holds lora_up\.w",
        write(tmp_path / "nan.safetensors", {"clip_l": nan}): "NaN",
        write(tmp_path / "vast.safetensors", {"clip_l": torch.ones(1, 20000)}): r"\(1, 20000\); expected floating",
        write(tmp_path / "cube.safetensors", {"clip_l": torch.ones(1, 1, 768)}): r"\(1, 1, 768\); expected floating",
        write(tmp_path / "none.safetensors", {"clip_l": torch.ones(0, 768)}): r"\(0, 768\); expected floating",
        write(tmp_path / "int.safetensors", {"clip_l": torch.ones(1, 768).long()}): "int64",
        write(tmp_path / "many.safetensors", {"clip_l": torch.ones(80, 768)}): "has 80 tokens; a style has at most 75",
        write(tmp_path / "empty.safetensors", {}, {"inst.version": "1"}): "holds no style vectors",
        write(tmp_path / "odd.safetensors", {"clip_l": torch.ones(1, 768), "clip_g": torch.ones(2, 1280)}): "disagree",
        write(tmp_path / "new.safetensors", {"clip_l": torch.ones(1, 768)}, {"inst.version": "9"}): "format 9",
        write(tmp_path / "enc.safetensors", {"clip_l": torch.ones(1, 768), "inst.encoder.x": nan}): "inst.encoder.x",
    }
    for path, message in cases.items():
        with pytest.raises(ValueError, match=message):
            load_style(path)


@pytest.mark.parametrize("length", [0x280, 0x380, 0x480, 0x580, 0x4b50], ids=hex)
def test_a_header_whose_length_begins_like_a_pickle_or_an_archive_is_none(tmp_path, length):
    path, metadata = tmp_path / "wave.safetensors", {"inst.version": "1", "inst.text": ""}
    write(path, {"clip_l": torch.ones(1, 768)}, metadata)
    missing = length - struct.unpack("<Q", path.read_bytes()[:8])[0]
    write(path, {"clip_l": torch.ones(1, 768)}, metadata | {"inst.text": "x" * missing})
    assert struct.unpack("<Q", path.read_bytes()[:8])[0] == length
    assert load_style(path).tokens == 1


def test_a_style_of_another_family_is_refused_with_both_sides_named():
    def label(encoders):
        return {("clip_l",): "SD 1.x", ("clip_l", "clip_g"): "SDXL"}.get(tuple(encoders))

    xl = style(clip_l=torch.ones(1, 768), clip_g=torch.ones(1, 1280))
    check_fits(xl, {"clip_l": 768, "clip_g": 1280}, label)
    with pytest.raises(ValueError, match=r"^This style is for SDXL, the connected CLIP belongs to SD 1\.x\. The style "
                                         r"holds .*clip_l \(768\), clip_g \(1280\).*takes clip_l \(768\)\."):
        check_fits(xl, {"clip_l": 768}, label)
    with pytest.raises(ValueError, match=r"^This style is for SD 1\.x, .*takes clip_l \(768\), clip_g \(1280\)"):
        check_fits(style(), {"clip_l": 768, "clip_g": 1280}, label)
    with pytest.raises(ValueError, match=r"^The style holds 2 tokens for clip_l \(768\), .*takes clip_l \(1024\)"):
        check_fits(style(), {"clip_l": 1024}, label)


@pytest.mark.parametrize("key, width", [("t5xxl", 2048), ("qwen3_4b", 2560), ("a_later_one", 96), ("clip_l", 64)])
def test_styles_of_any_text_encoder_are_read_and_its_width_is_the_clips_to_judge(tmp_path, key, width):
    save_style(Style({key: torch.ones(3, width)}), tmp_path / "a.safetensors", with_metadata=False)
    loaded = load_style(tmp_path / "a.safetensors")
    check_fits(loaded, {key: width})
    with pytest.raises(ValueError, match=rf"takes {key} \({width + 1}\)"):
        check_fits(loaded, {key: width + 1})


def test_thumbnail_is_a_small_jpeg():
    uri = thumbnail(torch.rand(300, 900, 3, generator=torch.Generator().manual_seed(0)))
    assert uri.startswith("data:image/jpeg;base64,") and len(uri) < 60_000
