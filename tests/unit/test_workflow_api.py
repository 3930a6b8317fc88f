"""UI-format workflows as prompts."""
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).resolve().parents[2] / "tools"))
from workflow_api import WorkflowError, to_api  # noqa: E402

INFO = {
    "Load": {"input": {"required": {"name": [["a", "b"], {}]}}, "output": ["MODEL"], "display_name": "Load It"},
    "Sample": {
        "input": {"required": {"model": ["MODEL"], "seed": ["INT", {"control_after_generate": True}],
                               "cfg": ["FLOAT", {}], "kind": ["COMBO", {"options": ["x", "y"]}]},
                  "optional": {"text": ["STRING", {"forceInput": True}], "mask": ["MASK"], "last": ["BOOLEAN", {}]}},
        "input_order": {"required": ["model", "seed", "cfg", "kind"], "optional": ["text", "mask", "last"]},
        "output": ["MODEL"],
    },
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


def test_unknown_nodes_are_named():
    with pytest.raises(WorkflowError, match="node 9 has type Mystery"):
        convert([node(9, "Mystery")], [])
