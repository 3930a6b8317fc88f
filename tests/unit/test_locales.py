"""Translations: every node and every input has a name in every language, and the nodes of InST have their tooltips."""
import json
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
NODES = json.loads((ROOT / "tests" / "server" / "node_info.json").read_text(encoding="utf-8"))
LANGUAGES = sorted(p.name for p in (ROOT / "locales").iterdir())
# The methods to compare with keep their English tooltips.
COMPARED = {"InST_ApplyStyleShot", "InST_ComparisonGrid", "InST_GatysStyleTransfer", "InST_LoadStyleShot",
            "InST_LoadStyleTransferModel", "InST_Metrics", "InST_TransferStyle"}


@pytest.fixture(params=LANGUAGES)
def words(request) -> dict:
    return json.loads((ROOT / "locales" / request.param / "nodeDefs.json").read_text(encoding="utf-8"))


def test_the_languages_are_there():
    assert LANGUAGES == ["de", "ja", "zh"]


def test_every_node_and_every_input_has_a_name(words):
    for node, promised in NODES.items():
        assert words[node]["display_name"] and words[node]["description"], node
        unnamed = [i["name"] for i in promised["inputs"] if not words[node]["inputs"].get(i["name"], {}).get("name")]
        assert not unnamed, f"{node} needs words for {unnamed} in locales/"


def test_the_nodes_of_inst_have_tooltips(words):
    for node in NODES.keys() - COMPARED:
        without = [i["name"] for i in NODES[node]["inputs"] if not words[node]["inputs"][i["name"]].get("tooltip")]
        assert not without, f"{node} needs tooltips for {without} in locales/"


def test_strengths_are_told_apart(words):
    names = {words[node]["inputs"]["strength"]["name"] for node in ("InST_Sample", "InST_StyleConditioning")}
    assert len(names) == 2
