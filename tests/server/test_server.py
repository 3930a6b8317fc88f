"""The pack in a real ComfyUI server: nodes, shipped workflows, cancelling, readable errors."""
import json
import re
from pathlib import Path

import pytest
import requests
import torch
from comfyui.client import PromptError
from inst_pack.inst_core.library import read_metadata
from PIL import Image
from running import ROOT
from safetensors.torch import save_file
from workflows.api import AUTOGROW, has_control, inputs_of, widget_values

WORKFLOWS = sorted(p.name for p in (ROOT / "workflows").glob("*.json"))
BOX = "01_start_here.json"  # a subgraph, which only the editor can take apart: it runs in the browser tier
WITHOUT_BOX = [name for name in WORKFLOWS if name != BOX]
EARLIER = sorted(Path(__file__).parent.glob("workflows_*/*.json"))
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
        thumbnail = Image.open(ROOT / "workflows" / name.replace(".json", ".jpg"))
        assert thumbnail.format == "JPEG" and thumbnail.width == thumbnail.height  # the browser shows squares
        assert len(name) <= len(".json") + 26  # more would be cut off


def run(client, home: Path, prompt: dict) -> None:
    """Queues a prompt and looks at the pictures that come out."""
    entry = client.wait(client.queue(prompt))
    files = [i for output in entry["outputs"].values() for i in output.get("images", ())]
    assert files
    for file in files:
        picture = Image.open(home / file["type"] / file["subfolder"] / file["filename"]).convert("RGB")
        assert any(low < high for low, high in picture.getextrema()), "a picture of one colour"


@pytest.mark.parametrize("name", WITHOUT_BOX)
def test_every_shipped_workflow_runs(client, home, small_prompt, learned, name):
    run(client, home, small_prompt(name))


