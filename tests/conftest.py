"""Makes the pack importable as ``inst_pack`` without putting the repository root on ``sys.path``.

The root holds a package called ``nodes``, which is also the name of ComfyUI's own module; a root on
``sys.path`` would shadow it.  Tests import ``inst_pack.inst_core...`` and ``inst_pack.nodes...``.
"""
import importlib.util
import json
import os
import subprocess
import sys
import types
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
GOLDEN = Path(os.environ.get("INST_GOLDEN_DIR") or ROOT / "tests" / "golden")

pack = types.ModuleType("inst_pack")
pack.__path__ = [str(ROOT)]
sys.modules["inst_pack"] = pack


def _archived() -> list[Path]:
    """What users install: the files of the repository without those of ``.comfyignore``; none without git."""
    listed = subprocess.run(["git", "-C", ROOT, "ls-files", "-z"], capture_output=True, text=True, check=False).stdout
    left_out = tuple((ROOT / ".comfyignore").read_text().split())
    paths = [ROOT / name for name in listed.split("\0") if name and not name.startswith(left_out)]
    return [path for path in paths if path.is_file()]


def pytest_report_header() -> str:
    files = _archived()
    return f"the pack's archive: {len(files)} files, {sum(f.stat().st_size for f in files) / 1e6:.1f} MB"


@pytest.fixture(scope="session")
def archive() -> list[Path]:
    return _archived() or pytest.skip("needs a git checkout")


class Golden:
    """One folder of parity data: ``expected`` arrays, weights rebuilt by the golden set's own ``fill.py``."""

    def __init__(self, name: str):
        import numpy as np
        import torch

        spec = importlib.util.spec_from_file_location("golden_fill", GOLDEN / "fill.py")
        self.fill = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(self.fill)
        self.folder = GOLDEN / name
        self.expected = {k: v for k, v in np.load(self.folder / "expected.npz").items()}
        manifest = self.folder / "manifest.json"
        self.manifest = json.loads(manifest.read_text(encoding="utf-8")) if manifest.exists() else {}
        self._torch = torch

    def state_dict(self, role: str) -> dict:
        """Role -> {official key: tensor}, filled by the golden rule."""
        return {k: self._torch.from_numpy(v) for k, v in self.fill.state_dict(role, self.manifest[role]).items()}

    def tensor(self, key: str):
        """An expected array as a tensor."""
        return self._torch.from_numpy(self.expected[key].copy())

    def picture(self, key: str):
        """An expected array of 8-bit levels as a (1, 3, height, width) tensor in [0, 1]."""
        return self.tensor(key).permute(2, 0, 1)[None] / 255

    def pair(self, case: str) -> list:
        """Content and style of a case."""
        return [self.picture(f"{case}/{role}_u8") for role in ("content", "style")]

    def array(self, name: str, shape, scale: float = 1.0):
        """``fill.array`` as a tensor."""
        return self._torch.from_numpy(self.fill.array(name, shape, scale))

    def image(self, name: str, height: int, width: int):
        """``fill.image`` as a (1, 3, height, width) tensor in [0, 1]."""
        return self._torch.from_numpy(self.fill.image(name, height, width))


@pytest.fixture(scope="session")
def golden():
    """``golden("gatys")`` opens one folder of ``INST_GOLDEN_DIR`` (default ``tests/golden``)."""
    return Golden


@pytest.fixture()
def ldm(monkeypatch):
    """Classes with the official names, as the training code pickles them."""

    from torch import nn

    class CrossAttention(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale, self.heads = 0.125, 8
            self.to_q, self.to_k, self.to_v = (nn.Linear(768, 512, bias=False) for _ in range(3))
            self.to_out = nn.Sequential(nn.Linear(512, 768), nn.Dropout(0.05))

    class Attentions(nn.Module):
        def __init__(self):
            super().__init__()
            self.attn1, self.attn2 = CrossAttention(), CrossAttention()
            self.net = nn.Sequential(nn.Dropout(0.05), nn.Linear(768, 768))

    for name, cls in (("ldm.modules.attention", CrossAttention), ("ldm.modules.embedding_manager", Attentions)):
        module = types.ModuleType(name)
        setattr(module, cls.__name__, cls)
        cls.__module__, cls.__qualname__ = name, cls.__name__
        monkeypatch.setitem(sys.modules, name, module)
    for name in ("ldm", "ldm.modules"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    return Attentions
