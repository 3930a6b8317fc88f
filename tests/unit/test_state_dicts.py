"""Weight files of every wrapping, read alike; nothing in them is run, nothing becomes larger than its file."""
import argparse
import collections
import io
import os
import pickle
import tarfile
import zipfile
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from inst_pack.inst_core.state_dicts import fingerprint, read_weights
from torch import nn

TABLE = {"conv.weight": torch.arange(12.0).view(3, 4), "conv.bias": torch.arange(3)}


def save(path, held, **options):
    torch.save(held, path, **options)
    return path


class Settings:
    """Any class of a training's own."""

    def __init__(self):
        self.steps = 5


OPTIMIZER = {"state": {0: {"step": torch.tensor(5.0), "exp_avg": torch.ones(3)}}, "param_groups": [{"lr": 0.1}]}
WRAPPED = {
    "plain": TABLE,
    "ordered": collections.OrderedDict(TABLE),
    "DataParallel": {f"module.{k}": v for k, v in TABLE.items()},
    "compiled": {f"_orig_mod.{k}": v for k, v in TABLE.items()},
    "both": {f"module._orig_mod.{k}": v for k, v in TABLE.items()},
    "state_dict": {"state_dict": TABLE, "epoch": 3, "best": 0.5},
    "CSD": {"model_state_dict": {f"module.{k}": v for k, v in TABLE.items()}, "optimizer_state_dict": OPTIMIZER,
            "console_args": argparse.Namespace(lr=0.1), "epoch": 1},
    "BasicSR": {"params": {k: v * 0 for k, v in TABLE.items()}, "params_ema": TABLE},
    "one key": {"anything": TABLE},
    "twice": {"model": {"state_dict": TABLE}, "optimizer": OPTIMIZER},
    "numbers beside": {**TABLE, "epoch": 3, "name": "x", "loss": np.float64(0.5), "step": np.int64(9)},
    "objects beside": {"model": TABLE, "args": Settings(), "more": collections.defaultdict(float, a=0.5), "type": dict},
    "fp8": {k: v.to(torch.float8_e4m3fn) for k, v in TABLE.items()},
    "parameters": {k: nn.Parameter(v.float(), requires_grad=False) for k, v in TABLE.items()},
}


def equal(found, expected=TABLE):
    return found.keys() == expected.keys() and all(torch.equal(found[k], v.to(found[k])) for k, v in expected.items())


@pytest.mark.parametrize("mapped", [False, True], ids=["read", "mapped"])
@pytest.mark.parametrize("old", [False, True], ids=["zip", "old format"])
@pytest.mark.parametrize("kind", WRAPPED)
def test_wrappers_are_taken_off(tmp_path, kind, old, mapped):
    if old and kind == "fp8":
        pytest.skip("torch's old format cannot hold it")
    path = save(tmp_path / "a.pth", WRAPPED[kind], _use_new_zipfile_serialization=not old)
    assert equal(read_weights(path, mapped))


@pytest.mark.parametrize("mapped", [False, True], ids=["read", "mapped"])
@pytest.mark.parametrize("name", ["a.safetensors", "a.pth", "a.bin"])
def test_the_contents_say_what_a_file_is_not_its_name(tmp_path, name, mapped):
    safetensors.torch.save_file(TABLE, tmp_path / name)
    assert equal(read_weights(tmp_path / name, mapped))
    assert equal(read_weights(save(tmp_path / "b.safetensors", TABLE), mapped))


def test_a_file_may_change_after_it_was_read(tmp_path):
    for path in (save(tmp_path / "a.pth", TABLE), tmp_path / "b.safetensors"):
        if path.suffix == ".safetensors":
            safetensors.torch.save_file(TABLE, path)
        found = read_weights(path)
        with path.open("r+b") as file:
            file.write(b"\xff" * path.stat().st_size)
        os.truncate(path, 20)
        assert equal(found)


def test_where_files_cannot_be_mapped_they_are_read(tmp_path, monkeypatch):
    def refuse(*arguments, mmap=False, **options):
        if mmap:
            raise OSError(19, "No such device")
        return load(*arguments, **options)

    load = torch.load
    monkeypatch.setattr(safetensors.torch, "load_file", partial(refuse, mmap=True))
    monkeypatch.setattr(torch, "load", refuse)
    safetensors.torch.save_file(TABLE, tmp_path / "a.safetensors")
    for path in (tmp_path / "a.safetensors", save(tmp_path / "b.pth", TABLE)):
        assert equal(read_weights(path, mapped=True))


class Evil:
    def __init__(self, call, argument):
        self.call, self.argument = call, argument

    def __reduce__(self):
        return self.call, (self.argument,)