@pytest.mark.parametrize("path", EARLIER, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_workflows_of_earlier_versions_still_run(client, home, small_prompt, learned, path):
    run(client, home, small_prompt(path.name, path.parent))


def test_the_comparison_does_without_muted_methods(client, home, small_prompt, learned):
    """As its note says; their labels are taken out by hand."""
    muted = "InST_LearnStyle", "InST", "StyTr2", "AdaAttN", "CAST", "StyleShot"
    prompt = small_prompt("18_compare_everything.json", without=muted)
    figure = next(n["inputs"] for n in prompt.values() if n["class_type"] == "InST_ComparisonGrid")
    left = [prompt[figure[k][0]]["_meta"]["title"] for k in sorted(figure) if k.startswith("images.")]
    assert left[1:] == ["Painting", "Gatys"]
    figure["column_labels"] = "Content\nStyle\nGatys"
    run(client, home, prompt)


@pytest.fixture(params=WORKFLOWS)
def workflow(request) -> dict:
    return json.loads((ROOT / "workflows" / request.param).read_text(encoding="utf-8"))


def test_links_agree_with_sockets_on_both_sides(workflow, object_info):
    nodes = {n["id"]: n for n in workflow["nodes"]}
    ends = set()
    for link, source, out, target, into, kind in workflow["links"]:
        socket = nodes[target]["inputs"][into]
        assert link in nodes[source]["outputs"][out]["links"] and nodes[source]["outputs"][out]["type"] == kind
        assert socket["link"] == link and (socket["type"] == "*" or kind in socket["type"].split(","))
        ends.add((target, into))
    assert ends == {(n["id"], i) for n in workflow["nodes"] for i, s in enumerate(n["inputs"]) if s["link"]}


def test_sockets_and_widgets_are_those_of_the_nodes(workflow, object_info):
    """Every node is known; it has all its sockets, outputs and widget values, and what must be linked is."""
    boxes = {s["id"] for s in workflow.get("definitions", {}).get("subgraphs", ())}
    for node in (n for n in workflow["nodes"] if n["type"] not in {"MarkdownNote", *boxes}):
        info = object_info[node["type"]]
        inputs, links = inputs_of(info), {s["name"]: s["link"] for s in node["inputs"]}
        controls = sum(has_control(k, v) for k, v in inputs.items())
        uploads = sum(bool(len(v) > 1 and v[1].get("image_upload")) for v in inputs.values())
        values = widget_values(node, info)
        assert len(node["widgets_values"]) == len(values) + controls + uploads
        outputs = [o["type"] for o in node["outputs"]]
        if not node["type"].startswith("InST_"):
            outputs = outputs[:len(info["output"])]  # stock nodes of older hosts have fewer
        assert outputs == info["output"]
        for name in inputs:
            grown = [link for socket, link in links.items() if inputs[name][0] == AUTOGROW
                     and socket.startswith(f"{name}.")]
            assert name in links or grown
            if name in info["input"]["required"] and name not in values:
                assert links.get(name) or any(grown), f"{node['type']}.{name} is not connected"


def test_people_are_told_what_to_do_and_where_files_come_from(workflow):
    note = next(n for n in workflow["nodes"] if n["type"] == "MarkdownNote")
    assert note["title"] and len(note["widgets_values"][0]) > 100
    for node in workflow["nodes"]:
        models = node["properties"].get("models", [])
        assert all(m["name"] in node["widgets_values"] and m["url"].startswith("https://") and m["directory"]
                   for m in models)
        if node["type"] in ("CheckpointLoaderSimple", "CLIPVisionLoader", "LoraLoader", "ControlNetLoader"):
            assert models
        files = [v for v in node["widgets_values"] if str(v).endswith((".safetensors", ".pth"))]
        told = {m["name"] for m in models}
        if node["type"] != "InST_LoadStyle":
            assert all(f in told or f in note["widgets_values"][0] for f in files), files


def test_the_blueprint_is_offered_and_whole(client, object_info):
    """One box, whose sockets and widgets lead to nodes that are there."""
    offered = {k: v for k, v in client.get("/global_subgraphs").items() if v["source"] == "custom_node"}
    assert [v["name"] for v in offered.values()] == ["Style transfer (InST)"]
    file = json.loads(client.get(f"/global_subgraphs/{next(iter(offered))}")["data"])
    box, subgraph = file["nodes"][0], file["definitions"]["subgraphs"][0]
    assert box["type"] == subgraph["id"]
    assert [i["name"] for i in box["inputs"]] == [i["name"] for i in subgraph["inputs"]]
    nodes, links = {n["id"]: n for n in subgraph["nodes"]}, {link["id"]: link for link in subgraph["links"]}
    for number, link in links.items():
        if link["origin_id"] == -10:
            assert number in subgraph["inputs"][link["origin_slot"]]["linkIds"]
        else:
            assert number in nodes[link["origin_id"]]["outputs"][link["origin_slot"]]["links"]
        if link["target_id"] == -20:
            assert number in subgraph["outputs"][link["target_slot"]]["linkIds"]
        else:
            assert nodes[link["target_id"]]["inputs"][link["target_slot"]]["link"] == number
    for node in nodes.values():
        assert [o["type"] for o in node["outputs"]] == object_info[node["type"]]["output"]
    widgets = [i["name"] for i in box["inputs"] if "widget" in i]
    assert {"text", "repaint strength", "style strength", "quality", "name", "seed"} < set(widgets)
    assert len(box["properties"]["proxyWidgets"]) == len(widgets)
    for number, widget in box["properties"]["proxyWidgets"]:
        assert any(i["name"] == widget and i["link"] for i in nodes[int(number)]["inputs"])


def test_shipped_files_are_all_that_a_first_run_needs(object_info, home):
    """Styles and pictures that workflows name are there without anybody's doing, and so is each style's painting."""
    styles = object_info["InST_LoadStyle"]["input"]["required"]["style_name"][1]["options"]
    pictures = {p.name for p in (home / "input").iterdir()}
    for name in WORKFLOWS:
        for node in json.loads((ROOT / "workflows" / name).read_text(encoding="utf-8"))["nodes"]:
            known = {"InST_LoadStyle": styles, "LoadImage": pictures}.get(node["type"])
            assert known is None or node["widgets_values"][0] in known, name
    for path in (ROOT / "styles").rglob("*.safetensors"):
        assert read_metadata(path)["modelspec.thumbnail"].startswith("data:image/")


def test_a_style_file_from_outside_is_kept_or_refused(client, home):
    def send(name: str, content: bytes) -> tuple[int, dict]:
        answer = requests.post(f"{client.url}/inst/styles", content, params={"name": name}, timeout=60)
        return answer.status_code, answer.json()

    shipped = ROOT / "styles" / "inst-demo" / "hokusai.safetensors"
    assert send("../夕 暮.safetensors", shipped.read_bytes()) == (200, {"name": "夕_暮.safetensors"})
    assert (home / "models" / "inst_styles" / "夕_暮.safetensors").is_file()
    assert send("hokusai.safetensors", shipped.read_bytes()) == (200, {"name": "inst-demo/hokusai.safetensors"})
    status, said = send("dune.safetensors", b"nonsense")
    assert status == 400 and "dune.safetensors is not a safetensors file" in said["error"]


def test_learning_reports_and_saves_its_file(home, learned):
    text = next(o["text"][0] for o in learned["outputs"].values() if "text" in o)
    assert text.startswith("my_style_00001.safetensors is saved") and "embedding:my_style_00001" in text
    assert re.search(r"\d % closer to the painting by held-out loss", text)
    assert (home / "models" / "inst_styles" / "my_style_00001.safetensors").is_file()


def styles(home: Path) -> set[str]:
    return {p.name for p in (home / "models" / "inst_styles").iterdir()}


def test_cancel_half_way_keeps_the_style_and_a_server_that_works(client, home, small_prompt, learned):
    before, total, seen = styles(home), 5000, []
    prompt = small_prompt("02_learn_a_style.json")
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
    assert styles(home) - before == {"my_style_stopped_00001.safetensors"}
    client.wait(client.queue(small_prompt("16_style_in_any_prompt.json")))


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


APPLY, LEARN = "03_repaint_in_a_style.json", "02_learn_a_style.json"


def test_values_out_of_range_come_back_readable(refusal):
    assert "bigger than max" in refusal(APPLY, "InST_Sample", strength=1.1)
    assert "smaller than min" in refusal(LEARN, "InST_LearnStyle", steps=-1)
    assert "connect a CLIP vision model" in refusal(LEARN, "InST_LearnStyle", encoder="paper")
    assert "Expected a file name" in refusal(LEARN, "InST_LearnStyle", name="../up")


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
    client.wait(client.queue(small_prompt("02_learn_a_style.json")))
    before = styles(home)
    client.wait(client.queue(small_prompt("02_learn_a_style.json")))
    assert styles(home) == before
