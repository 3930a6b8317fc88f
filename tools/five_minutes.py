"""Walks a newcomer's way through the editor and counts clicks and seconds (docs/five_minutes.md).

    .dev/venv/bin/python tools/five_minutes.py [--quality good] [--checkpoint FILE] [--into docs/five_minutes.md]

A fresh ComfyUI home with the demo checkpoint is made for it, and the real editor runs in headless Chromium; the way
itself is in tests/browser/newcomer.py. ``python3 tools/dev.py setup`` comes first.
"""
import argparse
import contextlib
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import dev
import psutil
from pages import write_between
from playwright.sync_api import sync_playwright

ROOT = Path(__file__).resolve().parents[1]
MODELS, PAINTING = dev.HOME / "models", ROOT / "samples" / "inst_painting_3.jpg"
PHOTOGRAPHS = ROOT / "samples" / "inst_photograph.jpg", ROOT / "samples" / "inst_photograph_2.jpg"
sys.path += [str(ROOT), str(ROOT / "tests" / "browser")]

from editor import FLAGS, SCREEN, Editor  # noqa: E402
from newcomer import FIRST_PICTURE, Newcomer, Stage  # noqa: E402

from inst_core.metrics.tables import markdown  # noqa: E402

HEAD = "what a newcomer does", "clicks", "typed", "files chosen", "seconds", "of computing"
MARKS = "<!-- table: begin -->", "<!-- table: end -->"
PATIENCE = 3600  # seconds, for slow machines and large checkpoints


@contextlib.contextmanager
def newcomer_in(home: Path) -> Iterator[Newcomer]:
    """A person in front of a browser that has not opened anything yet, beside a running ComfyUI of this home: with
    the models of .dev, and nothing that was ever learned or painted."""
    comfyui, python = dev.setup()
    dev.link_models(MODELS, home)
    dev.use_home(home)
    with dev.server(comfyui, python) as running, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=dev.chromium(), args=FLAGS)
        try:
            page = browser.new_page(viewport=SCREEN)
            page.set_default_timeout(1000 * PATIENCE)
            process = psutil.Process(running.process.pid)
            yield Newcomer(Editor(page, running.url, dev.DEV / "screenshots", PATIENCE), home,
                           lambda: sum(process.cpu_times()[:2]))  # user and system
        finally:
            browser.close()


def table(stages: list[Stage]) -> str:
    """The stages as Markdown, with a sum where the first picture is there."""
    def row(name: str, stages: list[Stage]) -> list[str]:
        return [name, *(f"{sum(getattr(stage, what) for stage in stages):.0f}"
                        for what in ("clicks", "typed", "files", "seconds", "work"))]

    rows = []
    for place, stage in enumerate(stages, 1):
        rows.append(row(stage.name, [stage]))
        if stage.name == FIRST_PICTURE:
            rows.append(row("**until the first picture**", stages[:place]))
    return markdown(HEAD, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", default="inst-demo.safetensors", help="as the box lists it")
    parser.add_argument("--quality", default="quick", help="as the box lists it")
    parser.add_argument("--into", type=Path, metavar="PAGE", help="write the table there, between its marks")
    args = parser.parse_args()
    choices = {"checkpoint": args.checkpoint, "quality": args.quality}
    with tempfile.TemporaryDirectory() as folder, newcomer_in(Path(folder)) as newcomer:
        newcomer.arrive()
        _, renamed = newcomer.walk(PAINTING, PHOTOGRAPHS, choices)
        newcomer.delete(renamed)
    print(table(newcomer.stages))
    if args.into is not None:
        write_between(args.into, table(newcomer.stages), MARKS)


if __name__ == "__main__":
    main()
