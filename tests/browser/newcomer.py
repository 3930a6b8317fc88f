"""What a newcomer does in the editor: their photograph in their painting's style, then the style once more.

All of it is done as a person does it, with mouse, keyboard and file dialogs, and counted. ``tools/five_minutes.py``
walks this way with the demo checkpoint and measures it; the tests walk it with a small one.
"""
from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from editor import PACK, READY, Editor

if TYPE_CHECKING:
    from playwright.sync_api import Locator

TEMPLATE, BOX, LOADER = "01_start_here", "Style transfer (InST)", "Load InST Style"
FREE = 1050, 720  # a place on the page where the template has nothing
KEY_MS = 20  # between two keys
NEW_NAME = "village"
FIRST_PICTURE = "Run: the style is learned and saved, the photograph is painted and saved"

# Where a person clicks, as a place on the page: a widget, or the end of a link.
WIDGET = """([title, name]) => {
    const node = app.graph.nodes.find(n => n.title == title), widget = node.widgets.find(w => w.name == name);
    return [node.pos[0] + node.size[0] / 2, node.pos[1] + widget.y + 10];
}"""
SOCKET = """([title, name, side]) => {
    const node = app.graph.nodes.find(n => n.title == title), slots = side == 'out' ? node.outputs : node.inputs;
    const at = slots.findIndex(s => s.name == name);
    return Array.from(side == 'out' ? node.getOutputPos(at) : node.getInputPos(at));
}"""
ON_PAGE = """([x, y]) => {
    const {left, top} = app.canvas.canvas.getBoundingClientRect(), {scale, offset} = app.canvas.ds;
    return [(x + offset[0]) * scale + left, (y + offset[1]) * scale + top];
}"""
DRAWN = "() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))"


class Stage:
    """A part of the way, and what it took.

    Attributes:
        clicks: of the mouse; dragging a link is one, so is a double click.
        typed: fields that were filled in, and keys such as R.
        files: that were chosen in a dialog of the system.
        seconds: on the clock.
        work: seconds that ComfyUI computed, added over the cores.
    """

    def __init__(self, name: str):
        self.name, self.clicks, self.typed, self.files, self.seconds, self.work = name, 0, 0, 0, 0.0, 0.0


