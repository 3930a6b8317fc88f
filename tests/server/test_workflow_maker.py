"""tools/workflows make: what it writes is what ships."""
import json

import pytest
from running import ROOT
from workflows.graph import CORE, Graph
from workflows.shipped import BLUEPRINT, DOWNLOADS, SHIPPED, USUAL, one_box


@pytest.fixture()
def g(client, object_info, picture):
    if client.get("/system_stats")["system"]["comfyui_version"] != CORE["ver"]:
        pytest.skip(f"the templates are made with ComfyUI {CORE['ver']}")
    return Graph(object_info, DOWNLOADS, USUAL)


def shipped(name: str) -> dict:
    return json.loads((ROOT / name).read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", SHIPPED)
def test_templates_are_as_described(g, name):
    SHIPPED[name](g)
    assert json.loads(json.dumps(g.document())) == shipped(f"workflows/{name}.json"), "run tools/workflows make URL"


def test_the_box_is_as_described(g):
    assert one_box(g) == shipped(f"subgraphs/{BLUEPRINT}.json")


def test_wrong_descriptions_are_refused(g):
    with pytest.raises(ValueError, match="LoadImage has no input colour"):
        g.add("a", "LoadImage", colour=1)
    g.add("photo", "LoadImage")
    with pytest.raises(ValueError, match="photo gives IMAGE, but samples takes LATENT"):
        g.add("decoded", "VAEDecode", samples=("photo", 0), vae=("photo", 0))
