"""What a person sees in ComfyUI's editor: every shipped workflow, the box, help pages, search, saved pictures."""
import re

import pytest
from running import ROOT, SMALL, WORKFLOWS

NODES = sorted(set(re.findall(r'node_id="(InST_\w+)"', "".join(p.read_text() for p in (ROOT / "nodes").glob("*.py")))))
RESULTS = {"SaveImage", "PreviewImage", "LossGraphNode"}
IN_README = "3_content_and_style"  # its picture, .dev/screenshots/graph.jpg, is what docs/graph.jpg is a copy of
LARGE = {"compare_methods"}  # more than fits on a screen
SLOW = {"InST_Sample", "InST_LearnStyle", "KSampler", "SamplerCustomAdvanced", "InST_GatysStyleTransfer"}
NOT_RUN = {"style_on_sdxl"}  # no SDXL here: its graph runs in the server tier, the family in the host tier
TINY = {**SMALL, "Painting": {"image": "painting.png"}, "InST_LearnStyle": {"steps": 2, "resolution": 64}}


def watch_run(editor) -> None:
    """Runs the open graph: a bar fills, a picture is there before the end, and results are seen in the graph."""
    kinds = {n[1] for n in editor.content()["nodes"]}
    editor.set_widgets(TINY)
    seen = editor.run()
    assert seen["over"] == "success"
    if kinds & SLOW:
        assert any(0 < bar < 1 for bar in seen["progress"]) and seen["previews"]
    shown = editor.wait_for_pictures(RESULTS)
    assert shown and set(shown) == kinds & RESULTS


@pytest.mark.parametrize("name", [w.stem for w in WORKFLOWS])
def test_a_template_opens_and_runs(editor, name):
    editor.open_template(name)
    assert not editor.problems()
    assert editor.readable() or name in LARGE
    if name == IN_README:
        editor.set_widgets({"Painting": TINY["Painting"]})
        editor.page.wait_for_timeout(500)
        editor.picture_of_graph("graph")
    if name not in NOT_RUN:
        watch_run(editor)
    editor.screenshot(name)
    assert not editor.problems()  # nodes have grown by what they show
    assert not editor.errors


def test_a_red_node_and_a_crowded_graph_would_be_noticed(editor):
    def node(number: int, kind: str, y: int) -> dict:
        return {"id": number, "type": kind, "pos": [0, y], "size": [330, 100], "flags": {}, "order": 0, "mode": 0,
                "inputs": [], "outputs": [], "properties": {}, "widgets_values": ["gone.safetensors"]}

    nodes = [node(1, "InST_Painter", 0), node(2, "InST_LoadStyle", 400), node(3, "InST_LoadStyle", 420)]
    editor.page.evaluate("graph => app.loadGraphData(graph)", {
        "last_node_id": 3, "last_link_id": 0, "nodes": nodes, "links": [], "groups": [], "version": 0.4})
    editor.page.get_by_test_id("error-overlay").wait_for()
    found = "; ".join(editor.problems())
    assert "InST_Painter is unknown" in found and "Load InST Style is red" in found
    assert "Load InST Style lies on Load InST Style" in found and "message: " in found


def test_the_search_finds_the_nodes(editor):
    offered = editor.search("style transfer")
    editor.screenshot("search")
    editor.page.keyboard.press("Escape")
    assert offered[0] == "Style transfer (InST)"
    assert {"Learn InST Style", "Apply InST Style", "InST Sample", "Load InST Style"} <= set(offered)


def test_the_box_is_one_node_that_works(editor, home):
    """The subgraph blueprint, placed from the search, wired by hand, run, and back from the picture it saved."""
    page = editor.page
    editor.command("Comfy.NewBlankWorkflow")
    editor.place("style transfer (inst)")
    page.evaluate("""() => {
        const box = app.graph.nodes[0];
        box.pos = [400, 0];
        const place = (kind, title, x, y) => {
            const node = LiteGraph.createNode(kind);
            node.title = title; node.pos = [x, y]; app.graph.add(node);
            return node;
        };
        place('LoadImage', 'Photograph', 0, 0).connect(0, box, 0);
        place('LoadImage', 'Painting', 0, 400).connect(0, box, 1);
        box.connect(0, place('SaveImage', 'Result', 800, 0), 0);
    }""")
    editor.set_widgets(TINY | {"Photograph": {"image": "example.png"}, "Result": {"filename_prefix": "box"},
                               "Style transfer (InST)": {"megapixels": 0.01, "steps": 3, "learning_steps": 3}})
    editor.fit()
    seen = editor.run()
    assert seen["over"] == "success" and seen["previews"]
    assert editor.wait_for_pictures({"SaveImage"}) == ["SaveImage"]
    editor.screenshot("one_box")
    before = editor.content()
    editor.command("Comfy.NewBlankWorkflow")
    editor.drop(next((home / "output").glob("box_*.png")))
    page.wait_for_function("() => app.graph.nodes.length == 4")
    assert editor.content() == before and before["subgraphs"] == ["Style transfer (InST)"]
    assert not editor.errors


def test_a_saved_picture_brings_its_graph_back(editor, home):
    editor.open_template("1_apply_a_saved_style")
    editor.set_widgets(TINY | {"SaveImage": {"filename_prefix": "dropped"}, "InST_Sample": {"steps": 2, "cfg": 3.5}})
    assert editor.run()["over"] == "success"
    before = editor.content()
    editor.command("Comfy.NewBlankWorkflow")
    editor.page.wait_for_function("() => app.graph.nodes.length == 0")
    editor.drop(next((home / "output").glob("dropped_*.png")))
    editor.page.wait_for_function("count => app.graph.nodes.length == count", arg=len(before["nodes"]))
    assert editor.content() == before and "3.5" in str(before["nodes"])
    assert not editor.problems() and not editor.errors


def test_every_help_page_is_shown(editor):
    """The page of each node beside the graph, with its own heading and no raw Markdown."""
    page = editor.page
    editor.command("Comfy.NewBlankWorkflow")
    page.evaluate("""kinds => kinds.forEach((kind, i) => {
        const node = LiteGraph.createNode(kind);
        node.pos = [250 * (i % 3), 120 * Math.floor(i / 3)]; node.flags.collapsed = true; app.graph.add(node);
    })""", NODES)
    editor.fit()
    editor.click_title(NODES[0])
    page.get_by_test_id("info-button").click()
    panel = page.get_by_test_id("properties-panel")
    for kind in NODES:
        editor.click_title(kind)
        heading = (ROOT / "web" / "docs" / f"{kind}.md").read_text(encoding="utf-8").splitlines()[0].removeprefix("# ")
        panel.get_by_role("heading", name=heading, exact=True).first.wait_for()
        assert "**" not in panel.inner_text()
    editor.screenshot("help")
    page.get_by_label("Toggle properties panel").last.click()
    assert not [e for e in editor.errors if not e.endswith("/en.md")]  # asked for first; ours have no language