class Newcomer:
    """A person at the mouse, with the pack just installed.

    Args:
        home: the server's, where files lie.
        worked: seconds that ComfyUI has computed so far.
    """

    def __init__(self, editor: Editor, home: Path, worked: Callable[[], float] = lambda: 0.0):
        self.editor, self.page, self.home, self.worked = editor, editor.page, home, worked
        self.stages: list[Stage] = []

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        self.stages.append(Stage(name))
        since, before = time.monotonic(), self.worked()
        yield
        self.stages[-1].seconds, self.stages[-1].work = time.monotonic() - since, self.worked() - before

    # ---- single acts ----

    def click(self, what: Locator) -> None:
        self.stages[-1].clicks += 1
        what.click()

    def click_widget(self, node: str, widget: str) -> None:
        """Points at it before pressing: a moment in which the page draws what it is pointed at."""
        self.stages[-1].clicks += 1
        place = self.find(WIDGET, node, widget)
        self.page.mouse.move(*place)
        self.page.evaluate(DRAWN)
        self.page.mouse.click(*place)

    def find(self, what: str, *names: str) -> list[float]:
        return self.page.evaluate(ON_PAGE, self.page.evaluate(what, names))

    def type(self, text: str) -> None:
        """Into the field that has the cursor, ended by Enter."""
        self.stages[-1].typed += 1
        self.page.keyboard.type(text, delay=KEY_MS)
        self.page.keyboard.press("Enter")

    def choose(self, node: str, widget: str, value: str) -> None:
        """From the list of a widget, clicked again where the page was still moving and the list did not stay."""
        entry = self.page.locator(".litemenu-entry").get_by_text(value, exact=True)
        self.click_widget(node, widget)
        for _ in range(5):
            if self._comes(entry):
                break
            self.page.keyboard.press("Escape")
            self.stages[-1].clicks -= 1
            self.click_widget(node, widget)
        self.click(entry)

    @staticmethod
    def _comes(what: Locator, milliseconds: int = 5000) -> bool:
        from playwright.sync_api import TimeoutError

        try:
            what.wait_for(timeout=milliseconds)
            return True
        except TimeoutError:
            return False

    def write(self, node: str, widget: str, text: str) -> None:
        """Into a text widget, in place of what it held."""
        self.click_widget(node, widget)
        self.page.locator(".graphdialog input").wait_for()
        self.type(text)

    def upload(self, node: str, file: Path) -> None:
        """A picture of one's own, into a Load Image node."""
        with self.page.expect_file_chooser() as dialog:
            self.click_widget(node, "upload")
        self.stages[-1].files += 1
        dialog.value.set_files(file)
        self.page.wait_for_function("""([title, name]) => {
            const node = app.graph.nodes.find(n => n.title == title);
            return node.widgets[0].value == name && node.imgs?.[0]?.src.includes(encodeURIComponent(name));
        }""", arg=[node, file.name])

    def place(self, name: str) -> None:
        """A node from the search, which a double click opens, onto a free place."""
        self.stages[-1].clicks += 2
        self.page.mouse.dblclick(*FREE)
        self.page.get_by_role("dialog").locator("input").first.wait_for()
        self.page.keyboard.type(name, delay=KEY_MS)
        self.page.get_by_role("dialog").get_by_role("option").get_by_text(name).first.wait_for()
        self.type("")
        self.page.wait_for_function("title => app.graph.nodes.some(n => n.title == title)", arg=name)
        self.page.mouse.move(FREE[0], FREE[1] + 5)
        self.page.evaluate(DRAWN)
        self.page.mouse.click(*FREE)

    def connect(self, source: tuple[str, str], target: tuple[str, str]) -> None:
        self.stages[-1].clicks += 1
        self.page.mouse.move(*self.find(SOCKET, *source, "out"))
        self.page.mouse.down()
        self.page.mouse.move(*self.find(SOCKET, *target, "in"), steps=8)
        self.page.mouse.up()

    def refresh(self) -> None:
        """Presses R, as one does after files have changed."""
        self.stages[-1].typed += 1
        with self.page.expect_response("**/object_info"):
            self.page.keyboard.press("r")
        self.page.get_by_text("Node definitions updated").last.wait_for()

    def run(self) -> None:
        """Presses Run and sees the result in Save Image."""
        self.stages[-1].clicks += 1
        assert self.editor.run()["over"] == "success"
        assert self.editor.wait_for_pictures({"SaveImage"})

    # ---- what there is to see ----

    def results(self) -> set[str]:
        return {p.name for p in (self.home / "output" / "inst").glob("start_*.png")}

    def styles(self) -> dict[str, float]:
        """Files of learned styles, and when they were written."""
        return {p.name: p.stat().st_mtime for p in (self.home / "models" / "inst_styles").glob("*.safetensors")}

    def told(self, text: str) -> None:
        """A message beside the graph says so."""
        self.page.get_by_text(text).first.wait_for()

    # ---- the way ----

    def arrive(self) -> None:
        """Opens ComfyUI for the first time: it greets with its templates."""
        with self.stage("ComfyUI opens and shows its templates"):
            self.page.goto(self.editor.url)
            self.page.wait_for_function(READY)
            self.page.get_by_role("dialog").get_by_text(PACK).first.wait_for()

    def paint(self, painting: Path, photograph: Path, choices: dict[str, str], prepare: Callable[[], None]) -> str:
        """From the template to the first result; returns the name of the style's file.

        Args:
            choices: {widget of the box: value} to choose from its lists.
            prepare: called before Run.
        """
        with self.stage("open the template *Start here*"):
            if not self.page.get_by_role("dialog").is_visible():
                self.click(self.page.get_by_role("button", name="Templates"))
            self.click(self.page.get_by_role("dialog").get_by_text(PACK).first)
            self.click(self.page.get_by_test_id(f"template-workflow-{TEMPLATE}"))
            self.page.wait_for_function("() => app.graph.nodes.filter(n => n.imgs?.length).length == 2")
        with self.stage("choose a painting"):
            self.upload("Painting", painting)
        with self.stage("choose a photograph"):
            self.upload("Photograph", photograph)
        with self.stage(f"choose {' and '.join(choices)} in the box"):
            for widget, value in choices.items():
                self.choose(BOX, widget, value)
        prepare()
        results, styles = self.results(), self.styles()
        with self.stage(FIRST_PICTURE):
            self.run()
        assert len(self.results() - results) == 1
        learned, = self.styles().keys() - styles.keys()
        self.told(f"{learned} is saved")
        return learned

    def paint_again(self, photograph: Path) -> None:
        styles = self.styles()
        with self.stage("another photograph, Run: the style is not learned again"):
            self.upload("Photograph", photograph)
            self.run()
        assert self.styles() == styles

    def rename(self, learned: str) -> str:
        """Gives the style's file and the box other names; returns the file's."""
        folder, file = self.home / "models" / "inst_styles", f"{NEW_NAME}.safetensors"
        (folder / learned).rename(folder / file)
        styles = self.styles()
        with self.stage("rename the style's file, R, another name in the box, Run: the renamed file is found"):
            self.refresh()
            self.write(BOX, "name", "something_else")
            self.run()
        assert self.styles() == styles
        self.told(f"{file} is loaded, learned on")
        return file

    def load(self, file: str) -> None:
        styles = self.styles()
        with self.stage("add Load InST Style, choose the style, connect it, Run: it is used as it is"):
            self.place(LOADER)
            self.choose(LOADER, "style_name", file)
            self.connect((LOADER, "style"), (BOX, "style"))
            self.run()
        assert self.styles() == styles
        self.told("The connected style is used; nothing is learned.")

    def delete(self, file: str) -> None:
        (self.home / "models" / "inst_styles" / file).unlink()
        with self.stage("delete the style's file, R, Run: a message says what is missing"):
            self.refresh()
            self.stages[-1].clicks += 1
            assert self.editor.run()["over"] is None
            self.page.get_by_test_id("error-overlay").wait_for()
            self.page.get_by_text("The connected style is used").wait_for(state="hidden", timeout=10000)  # in its way
        assert any(f"{LOADER} is red" in problem for problem in self.editor.problems())

    def walk(self, painting: Path, photographs: tuple[Path, Path], choices: dict[str, str],
             prepare: Callable[[], None] = lambda: None) -> tuple[str, str]:
        """All of it but the end, with what must be true at each stage; returns the names that the style's file had."""
        learned = self.paint(painting, photographs[0], choices, prepare)
        self.paint_again(photographs[1])
        renamed = self.rename(learned)
        self.load(renamed)
        return learned, renamed
