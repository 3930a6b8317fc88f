"""What a person sees in ComfyUI's editor: every shipped workflow, the box, help pages, search, saved pictures."""
import json
import re

import pytest
from newcomer import WIDGET, Newcomer
from PIL import Image
from running import ROOT, SMALL, WORKFLOWS

NODES = sorted(set(re.findall(r'node_id="(InST_\w+)"', "".join(p.read_text() for p in (ROOT / "nodes").glob("*.py")))))
RESULTS = {"SaveImage", "PreviewImage", "LossGraphNode"}
# More than fits on a screen with titles that can be read.
LARGE = {"11_styles_in_regions", "15_strengths_side_by_side", "18_compare_everything"}
SLOW = {"InST_Sample", "InST_LearnStyle", "KSampler", "SamplerCustomAdvanced", "InST_GatysStyleTransfer"}
# One of each kind; the graphs of the others run in the server tier, and the first one in test_newcomer.
RUN = {"02_learn_a_style", "03_repaint_in_a_style", "05_a_whole_batch", "17_custom_sampling",
       "19_gatys", "24_guess_a_style"}
BOX = "Style transfer (InST)"
TINY = {**SMALL, "InST_LearnStyle": {"steps": 2, "resolution": 64, "learn_again": True}, BOX: {"scale": 0.25}}


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


