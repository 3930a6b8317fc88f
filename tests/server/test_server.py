"""The pack in a real ComfyUI server: nodes, shipped workflows, cancelling, readable errors."""
import json
import re
import time
from pathlib import Path

import pytest
from client import PromptError

ROOT = Path(__file__).resolve().parents[2]
WORKFLOWS = sorted(p.name for p in (ROOT / "workflows").glob("*.json"))
NODES = sorted(set(re.findall(r'node_id="(InST_\w+)"', "".join(p.read_text() for p in (ROOT / "nodes").glob("*.py")))))


def test_every_node_is_there_with_words_for_people(object_info):
    assert len(NODES) >= 9
    for name in NODES:
        info = object_info[name]
        assert info["display_name"] and info["description"] and info["category"].split("/")[0] == "InST"
        assert info["search_aliases"]
        for group in info["input"].values():
            if group:
                for socket, spec in group.items():
                    if isinstance(spec, list) and len(spec) > 1 and isinstance(spec[1], dict):
                        assert spec[1].get("tooltip"), f"{name}.{socket} has no tooltip"
        assert all(info.get("output_tooltips") or []), f"{name} has an output without a tooltip"


@pytest.mark.parametrize("node", NODES)
def test_every_node_has_a_help_page(client, node):
    page = client.get(f"/extensions/ComfyUI-InST/docs/{node}.md").decode()
    assert page.startswith("# ") and len(page) > 300


def test_workflows_are_listed_as_templates_with_thumbnails(client):
    listed = client.get("/api/workflow_templates")["ComfyUI-InST"]
    assert sorted(f"{name}.json" for name in listed) == WORKFLOWS
    for name in WORKFLOWS:
        thumbnail = ROOT / "workflows" / name.replace(".json", ".jpg")
        assert thumbnail.read_bytes()[:2] == b"\xff\xd8"


@pytest.mark.parametrize("name", WORKFLOWS)
def test_every_shipped_workflow_runs(client, home, small_prompt, learned, name):
    entry = client.wait(client.queue(small_prompt(name)))
    files = [i for output in entry["outputs"].values() for i in output.get("images", ())]
    assert files
    for file in files:
        assert (home / file["type"] / file["subfolder"] / file["filename"]).stat().st_size > 500


@pytest.mark.parametrize("name", WORKFLOWS)
def test_workflow_files_are_whole(name):
    """Links agree with sockets on both sides; loaders say where their files can be had."""
    workflow = json.loads((ROOT / "workflows" / name).read_text(encoding="utf-8"))
    nodes = {n["id"]: n for n in workflow["nodes"]}
    for link, source, out, target, into, kind in workflow["links"]:
        assert link in nodes[source]["outputs"][out]["links"] and nodes[source]["outputs"][out]["type"] == kind
        assert nodes[target]["inputs"][into]["link"] == link and nodes[target]["inputs"][into]["type"] == kind
    for node in workflow["nodes"]:
        if node["type"] in ("CheckpointLoaderSimple", "CLIPVisionLoader"):
            assert all(m["name"] in node["widgets_values"] and m["url"].startswith("https://")
                       for m in node["properties"]["models"])
    assert any(n["type"] == "MarkdownNote" for n in workflow["nodes"])


def test_learning_reports_and_saves_its_file(home, learned):
    text = next(o["text"][0] for o in learned["outputs"].values() if "text" in o)
    assert re.search(r"finished after 4 of 4 steps, held-out loss \d", text) and "embedding:style_00001" in text
    assert (home / "models" / "inst_styles" / "style_00001.safetensors").is_file()


def styles(home: Path) -> set[str]:
    return {p.name for p in (home / "models" / "inst_styles").iterdir()}


def test_cancel_half_way_leaves_a_server_that_works(client, home, small_prompt, learned):
    before = styles(home)
    prompt = small_prompt("2_learn_a_style.json")
    learn = next(n for n in prompt.values() if n["class_type"] == "InST_LearnStyle")
    learn["inputs"] |= {"steps": 5000, "seed": 7}
    queued = client.queue(prompt)
    time.sleep(4)
    started = time.monotonic()
    client.post("/interrupt")
    with pytest.raises(PromptError, match="interrupted"):
        client.wait(queued)
    assert time.monotonic() - started < 60
    assert styles(home) == before
    client.wait(client.queue(small_prompt("4_style_as_embedding.json")))


def failing(client, prompt: dict) -> PromptError:
    with pytest.raises(PromptError) as caught:
        client.wait(client.queue(prompt))
    return caught.value


def test_errors_come_back_readable(client, small_prompt, learned):
    def changed(workflow: str, kind: str, **inputs) -> dict:
        prompt = small_prompt(workflow)
        for node in prompt.values():
            if node["class_type"] == kind:
                node["inputs"] |= inputs
        return prompt

    apply, learn = "1_apply_a_saved_style.json", "2_learn_a_style.json"
    assert "strength is 0.0; it must lie above 0" in str(failing(client, changed(apply, "InST_Sample", strength=0.0)))
    refused = failing(client, changed(apply, "InST_LoadStyle", style_name="gone.safetensors"))
    assert "'gone.safetensors' is not in the folder" in str(refused)
    assert "choose encoder 'direct'" in str(failing(client, changed(learn, "InST_LearnStyle", encoder="paper")))
    assert "expected a plain file name" in str(failing(client, changed(learn, "InST_LearnStyle", name="../up")))
    assert failing(client, changed(learn, "InST_LearnStyle", steps=0)).node_errors


def test_the_same_learning_is_not_run_twice(client, home, small_prompt, learned):
    client.wait(client.queue(small_prompt("2_learn_a_style.json")))
    before = styles(home)
    client.wait(client.queue(small_prompt("2_learn_a_style.json")))
    assert styles(home) == before
