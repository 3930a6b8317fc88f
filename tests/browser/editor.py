"""ComfyUI's web editor as a person uses it: opening, looking, running, searching, dropping."""
from __future__ import annotations

import base64
import re
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # so that the tests can be collected, and skipped, without it
    from playwright.sync_api import ConsoleMessage, Page

READY = "() => window.app?.vueAppReady && window.app.graph && window.app.extensionManager?.workflow?.activeWorkflow"
FIT, BLANK, DEFAULT = "Comfy.Canvas.FitView", "Comfy.NewBlankWorkflow", "Comfy.LoadDefaultWorkflow"
SEARCH, TEMPLATES = "Workspace.SearchBox.Toggle", "Comfy.BrowseTemplates"
PACK = "ComfyUI-InST"
GREETING_SECONDS = 15
RUN_SECONDS = 300  # a bound for what hangs, not a promise
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync",
         "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"]  # news and the like stay away
SCREEN = {"width": 1600, "height": 1000}

# Notes what a person sees while a workflow runs: bars that fill, and pictures in nodes before they are done.
WATCH = """() => {
    window.seen = {progress: [], previews: [], over: null};
    if (window.watched) return;
    window.watched = true;
    for (const [event, look] of Object.entries({
        progress: () => seen.progress.push(...app.graph.nodes.filter(n => n.progress > 0).map(n => n.progress)),
        b_preview_with_metadata: () => seen.previews.push(...Object.keys(app.nodePreviewImages)),
        execution_success: () => seen.over = 'success',
        execution_error: e => seen.over = `${e.detail.node_type}: ${e.detail.exception_message}`,
        execution_interrupted: () => seen.over = 'interrupted',
    })) app.api.addEventListener(event, look);
}"""

# What is wrong with the graph as it is drawn: unknown or red nodes, nodes that are too small or lie on each other.
PROBLEMS = """() => {
    const found = [], title = LiteGraph.NODE_TITLE_HEIGHT;
    for (const node of app.graph.nodes) {
        const name = node.title || node.type;
        if (!node.isSubgraphNode?.() && !LiteGraph.registered_node_types[node.type]) found.push(`${name} is unknown`);
        if (node.has_errors) found.push(`${name} is red`);
        const least = node.computeSize();
        if (least[0] > node.size[0] || least[1] > node.size[1])
            found.push(`${name} is ${node.size}, needs ${least}`);
        for (const other of app.graph.nodes)
            if (other.id > node.id
                && node.pos[0] < other.pos[0] + other.size[0] && other.pos[0] < node.pos[0] + node.size[0]
                && node.pos[1] - title < other.pos[1] + other.size[1]
                && other.pos[1] - title < node.pos[1] + node.size[1])
                found.push(`${name} lies on ${other.title || other.type}`);
        const frames = app.graph.groups.filter(g => g.boundingRect[0] <= node.pos[0]
            && g.boundingRect[1] <= node.pos[1] - title && node.pos[0] + node.size[0] <= g.boundingRect[0]
            + g.boundingRect[2] && node.pos[1] + node.size[1] <= g.boundingRect[1] + g.boundingRect[3]);
        if (app.graph.groups.length && frames.length != (node.type == 'MarkdownNote' ? 0 : 1))
            found.push(`${name} is in ${frames.length} groups`);
    }
    for (const group of app.graph.groups) if (!group.title) found.push('a group has no title');
    for (const text of document.querySelectorAll('.comfy-markdown .tiptap'))
        if (text.clientHeight && text.lastElementChild?.offsetTop + text.lastElementChild?.offsetHeight
            > text.parentElement.offsetHeight) found.push('a note is cut off');
    return found;
}"""

# The same in Nodes 2.0, by the rectangles of what the page shows.
OVERLAPS = """() => {
    const found = [], {scale, offset} = app.canvas.ds, canvas = app.canvas.canvas.getBoundingClientRect();
    const node = id => app.graph.nodes.find(n => String(n.id) == id);
    const name = id => node(id)?.title || node(id)?.type || id;
    const boxes = [...document.querySelectorAll('[data-node-id]')]
        .map(e => [e.dataset.nodeId, e.getBoundingClientRect()])
        .filter(([id, box]) => node(id) && box.width && box.height);
    if (boxes.length != app.graph.nodes.length) found.push(`${boxes.length} of ${app.graph.nodes.length} are drawn`);
    const frames = app.graph.groups.map(({boundingRect: [x, y, width, height]}) => ({
        left: (x + offset[0]) * scale + canvas.left, right: (x + width + offset[0]) * scale + canvas.left,
        top: (y + offset[1]) * scale + canvas.top, bottom: (y + height + offset[1]) * scale + canvas.top}));
    boxes.forEach(([id, a], i) => {
        for (const [other, b] of boxes.slice(i + 1))
            if (a.left < b.right - 1 && b.left < a.right - 1 && a.top < b.bottom - 1 && b.top < a.bottom - 1)
                found.push(`${name(id)} lies on ${name(other)}`);
        const around = frames.filter(f => f.left <= a.left + 1 && f.top <= a.top + 1
                                     && a.right <= f.right + 1 && a.bottom <= f.bottom + 1);
        if (frames.length && around.length != (node(id).type == 'MarkdownNote' ? 0 : 1))
            found.push(`${name(id)} is in ${around.length} groups`);
    });
    return found;
}"""

