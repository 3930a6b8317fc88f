"""Ids and workflows are for ever: the nodes keep what ``node_info.json`` promises.

After adding a node, an input or an output, write the new promises down:

    INST_UPDATE_NODE_INFO=1 python3 tools/dev.py test tests/server/test_node_info.py

which adds to the file, and does not take anything back.
"""
import copy
import json
import os
from pathlib import Path

import pytest
from promises import broken, promises

SNAPSHOT = Path(__file__).with_name("node_info.json")
KEPT = json.loads(SNAPSHOT.read_text(encoding="utf-8"))


def test_promises_are_kept(object_info):
    now = promises(object_info)
    assert not broken(KEPT, now)
    if os.environ.get("INST_UPDATE_NODE_INFO"):
        SNAPSHOT.write_text(json.dumps(now, indent=1) + "\n", encoding="utf-8")
        return
    assert now == KEPT, "The nodes promise more than is written down; the head of this file says how to write it down."


def sample() -> dict:
    return copy.deepcopy(KEPT)


def change(node: str, edit) -> dict:
    now = sample()
    edit(now[node])
    return now


def socket(name: str, **more) -> dict:
    return {"name": name, "type": "LATENT", "widget": False, "required": False, **more}


@pytest.mark.parametrize("edit, said", [
    (lambda n: n["inputs"].pop(0), "input latent is gone"),
    (lambda n: n["inputs"].insert(0, socket("mask")), "input latent moved from place 0 to 1"),
    (lambda n: n["inputs"].append(socket("mask", required=True)), "new input mask is required"),
    (lambda n: n["inputs"].insert(2, {**n["inputs"][2], "name": "mode", "required": False}),
     "input method moved from place 0 to 1"),
    (lambda n: n["inputs"][0].update(type="IMAGE"), "input latent was LATENT, is IMAGE"),
    (lambda n: n["inputs"][2].update(options=["adain", "mk"]), "input method does not take 'wct' any more"),
    (lambda n: n["inputs"][3].update(max=0.5), "input amount went to 1.0, goes to 0.5"),
    (lambda n: n["inputs"][3].update(min=0.5), "input amount began at 0.0, begins at 0.5"),
    (lambda n: n["outputs"].insert(0, "IMAGE"), "outputs were ['LATENT'], are ['IMAGE', 'LATENT']"),
])
def test_a_broken_promise_is_named(edit, said):
    assert f"InST_MatchColor: {said}" in broken(KEPT, change("InST_MatchColor", edit))


def test_a_lost_or_renamed_node_is_named():
    now = sample()
    now["InST_Painter"] = now.pop("InST_Sample")
    assert broken(KEPT, now) == ["InST_Sample is gone"]


def test_growing_is_allowed():
    def grow(node):
        node["inputs"] += [socket("mask"), {**node["inputs"][3], "name": "more", "required": False}]
        node["inputs"][2]["options"] = [*node["inputs"][2]["options"], "histogram"]
        node["inputs"][3].update(max=2.0, min=-1.0)
        node["outputs"].append("IMAGE")

    assert not broken(KEPT, change("InST_MatchColor", grow) | {"InST_New": {"inputs": [], "outputs": []}})