@pytest.mark.parametrize("old", [False, True], ids=["zip", "old format"])
@pytest.mark.parametrize("call, argument", [(os.system, "touch {}"), (exec, "open('{}', 'w')"), (bytearray, 2**40),
                                            (torch.FloatTensor, 2**40), (eval, "1"), (io.open, "{}")])
def test_nothing_is_run_and_nothing_grows(tmp_path, call, argument, old):
    trap = tmp_path / "ran"
    argument = argument.format(trap) if isinstance(argument, str) else argument
    path = save(tmp_path / "evil.pth", {**TABLE, "x": Evil(call, argument)}, _use_new_zipfile_serialization=not old)
    try:
        read_weights(path)
    except ValueError as error:
        assert "evil.pth is not opened: it asks for" in str(error) and "Nothing was run" in str(error)
    else:
        assert call is io.open  # not a name that is refused: something that does nothing stands in for it
    assert not trap.exists()


def test_compressed_and_repeated_numbers_are_refused(tmp_path):
    bomb = tmp_path / "bomb.pth"
    with zipfile.ZipFile(save(tmp_path / "a.pth", {"x": torch.zeros(2**20)})) as old, \
            zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as new:
        for item in old.infolist():
            new.writestr(item.filename, old.read(item))
    repeated = save(tmp_path / "repeated.pth", {"x": torch.zeros(1).expand(2**40)})
    for path, message in ((bomb, "unpack to more than the file holds"), (repeated, "x takes more numbers than are")):
        with pytest.raises(ValueError, match=f"{path.name} is not opened: .*{message}"):
            read_weights(path)


def test_what_is_no_table_is_refused_by_name(tmp_path):
    empty_zip = tmp_path / "zip.pth"
    with zipfile.ZipFile(empty_zip, "w") as archive:
        archive.writestr("readme", "x")
    tar = tmp_path / "tar.pth"
    with tarfile.open(tar, "w") as archive:
        archive.addfile(tarfile.TarInfo("storages"))
    cases = {
        save(tmp_path / "list.pth", [1, 2]): "plain table of tensors (it has list)",
        save(tmp_path / "none.pth", {}): "it has nothing",
        save(tmp_path / "numbers.pth", {"epoch": 3}): "it has epoch",
        save(tmp_path / "nested.pth", {"ip": TABLE, "more": torch.zeros(1)}): "it has ip, more",
        save(tmp_path / "module.pth", nn.Linear(2, 2)): "it has _PassedOver",
        save(tmp_path / "ints.pth", {0: torch.ones(1)}): "it has 0",
        empty_zip: "not one that torch.save wrote", tar: "torch's first format",
    }
    for name, data in {"empty": b"", "text": b"hello", "html": b"<!DOCTYPE html>" * 50, "half": b"PK\x03\x04" * 20,
                       "pickle": pickle.dumps({"a": 1}), "lfs": b"version https://git-lfs.github.com/spec/v1\n"}.items():
        (tmp_path / f"{name}.pth").write_bytes(data)
        cases[tmp_path / f"{name}.pth"] = "neither a safetensors file nor"
    cut = save(tmp_path / "cut.pth", TABLE)
    os.truncate(cut, cut.stat().st_size - 100)
    cases[cut] = "neither a safetensors file nor"
    broken = tmp_path / "broken.safetensors"
    safetensors.torch.save_file(TABLE, broken)
    os.truncate(broken, broken.stat().st_size - 4)
    cases[broken] = "broken.safetensors cannot be read as a file of tensors"
    cases[tmp_path / "gone.pth"] = "gone.pth cannot be read as a file of tensors"
    for path, message in cases.items():
        with pytest.raises(ValueError) as refused:
            read_weights(path)
        assert message in str(refused.value) and path.name in str(refused.value)


def test_a_file_that_is_replaced_has_another_fingerprint(tmp_path):
    path = save(tmp_path / "a.pth", TABLE)
    other = save(tmp_path / "b.pth", TABLE)
    before = fingerprint([path, other])
    assert fingerprint([path, other]) == before != fingerprint([path])
    stamp = path.stat()
    replacement = save(tmp_path / "c.pth", {k: v + 1 for k, v in TABLE.items()})
    os.utime(replacement, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    os.replace(replacement, path)  # same size, same time of writing
    assert path.stat().st_size == stamp.st_size and fingerprint([path, other]) != before


def test_tensors_stay_in_a_mapped_file(tmp_path):
    path = save(tmp_path / "large.pth", {"x": torch.zeros(2**20)})
    read_weights(path)
    if Path("/proc/self/maps").exists():
        assert str(path) not in Path("/proc/self/maps").read_text()
        kept = read_weights(path, mapped=True)
        assert kept and str(path) in Path("/proc/self/maps").read_text()