CONTENT = """() => {
    const {nodes, links, groups, definitions} = app.graph.serialize();
    const seeds = n => JSON.stringify(n.widgets_values);
    return {nodes: nodes.map(n => [n.id, n.type, n.title, Array.from(n.pos), seeds(n)]).sort(), links: links.length,
            groups: groups.map(g => g.title), subgraphs: definitions?.subgraphs?.map(s => s.name) ?? []};
}"""


class Editor:
    """One page with ComfyUI in it.

    Attributes:
        errors: what the page wrote to its console as errors, since the list was last cleared.
        patience: seconds after which a run counts as hung.
    """

    def __init__(self, page: Page, url: str, screenshots: Path, patience: float = RUN_SECONDS):
        self.page, self.url, self.screenshots, self.patience = page, url, screenshots, patience
        self.errors: list[str] = []
        self.usual: set[str] = set()
        page.on("console", self._console)
        page.on("pageerror", lambda error: self._error(f"uncaught: {error}"))

    def _console(self, message: ConsoleMessage) -> None:
        address = message.location.get("url", "")
        if message.type == "error" and (address.startswith(self.url) or not address.startswith("http")):
            self._error(f"{message.text} {address.removeprefix(self.url)}")

    def _error(self, text: str) -> None:
        if text not in self.usual:
            self.errors.append(text)

    def open(self) -> None:
        """Opens the page with the host's own default graph; what it logs by itself counts as usual from then on."""
        self.page.goto(self.url)
        self.page.wait_for_function(READY)
        self.page.wait_for_load_state("networkidle")
        self._leave_greeting()
        self.command(DEFAULT)
        self.page.wait_for_function("() => app.graph.nodes.length > 5")
        self.page.get_by_test_id("close-minimap-button").click()
        self.usual, self.errors = set(self.errors), []

    def _leave_greeting(self) -> None:
        """Closes the templates, which greet a newcomer once the page had time to fetch them."""
        from playwright.sync_api import TimeoutError

        greeting = self.page.get_by_role("dialog").first
        with suppress(TimeoutError):
            greeting.wait_for(timeout=GREETING_SECONDS * 1000)
        self.page.keyboard.press("Escape")
        greeting.wait_for(state="hidden")

    def command(self, name: str) -> None:
        self.page.evaluate("name => app.extensionManager.command.execute(name)", name)

    def open_template(self, name: str) -> None:
        """Opens a workflow of the pack from the template browser."""
        self.command(TEMPLATES)
        category = self.page.get_by_role("dialog").get_by_text(PACK).first
        heading = self.page.get_by_text("Extensions", exact=True)
        heading.wait_for()
        if not category.is_visible():
            heading.click()
        category.click()
        shown, wanted = self.page.locator("[data-testid^=template-workflow-]"), f"template-workflow-{name}"
        shown.first.wait_for()
        for _ in range(20):  # some front ends fetch the rest when the last one is in sight
            if self.page.get_by_test_id(wanted).count():
                break
            shown.last.scroll_into_view_if_needed()
            self.page.wait_for_timeout(200)
        self.page.get_by_test_id(wanted).click()
        self.page.wait_for_function("name => app.extensionManager.workflow.activeWorkflow.filename.startsWith(name) "
                                    "&& app.graph.nodes.length", arg=name)
        self.fit()

    def use_nodes_2(self, on: bool) -> None:
        """Switches between classic nodes and Nodes 2.0."""
        self.page.evaluate("on => app.extensionManager.setting.set('Comfy.VueNodes.Enabled', on)", on)

    def load(self, workflow: dict) -> None:
        """Opens a workflow at once, without the template browser."""
        self.page.evaluate("workflow => app.loadGraphData(workflow)", workflow)
        self.page.wait_for_function("count => app.graph.nodes.length == count", arg=len(workflow["nodes"]))
        self.fit()

    def overlaps(self) -> list[str]:
        """What lies on something else in Nodes 2.0, or sticks out of its group, once the page is at rest."""
        self.page.wait_for_function(
            "() => document.querySelectorAll('[data-node-id]').length >= app.graph.nodes.length")
        self.page.wait_for_timeout(300)
        return self.page.evaluate(OVERLAPS)

    def fit(self) -> None:
        """Brings the whole graph into sight, and lets the page draw it."""
        self.page.evaluate("() => app.canvas.deselectAll()")
        self.command(FIT)
        self.page.evaluate("""async () => {
            const view = () => [app.canvas.ds.scale, ...app.canvas.ds.offset].join();
            for (let before = null; before != view();) {  // it glides there
                before = view();
                await new Promise(r => setTimeout(r, 150));
            }
        }""")

    def problems(self) -> list[str]:
        """What a person would see to be wrong with the graph."""
        overlay = self.page.get_by_test_id("error-overlay")
        return self.page.evaluate(PROBLEMS) + [f"message: {text}" for text in overlay.all_inner_texts()]

    def readable(self) -> bool:
        """Whether titles are drawn, with the whole graph in sight."""
        return not self.page.evaluate("() => app.canvas.low_quality")

    def set_widgets(self, values: dict[str, dict]) -> None:
        """Types values into widgets, in subgraphs too: {node type or title: {widget: value}}."""
        self.page.evaluate("""values => {
            const set = nodes => nodes.forEach(node => {
                if (node.isSubgraphNode?.()) set(node.subgraph.nodes);
                for (const [name, value] of Object.entries({...values[node.type], ...values[node.title]})) {
                    const widget = node.widgets.find(w => w.name == name);
                    widget.value = value;
                    widget.callback?.(value);
                }
            });
            set(app.graph.nodes);
        }""", values)

    def run(self) -> dict:
        """Presses Run and waits until it is over; returns what was seen on the way: progress, previews, over."""
        self.page.evaluate(WATCH)
        self.page.get_by_test_id("queue-button").click()
        end = time.monotonic() + self.patience
        while time.monotonic() < end:
            seen = self.page.evaluate("() => seen")
            if seen["over"] or self.page.get_by_test_id("error-overlay").is_visible():
                break
            self.page.wait_for_timeout(50)
        return seen

    def stop(self) -> None:
        """Ends what runs and forgets what waits."""
        self.page.evaluate("() => Promise.all([app.api.interrupt(null), app.api.clearItems('queue')])")

    def wait_for_pictures(self, kinds: set[str]) -> list[str]:
        """Types of the nodes of these kinds that show a picture, after all of them had time to."""
        return self.page.evaluate("""async kinds => {
            const shows = n => n.imgs?.length && n.imgs.every(i => i.complete && i.naturalWidth);
            const asked = app.graph.nodes.filter(n => kinds.includes(n.type));
            for (let i = 0; i < 50 && !asked.every(shows); i++) await new Promise(r => setTimeout(r, 100));
            return asked.filter(shows).map(n => n.type);
        }""", sorted(kinds))

    def place(self, name: str) -> None:
        """Adds what the search offers first to the graph, as its only node."""
        self.search(name)
        self.page.keyboard.press("Enter")
        self.page.wait_for_function("() => app.graph.nodes.length == 1")
        self.page.mouse.move(700, 300)
        self.page.wait_for_timeout(200)
        self.page.mouse.click(700, 310)

    def search(self, words: str) -> list[str]:
        """Names that the search for nodes offers; it stays open."""
        self.command(SEARCH)
        field = self.page.get_by_role("dialog").locator("input").first
        field.fill(words)
        results = self.page.get_by_role("dialog").get_by_role("option")
        results.first.wait_for()
        self.page.wait_for_timeout(500)
        return [text.splitlines()[0] for text in results.all_inner_texts()]

    def click_title(self, kind: str) -> None:
        """Selects the node of this type with the mouse."""
        spot = self.page.evaluate("""kind => {
            const node = app.graph.nodes.find(n => n.type == kind), {offset, scale} = app.canvas.ds;
            const canvas = app.canvas.canvas.getBoundingClientRect();
            return [(node.pos[0] + 40 + offset[0]) * scale + canvas.left,
                    (node.pos[1] - 15 + offset[1]) * scale + canvas.top];
        }""", kind)
        self.page.mouse.click(*spot)

    def drop(self, file: Path) -> None:
        """Drags a file from the desktop into the graph."""
        carried = self.page.evaluate_handle("""([name, content]) => {
            const bytes = Uint8Array.from(atob(content), c => c.charCodeAt(0));
            const carried = new DataTransfer();
            carried.items.add(new File([bytes], name, {type: name.endsWith('.png') ? 'image/png' : ''}));
            return carried;
        }""", [file.name, base64.b64encode(file.read_bytes()).decode()])
        self.page.dispatch_event("#graph-canvas", "drop", {"dataTransfer": carried, "clientX": 20, "clientY": 20})

    def content(self) -> dict:
        """What a graph is: its nodes with their widgets and places, how many links, which groups."""
        return self.page.evaluate(CONTENT)

    def screenshot(self, name: str) -> Path:
        path = self.screenshots / f"{re.sub(r'[^a-zA-Z0-9_]+', '_', name)}.png"
        self.page.screenshot(path=path)
        return path
