"""A real ComfyUI server over HTTP, started once for all tests and ended in every case."""
import json
from pathlib import Path

import pytest
from running import COMFYUI, MODELS, ROOT, SMALL, make_home, serving, write_style


def pytest_collection_modifyitems(items):
    if COMFYUI and MODELS:
        return
    skip = pytest.mark.skip(reason="needs ComfyUI: run 'python3 tools/dev.py test'")
    for item in items:
        if Path(__file__).parent in item.path.parents and "client" in item.fixturenames:
            item.add_marker(skip)


@pytest.fixture(scope="session")
def home(tmp_path_factory) -> Path:
    return make_home(tmp_path_factory.mktemp("home"))


@pytest.fixture(scope="session")
def client(home):
    """A client of a running server that has the pack."""
    from comfyui.client import Client

    with serving(home) as url:
        yield Client(url)


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


@pytest.fixture(scope="session")
def small_prompt(object_info, picture):
    """A workflow as a prompt that takes seconds; nodes of the titles or types in ``without`` are muted."""
    from workflows.api import MUTED, to_api

    def convert(name: str, folder: Path = ROOT / "workflows", without: tuple[str, ...] = ()) -> dict:
        workflow = json.loads((folder / name).read_text(encoding="utf-8"))
        for node in workflow["nodes"]:
            node["mode"] = MUTED if {node.get("title"), node["type"]} & set(without) else node["mode"]
        prompt = to_api(workflow, object_info)
        for node in prompt.values():
            node["inputs"] |= SMALL.get(node["class_type"], {})
        return prompt

    return convert


@pytest.fixture(scope="session")
def learned(client, home, small_prompt) -> dict:
    """The history entry of the learn workflow; it leaves my_style_00001 behind. Beside it there are the styles that
    older workflows name."""
    entry = client.wait(client.queue(small_prompt("02_learn_a_style.json")))
    for name in ("style_00001", "style_00002"):
        write_style(home, name)
    return entry
