"""Workflows and blueprints as they are written from descriptions."""

import pytest
from PIL import Image
from workflows.api import to_api
from workflows.graph import INPUT, Download, Graph
from workflows.thumbnail import halves, strip, thumbnail

INFO = {
    "Load": {"input": {"required": {"name": [["other", "a.safetensors"], {}]}}, "output": ["MODEL", "IMAGE"],
             "display_name": "Load It"},
    "InST_Sample": {
        "input": {"required": {"model": ["MODEL"], "seed": ["INT", {"control_after_generate": True, "default": 3}],
                               "text": ["STRING", {"multiline": True, "default": "*"}]},
                  "optional": {"image": ["IMAGE"], "cfg": ["FLOAT", {"default": 7.0}]}},
        "output": ["IMAGE"], "display_name": "Sample"},
    "Batch": {"input": {"required": {"images": ["COMFY_AUTOGROW_V3", {"template": {
        "input": {"required": {"image": ["IMAGE", {}]}}, "prefix": "image", "min": 1, "max": 50}}]}},
        "output": ["IMAGE"], "display_name": "Batch"},
    "SaveImage": {"input": {"required": {"images": ["IMAGE"]}}, "output": [], "display_name": "Save Image"},
}


@pytest.fixture()
def g() -> Graph:
    return Graph(INFO, {"a.safetensors": Download("checkpoints", "https://there/a.safetensors")})


def describe(g: Graph) -> dict:
    g.note("Title", "Some *words*.\n\n- and more of them")
    with g.group("First", "#888"):
        g.add("model", "Load", name="a.safetensors")
        g.add("sample", "InST_Sample", "Mine", model=("model", 0), cfg=2.0)
        g.column()
        g.add("batch", "Batch", **{"images.image0": ("sample", 0), "images.image1": ("model", 1)})
    with g.group("Second", "#888"):
        g.add("saved", "SaveImage", images=("batch", 0))
    g.row()
    with g.group("Third", "#888"):
        g.add("also", "SaveImage", images=("sample", 0))
    g.block()
    with g.group("Wide", "#888", 600):
        g.add("wide", "SaveImage", images=("sample", 0))
    return g.document()


def test_what_is_described_is_what_runs(g):
    prompt = to_api(describe(g), INFO)
    assert [n["class_type"] for n in prompt.values()] == ["Load", "InST_Sample", "Batch", *["SaveImage"] * 3]
    assert prompt["3"]["inputs"] == {"model": ["2", 0], "seed": 3, "text": "*", "cfg": 2.0}
    assert prompt["4"]["inputs"] == {"images.image0": ["3", 0], "images.image1": ["2", 1]}
    assert prompt["3"]["_meta"]["title"] == "Mine"


def test_files_that_can_be_fetched_are_offered(g):
    loader = describe(g)["nodes"][1]
    assert loader["properties"]["models"] == [
        {"name": "a.safetensors", "url": "https://there/a.safetensors", "directory": "checkpoints"}]


def test_nodes_lie_in_their_groups_and_not_on_each_other(g):
    document = describe(g)
    frames = [(x, y, x + w, y + h) for x, y, w, h in (group["bounding"] for group in document["groups"])]
    boxes = [(*n["pos"], n["pos"][0] + n["size"][0], n["pos"][1] + n["size"][1]) for n in document["nodes"]]
    for things in (frames, boxes):
        for i, a in enumerate(things):
            for b in things[i + 1:]:
                assert a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]
    for box in boxes[1:]:
        assert sum(f[0] < box[0] and f[1] < box[1] and box[2] < f[2] and box[3] < f[3] for f in frames) == 1


def test_wrong_descriptions_are_refused(g):
    with pytest.raises(ValueError, match="Load has no input colour"):
        g.add("a", "Load", colour=1)
    with g.group("Group", "#888"):
        g.add("model", "Load")
        with pytest.raises(ValueError, match="model gives IMAGE, but model takes MODEL"):
            g.add("sample", "InST_Sample", model=("model", 1))


def test_a_blueprint_is_one_node_that_shows_the_chosen_widgets(g):
    with g.group("Inside", "#888"):
        g.add("model", "Load", name=(INPUT, "checkpoint", "a.safetensors"))
        g.add("sample", "InST_Sample", model=("model", 0), image=(INPUT, "photo"), text=(INPUT, "prompt", "in *"))
    file = g.blueprint("Box", "InST", "Does it.", ["photo", "prompt", "checkpoint"], {"picture": ("sample", 0)})
    box, inside = file["nodes"][0], file["definitions"]["subgraphs"][0]
    assert [(i["name"], i["type"], "widget" in i) for i in box["inputs"]] == [
        ("photo", "IMAGE", False), ("prompt", "STRING", True), ("checkpoint", "COMBO", True)]
    assert box["properties"]["proxyWidgets"] == [["2", "text"], ["1", "name"]]
    assert [n["widgets_values"] for n in inside["nodes"]] == [["a.safetensors"], [3, "fixed", "in *", 7.0]]
    ends = {(link["origin_id"], link["origin_slot"]): (link["target_id"], link["target_slot"])
            for link in inside["links"]}
    sockets = [s["name"] for s in inside["nodes"][1]["inputs"]]
    assert ends == {(-10, 0): (2, sockets.index("image")), (-10, 1): (2, sockets.index("text")), (-10, 2): (1, 0),
                    (1, 0): (2, 0), (2, 0): (-20, 0)}


def test_a_box_is_placed_with_its_subgraph(g):
    with g.group("Inside", "#888"):
        g.add("model", "Load", name=(INPUT, "checkpoint", "a.safetensors"))
        g.add("sample", "InST_Sample", model=("model", 0), image=(INPUT, "photo"))
    blueprint = g.blueprint("Box", "InST", "Does it.", ["photo", "checkpoint"], {"picture": ("sample", 0)}, ("sample",))
    outside = Graph(INFO, {})
    with outside.group("Group", "#888"):
        outside.add("photo", "Load")
        outside.place("box", blueprint, photo=("photo", 1))
        outside.add("saved", "SaveImage", images=("box", 0))
    document = outside.document()
    box = document["nodes"][1]
    assert document["definitions"]["subgraphs"][0]["id"] == box["type"] and document["links"][0][1:5] == [1, 1, 2, 0]
    assert box["inputs"][0]["link"] == 1 and box["outputs"][0]["links"] == [2]
    assert box["properties"]["previewExposures"][0]["sourceNodeId"] == "2"


def test_thumbnails_are_squares_with_a_title():
    picture = Image.new("RGB", (300, 200), "red")
    for shown in (thumbnail(picture, "07", "A style with a title of two lines"), halves(picture, picture)):
        assert shown.size == (640, 640)
    assert thumbnail(picture, "07", "A").tobytes() != thumbnail(picture, "08", "A").tobytes()
    assert strip([picture, picture], 100, 10).size == (310, 100)
