"""What was learned before is found by what it was learned from."""
import argparse
import functools
import inspect
import os
import subprocess
import sys
from datetime import datetime
from pathlib import Path

import pytest
import torch
from inst_pack.inst_core import library, saving
from inst_pack.inst_core.library import fingerprint, learning_key
from inst_pack.inst_core.style import KEY, LOSSES, Style
from torch import nn

LARGE = 300_000  # numbers; such tensors are sampled


class Adapter:
    def __init__(self, weights):
        self.weights, self.loaded_keys = weights, {"b", "a"}


def patch(strength: float):
    def wrapper(value):
        return value * strength

    return wrapper


def test_equal_contents_have_equal_fingerprints():
    for make in (lambda: {"b": 1, "a": [2.5, None, True]}, lambda: {"x", "y"}, lambda: torch.arange(5), lambda: print,
                 lambda: patch(0.5), lambda: Adapter((torch.ones(2, 3),)), lambda: Path.exists,
                 lambda: functools.partial(max, 3, key=len),
                 lambda: nn.Linear(2, 2, bias=False).requires_grad_(False).apply(lambda m: m.weight.fill_(1.0))):
        assert fingerprint(make()) == fingerprint(make())
    assert fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1})


def test_different_contents_have_different_fingerprints():
    large, trained = torch.zeros(LARGE), torch.zeros(LARGE) + 1e-6
    values = [
        0, False, None, "0", 0.0, "", [], (1, [2]), (1, 2), [[1], 2], {}, {"a": 1}, {"a": [1]}, {"b": 1}, {"a"}, "a",
        torch.ones(4), torch.ones(2, 2), torch.ones(4).half(), torch.ones(4, dtype=torch.int32), torch.zeros(4),
        large, trained, large.view(2, -1), torch.ones(4, device="meta"), torch.ones(5, device="meta"),
        torch.ones(4).to(torch.float8_e4m3fn), torch.ones(4).bfloat16(),
        patch(0.5), patch(0.6), Adapter((torch.ones(2),)), Adapter((torch.zeros(2),)), Adapter, max, min,
        functools.partial(max, 3), functools.partial(max, 4), nn.Linear(2, 2), nn.Linear(2, 2), nn.Conv1d(2, 2, 1),
    ]
    assert len({fingerprint(v) for v in values}) == len(values)


def test_circles_and_depth_end():
    circle = []
    circle.append(circle)
    deep = []
    for _ in range(2000):
        deep = [deep]
    assert fingerprint(circle) and fingerprint(deep)


def patch_of_a_host():
    return [argparse.Namespace(keys={"b", "a", "c"}, strength=0.5), {"z", "y"}, torch.arange(9), print, torch.float16]


def test_a_fingerprint_is_the_same_in_another_process():
    """As after a restart: no hash seed, address or id is part of it."""
    program = ("import argparse, sys, torch, types\n"
               "pack = types.ModuleType('inst_pack')\npack.__path__ = [sys.argv[1]]\n"
               "sys.modules['inst_pack'] = pack\nfrom inst_pack.inst_core.library import fingerprint\n"
               f"{inspect.getsource(patch_of_a_host)}\nprint(fingerprint(patch_of_a_host()))")
    root = str(Path(library.__file__).parents[1])
    there = subprocess.run([sys.executable, "-c", program, root], env={**os.environ, "PYTHONHASHSEED": "1"},
                           capture_output=True, text=True, check=True).stdout
    assert there.strip() == fingerprint(patch_of_a_host())


def picture(height: int = 6, width: int = 4) -> torch.Tensor:
    return torch.linspace(0, 255, height * width * 3).round().view(1, height, width, 3) / 255


def test_the_key_knows_every_pixel_and_ingredient():
    def key(pictures=None, **changed):
        return learning_key(picture() if pictures is None else pictures,
                            **{"models": "m", "prompt": "*", "seed": 0, "continued": None, **changed})

    other = picture()
    other[0, 3, 2, 1] += 1 / 255
    keys = [key(), key(other), key(picture(4, 6)), key(picture().flip(2)), key(torch.cat([picture()] * 2)),
            key(models="n"), key(prompt="a *"), key(seed=1), key(continued=[torch.ones(2, 768)])]
    assert len(set(keys)) == len(keys)
    assert key() == key(picture() + 1e-4)  # less than 8 bits tell