def shipped(name: str) -> dict:
    return json.loads((ROOT / "workflows" / f"{name}.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", [w.stem for w in WORKFLOWS])
def test_a_template_opens_and_runs(editor, name):
    """Those that run come from the template browser, the others at once."""
    if name in RUN:
        editor.open_template(name)
    else:
        editor.load(shipped(name))
    assert not editor.problems()
    assert editor.readable() or name in LARGE
    if name in RUN:
        watch_run(editor)
    editor.screenshot(name)
    assert not editor.problems()  # nodes have grown by what they show
    assert not editor.errors


def test_in_nodes_2_nothing_overlaps_and_the_first_template_runs(editor):
    """The other face of the editor, where nodes are parts of the page and have other sizes."""
    editor.use_nodes_2(True)
    try:
        for workflow in WORKFLOWS:
            editor.load(shipped(workflow.stem))
            assert not editor.overlaps(), workflow.stem
        editor.load(shipped("01_start_here"))
        editor.set_widgets(TINY)
        assert editor.run()["over"] == "success"
        assert editor.wait_for_pictures({"SaveImage"}) == ["SaveImage"]
        editor.screenshot("nodes_2")
    finally:
        editor.use_nodes_2(False)
    assert not editor.errors


def test_the_box_says_what_learning_says_and_gives_the_photographs_size(editor, home):
    editor.open_template("01_start_here")
    editor.set_widgets(TINY | {BOX: {"scale": 0.25, "name": "from_the_box", "quality": "quick", "seed": 1}})
    editor.page.evaluate("""() => {
        window.titles = new Set();
        app.api.addEventListener('progress', () => titles.add(app.graph.nodes.find(n => n.isSubgraphNode?.()).title));
    }""")
    assert editor.run()["over"] == "success"
    editor.page.get_by_text("from_the_box_00001.safetensors is saved").last.wait_for()  # a message
    titles = editor.page.evaluate("() => [...titles]")
    assert any("closer to the painting" in title for title in titles)
    assert editor.page.evaluate("() => app.graph.nodes.find(n => n.isSubgraphNode?.()).title") == BOX  # its own again
    pictures = sorted((home / "output" / "inst").glob("start_*.png"), key=lambda p: p.stat().st_mtime)
    photograph = Image.open(ROOT / "samples" / "inst_photograph.jpg")
    assert Image.open(pictures[-1]).size == photograph.size


def test_numbers_that_are_left_to_the_quality_are_written_auto(editor):
    editor.open_template("02_learn_a_style")
    shown = editor.page.evaluate("""() => {
        const learn = app.graph.nodes.find(n => n.type == 'InST_LearnStyle');
        const at = name => learn.widgets.find(w => w.name == name);
        const before = ['steps', 'learning_rate', 'batch_size', 'resolution', 'tokens'].map(n => at(n)._displayValue);
        at('learning_rate').value = 0.002;
        return [...before, at('learning_rate')._displayValue, learn.serialize().widgets_values];
    }""")
    assert shown[:6] == ["auto", "auto", "auto", "auto", "4", "0.0020"]
    assert shown[6][:5] == ["auto", 4, 0, 0.002, 0]  # encoder, tokens, steps, rate, batch: numbers, as ever


def test_a_style_shows_its_painting_and_a_dropped_one_becomes_a_node(editor, home, tmp_path):
    page, painting = editor.page, "img.inst-painting"
    editor.open_template("03_repaint_in_a_style")
    page.wait_for_function("s => document.querySelector(s)?.naturalWidth > 0", arg=painting)
    first = page.evaluate("s => document.querySelector(s).src", painting)
    editor.set_widgets({"InST_LoadStyle": {"style_name": "inst-demo/hokusai.safetensors"}})
    page.wait_for_function("([s, first]) => document.querySelector(s).src != first", arg=[painting, first])

    editor.command("Comfy.NewBlankWorkflow")
    page.wait_for_function("() => app.graph.nodes.length == 0")
    dropped = tmp_path / "夕 暮.safetensors"
    dropped.write_bytes((ROOT / "styles" / "inst-demo" / "hokusai.safetensors").read_bytes())
    editor.drop(dropped)
    page.wait_for_function("() => app.graph.nodes.length == 1")
    page.wait_for_function("() => app.graph.nodes[0].widgets[0].value == '夕_暮.safetensors'")
    page.wait_for_function("s => document.querySelector(s)?.naturalWidth > 0", arg=painting)
    assert (home / "models" / "inst_styles" / "夕_暮.safetensors").is_file()  # as prompts can carry it
    editor.screenshot("dropped_style")
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
    ours = {"Learn InST Style", "Apply InST Style", "InST Sample", "Load InST Style", BOX}
    assert offered[0] == BOX and ours <= set(offered) and "Content and Style Metrics" not in offered
    for words in ("painting", "repaint", "artist", "art style", "restyle", "photo to painting"):
        assert ours & set(editor.search(words)), words
        editor.page.keyboard.press("Escape")


def test_the_box_is_one_node_that_works(editor, home):
    """The subgraph blueprint, placed from the search, whose widgets say what they mean; wired by hand, run, and back
    from the picture it saved."""
    page = editor.page
    editor.command("Comfy.NewBlankWorkflow")
    editor.place(BOX.lower())
    editor.fit()
    person = Newcomer(editor, home)
    for widget, words in {"repaint strength": "0.5 keeps the layout", "name": "the painting's file"}.items():
        page.mouse.move(5, 5)
        page.mouse.move(*person.find(WIDGET, BOX, widget), steps=5)
        page.get_by_text(words).wait_for()
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
    editor.set_widgets(TINY | {"Photograph": {"image": "inst_photograph.jpg"},
                               "Painting": {"image": "inst_painting.jpg"}, "Result": {"filename_prefix": "box"},
                               BOX: {"scale": 0.25, "cfg": 2.0}})
    editor.fit()
    seen = editor.run()
    assert seen["over"] == "success" and seen["previews"]
    assert editor.wait_for_pictures({"SaveImage"}) == ["SaveImage"]
    editor.screenshot("one_box")
    before = editor.content()
    editor.command("Comfy.NewBlankWorkflow")
    editor.drop(next((home / "output").glob("box_*.png")))
    page.wait_for_function("() => app.graph.nodes.length == 4")
    assert editor.content() == before and before["subgraphs"] == [BOX]
    assert not editor.errors


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
