"""A real ComfyUI server over HTTP, started once for all tests and ended in every case."""
import importlib
import os
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
COMFYUI, MODELS = os.environ.get("INST_COMFYUI"), os.environ.get("INST_MODELS")
sys.path.append(str(ROOT / "tools"))


def pytest_collection_modifyitems(items):
    if COMFYUI and MODELS:
        return
    skip = pytest.mark.skip(reason="needs ComfyUI: run 'python3 tools/dev.py test'")
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(skip)


@pytest.fixture(scope="session")
def home(tmp_path_factory) -> Path:
    """A ComfyUI home of its own: the small models linked in, everything written stays there."""
    folder = tmp_path_factory.mktemp("home")
    (folder / "models").mkdir()
    for kind in Path(MODELS).iterdir():
        if kind.is_dir() and kind.name != "inst_styles":
            (folder / "models" / kind.name).symlink_to(kind)
    return folder


@pytest.fixture(scope="session")
def client(home):
    """A client of a running server that has the pack."""
    from client import Client

    dev = importlib.import_module("dev")
    dev.HOME, dev.LOG = home, home / "server.log"
    dev.link_pack()
    with dev.server(Path(COMFYUI), Path(sys.executable)) as running:
        yield Client(running.url)


@pytest.fixture(scope="session")
def object_info(client) -> dict:
    return client.object_info()


@pytest.fixture(scope="session")
def picture(home) -> str:
    """A photograph in the input folder."""
    import numpy as np
    from PIL import Image

    y, x = np.mgrid[0:96, 0:128] / 96
    levels = np.stack([np.sin(6 * x), np.cos(5 * y * x), np.sin(4 * y)], -1) * 127 + 128
    Image.fromarray(levels.astype("uint8")).save(home / "input" / "example.png")
    return "example.png"


SMALL = {
    "CheckpointLoaderSimple": {"ckpt_name": "inst-small.safetensors"},
    "CLIPVisionLoader": {"clip_name": "inst-small-vit-l.safetensors"},
    "InST_LearnStyle": {"steps": 4, "resolution": 64},
    "InST_Sample": {"steps": 3},
    "ImageScaleToTotalPixels": {"megapixels": 0.01},
    "KSampler": {"steps": 2},
    "EmptyLatentImage": {"width": 64, "height": 64},
    "InST_CosineScheduler": {"steps": 3},
}


@pytest.fixture(scope="session")
def small_prompt(object_info, picture):
    """A shipped workflow as a prompt for the small models: {file name} -> API prompt."""
    import json

    from workflow_api import to_api

    def convert(name: str) -> dict:
        prompt = to_api(json.loads((ROOT / "workflows" / name).read_text(encoding="utf-8")), object_info)
        for node in prompt.values():
            node["inputs"] |= SMALL.get(node["class_type"], {})
        return prompt

    return convert


@pytest.fixture(scope="session")
def learned(client, small_prompt) -> dict:
    """The history entry of the learn workflow; it leaves style_00001 behind."""
    return client.wait(client.queue(small_prompt("2_learn_a_style.json")))