def learned(key: str, value: float = 1.0) -> Style:
    return Style({"clip_l": torch.full((1, 768), value)}, metadata={KEY: key, LOSSES: "0.5 0.25", "inst.text": "a *"})


@pytest.mark.parametrize("with_metadata", [True, False], ids=["metadata", "--disable-metadata"])
def test_a_style_is_found_under_any_name_in_any_folder(tmp_path, with_metadata):
    models, output = tmp_path / "models", tmp_path / "output"
    saving.save_new(learned("A"), "wave", [models], with_metadata)
    saving.save_new(learned("B", 2.0), "painters/monet", [output], with_metadata)
    os.utime(output / "painters" / "monet_00001.safetensors", (0, datetime(2026, 3, 1, 14, 22).timestamp()))
    os.rename(models / "wave_00001.safetensors", models / "another name.safetensors")
    known = library.find("B", [models, output])
    assert known.style.vectors["clip_l"][0, 0] == 2 and known.style.losses == [0.5, 0.25]
    assert known.text.startswith("painters/monet_00001.safetensors is loaded, learned on 2026-03-01 14:22 from ")
    assert library.find("A", [models, output]).path.name == "another name.safetensors"
    assert library.find("C", [models, output]) is None and library.find("A", [output, tmp_path / "none"]) is None


@pytest.mark.parametrize("name, spoken", [("wave", True), ("painters/夕暮れ", True), ("another name", False),
                                          ("wave (1)", False), ("wave,1", False)])
def test_a_name_is_offered_to_prompts_only_where_they_can_carry_it(tmp_path, name, spoken):
    saving.save_new(learned("A"), "wave", [tmp_path], True)
    target = tmp_path / f"{name}.safetensors"
    target.parent.mkdir(exist_ok=True)
    (tmp_path / "wave_00001.safetensors").rename(target)
    text = library.find("A", [tmp_path]).text
    assert text.startswith(f"{name}.safetensors is loaded") and (f"embedding:{name}" in text) == spoken


def test_the_newest_whole_file_is_taken(tmp_path):
    for number in (1, 2, 3):
        saving.save_new(learned("A", float(number)), "wave", [tmp_path], True)
        os.utime(tmp_path / f"wave_{number:05}.safetensors", (0, number))
    os.truncate(tmp_path / "wave_00003.safetensors", (tmp_path / "wave_00003.safetensors").stat().st_size - 4)
    assert library.find("A", [tmp_path]).style.vectors["clip_l"][0, 0] == 2


@pytest.mark.parametrize("data", [b"", b"\x00", b"\xff" * 40, b"\x10" + b"\0" * 7 + b"{" * 16, b"PK\x03\x04" + b"x" * 9,
                                  (2).to_bytes(8, "little") + b"{}", (2).to_bytes(8, "little") + b"[]",
                                  (21).to_bytes(8, "little") + b'{"__metadata__": "x"}',
                                  (200_000).to_bytes(8, "little") + b"[" * 200_000])
def test_files_that_are_no_styles_are_passed_over(tmp_path, data):
    (tmp_path / "a.safetensors").write_bytes(data)
    (tmp_path / "b.txt").write_bytes(data)
    (tmp_path / "c.safetensors").symlink_to(tmp_path / "gone")
    saving.save_new(learned("A"), "wave", [tmp_path], True)
    assert library.find("A", [tmp_path]).label == "wave_00001"


def test_only_headers_are_read_of_files_that_do_not_fit(tmp_path, monkeypatch):
    for number in range(20):
        saving.save_new(learned(f"key {number}"), "wave", [tmp_path], True)
    opened = []
    monkeypatch.setattr(library, "load_style", lambda path: opened.append(path.name) or learned("x"))
    library.find("key 7", [tmp_path])
    assert opened == ["wave_00008.safetensors"]
