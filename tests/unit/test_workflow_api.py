"""UI-format workflows as prompts."""

import pytest
from workflows.api import WorkflowError, to_api

INFO = {
    "Load": {"input": {"required": {"name": [["a", "b"], {}]}}, "output": ["MODEL"], "display_name": "Load It"},
    "Sample": {
        "input": {"required": {"model": ["MODEL"], "seed": ["INT", {"control_after_generate": True}],
                               "cfg": ["FLOAT", {}], "kind": ["COMBO", {"options": ["x", "y"]}]},
                  "optional": {"text": ["STRING", {"forceInput": True}], "mask": ["MASK"], "last": ["BOOLEAN", {}]}},
        "input_order": {"required": ["model", "seed", "cfg", "kind"], "optional": ["text", "mask", "last"]},
        "output": ["MODEL"],
    },
    "Resize": {
        "input": {"required": {"how": ["COMFY_DYNAMICCOMBO_V3", {"options": [
            {"key": "to a size", "inputs": {"required": {"width": ["INT", {}], "crop": ["COMBO", {}]}}},
            {"key": "by a factor", "inputs": {"required": {"factor": ["FLOAT", {}]}}}]}],
            "seed": ["INT", {}], "method": ["COMBO", {}]}},
        "input_order": {"required": ["how", "seed", "method"]}, "output": ["IMAGE"],
    },
    "Merge": {"input": {"required": {"first": ["MODEL"], "second": ["MODEL"]}}, "output": ["MODEL", "MODEL"]},
}


def node(number, kind, inputs=(), values=(), **more):
    return {"id": number, "type": kind, "inputs": [{"name": n, "type": t, "link": link} for n, t, link in inputs],
            "widgets_values": list(values), **more}


SAMPLE = ["model", "MODEL", 1]


def convert(nodes, links):
    return to_api({"nodes": nodes, "links": links}, INFO)


def test_widgets_are_read_by_position_past_the_seeds_control():
    prompt = convert([node(1, "Load", values=["b"]), node(2, "Sample", [SAMPLE], [7, "fixed", 2.5, "y", True])],
                     [[1, 1, 0, 2, 0, "MODEL"]])
    assert prompt["2"]["inputs"] == {"model": ["1", 0], "seed": 7, "cfg": 2.5, "kind": "y", "last": True}
    assert prompt["1"] == {"class_type": "Load", "inputs": {"name": "b"}, "_meta": {"title": "Load It"}}


def test_a_link_into_a_widget_replaces_its_value():
    prompt = convert([node(1, "PrimitiveNode", values=[3.5]),
                      node(2, "Sample", [["cfg", "FLOAT", 1]], [7, "fixed", 2.5, "y"])], [[1, 1, 0, 2, 0, "FLOAT"]])
    assert list(prompt) == ["2"] and prompt["2"]["inputs"]["cfg"] == 3.5


def test_notes_reroutes_bypassed_and_muted_nodes():
    links = [[1, 1, 0, 2, 0, "MODEL"], [2, 2, 0, 3, 0, "MODEL"], [3, 3, 0, 4, 0, "MODEL"]]
    nodes = [node(1, "Load", values=["a"]), node(2, "Reroute", [["", "*", 1]]),
             node(3, "Sample", [["model", "MODEL", 2]], [1, "fixed", 1.0, "x"], mode=4),
             node(4, "Sample", [["model", "MODEL", 3]], [1, "fixed", 1.0, "x"]), node(5, "MarkdownNote", values=["hi"]),
             node(6, "Load", values=["a"], mode=2)]
    prompt = convert(nodes, links)
    assert list(prompt) == ["1", "4"] and prompt["4"]["inputs"]["model"] == ["1", 0]


def test_a_bypassed_node_passes_on_the_input_at_the_outputs_place():
    links = [[1, 1, 0, 3, 0, "MODEL"], [2, 2, 0, 3, 1, "MODEL"], [3, 3, 1, 4, 0, "MODEL"]]
    merge = node(3, "Merge", [["first", "MODEL", 1], ["second", "MODEL", 2]], mode=4)
    last = node(4, "Sample", [["model", "MODEL", 3]], [1, "fixed", 1.0, "x"])
    assert convert([node(1, "Load"), node(2, "Load"), merge, last], links)["4"]["inputs"]["model"] == ["2", 0]
    merge["inputs"][1]["link"] = None
    assert "model" not in convert([node(1, "Load"), node(2, "Load"), merge, last], links)["4"]["inputs"]


def test_the_choice_of_a_dynamic_combo_brings_its_own_widgets():
    def values(*stored):
        return convert([node(1, "Resize", values=stored)], [])["1"]["inputs"]

    assert values("to a size", 64, "center", 7, "randomize", "area") == {
        "how": "to a size", "how.width": 64, "how.crop": "center", "seed": 7, "method": "area"}
    assert values("by a factor", 0.5, 7, "fixed", "area") == {
        "how": "by a factor", "how.factor": 0.5, "seed": 7, "method": "area"}


def test_a_file_saved_before_a_node_got_an_input_leaves_it_to_its_default():
    assert convert([node(1, "Sample", values=[7, "fixed", 2.5])], [])["1"]["inputs"] == {"seed": 7, "cfg": 2.5}


def test_what_cannot_be_converted_is_named():
    with pytest.raises(WorkflowError, match="node 9 has type Mystery"):
        convert([node(9, "Mystery")], [])
    with pytest.raises(WorkflowError, match="link 5 comes from nowhere"):
        convert([node(2, "Sample", [["model", "MODEL", 5]])], [])
    with pytest.raises(WorkflowError, match="node 3 is the subgraph 'Upscale'. Unpack"):
        to_api({"nodes": [node(3, "u-u-i-d")], "links": [],
                "definitions": {"subgraphs": [{"id": "u-u-i-d", "name": "Upscale"}]}}, INFO)
    with pytest.raises(WorkflowError, match="no workflow in UI format"):
        to_api({"1": {"class_type": "Load", "inputs": {}}}, INFO)
