"""The pack in a real ComfyUI server: nodes, shipped workflows, cancelling, readable errors."""
import json
import re
from pathlib import Path

import pytest
import torch
from client import PromptError
from PIL import Image
from safetensors.torch import save_file
from workflow_api import has_control, inputs_of, widget_values

ROOT = Path(__file__).resolve().parents[2]
WORKFLOWS = sorted(p.name for p in (ROOT / "workflows").glob("*.json"))
NODES = sorted(set(re.findall(r'node_id="(InST_\w+)"', "".join(p.read_text() for p in (ROOT / "nodes").glob("*.py")))))


def test_every_node_is_there_with_words_for_people(object_info):
    assert len(NODES) >= 9
    for name in NODES:
        info = object_info[name]
        assert info["display_name"] and info["description"] and info["category"].split("/")[0] == "InST"
        assert info["search_aliases"]
        for socket, spec in inputs_of(info).items():
            assert len(spec) > 1 and spec[1].get("tooltip"), f"{name}.{socket} has no tooltip"
        tooltips = info.get("output_tooltips") or []
        assert len(tooltips) == len(info["output"]) and all(tooltips), f"{name} has an output without a tooltip"


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
        picture = Image.open(home / file["type"] / file["subfolder"] / file["filename"]).convert("RGB")
        assert any(low < high for low, high in picture.getextrema()), "a picture of one colour"


@pytest.mark.parametrize("name", WORKFLOWS)
def test_workflow_files_are_whole(name, object_info):
    """Links agree with sockets on both sides, values with widgets; loaders say where their files can be had."""
    workflow = json.loads((ROOT / "workflows" / name).read_text(encoding="utf-8"))
    nodes = {n["id"]: n for n in workflow["nodes"]}
    for link, source, out, target, into, kind in workflow["links"]:
        assert link in nodes[source]["outputs"][out]["links"] and nodes[source]["outputs"][out]["type"] == kind
        assert nodes[target]["inputs"][into]["link"] == link and nodes[target]["inputs"][into]["type"] == kind
    for node in workflow["nodes"]:
        if node["type"] in NODES:
            inputs = inputs_of(object_info[node["type"]])
            controls = sum(has_control(k, v) for k, v in inputs.items())
            assert len(node["widgets_values"]) == len(widget_values(node, object_info[node["type"]])) + controls
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
    before, total, seen = styles(home), 5000, []
    prompt = small_prompt("2_learn_a_style.json")
    learn = next(k for k, n in prompt.items() if n["class_type"] == "InST_LearnStyle")
    prompt[learn]["inputs"] |= {"steps": total, "seed": 7}

    def cancel(message: dict) -> None:
        data = message["data"]
        if message["type"] == "progress" and data["node"] == learn:
            seen.append(data["value"])
            if data["value"] >= 3:
                client.post("/interrupt")

    with pytest.raises(PromptError, match="interrupted in InST_LearnStyle"):
        client.follow(cancel, lambda: client.queue(prompt))
    assert seen[-1] < total / 10
    assert styles(home) == before
    client.wait(client.queue(small_prompt("4_style_as_embedding.json")))


@pytest.fixture()
def refusal(client, small_prompt, learned):
    """What comes back from a shipped workflow with other values in its node of type ``kind``, and nowhere else."""
    def run(workflow: str, kind: str, at: str = "", **inputs) -> str:
        prompt = small_prompt(workflow)
        for node in prompt.values():
            if node["class_type"] == kind:
                node["inputs"] |= inputs
        with pytest.raises(PromptError) as caught:
            client.wait(queued := client.queue(prompt))
        nodes = list(caught.value.node_errors)
        if not nodes:
            messages = dict(client.get(f"/history/{queued}")[queued]["status"]["messages"])
            nodes = [messages["execution_error"]["node_id"]]
        assert [prompt[n]["class_type"] for n in nodes] == [at or kind]
        return str(caught.value)

    return run


APPLY, LEARN = "1_apply_a_saved_style.json", "2_learn_a_style.json"


def test_values_out_of_range_come_back_readable(refusal):
    assert "strength is 0.0; it must lie above 0" in refusal(APPLY, "InST_Sample", strength=0.0)
    assert "smaller than min" in refusal(LEARN, "InST_LearnStyle", steps=0)
    assert "choose encoder 'direct'" in refusal(LEARN, "InST_LearnStyle", encoder="paper")
    assert "expected a plain file name" in refusal(LEARN, "InST_LearnStyle", name="../up")


def test_wrong_files_come_back_readable(refusal, home):
    folder = home / "models" / "inst_styles"
    save_file({"clip_h": torch.zeros(1, 1024)}, folder / "of_sd2.safetensors")
    torch.save({"clip_l": torch.zeros(1, 768)}, folder / "pickle.safetensors")
    (folder / "cut.safetensors").write_bytes((folder / "style_00001.safetensors").read_bytes()[:5000])
    said = {name: refusal(APPLY, "InST_LoadStyle", at, style_name=f"{name}.safetensors") for name, at in
            (("gone", ""), ("pickle", ""), ("cut", ""), ("of_sd2", "InST_StyleConditioning"))}
    assert "'gone.safetensors' is not in the folder" in said["gone"]
    assert "is a pickle" in said["pickle"] and "cut.safetensors is" in said["cut"]
    assert "the connected CLIP takes" in said["of_sd2"]


def test_the_same_learning_is_not_run_twice(client, home, small_prompt, learned):
    client.wait(client.queue(small_prompt("2_learn_a_style.json")))
    before = styles(home)
    client.wait(client.queue(small_prompt("2_learn_a_style.json")))
    assert styles(home) == before
