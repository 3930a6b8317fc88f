"""The real web front end in headless Chromium, with one server and one page for all tests.

Screenshots of every workflow are kept in ``.dev/screenshots`` for a person to look at.
"""
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "tests" / "server"))
import dev  # noqa: E402
from running import COMFYUI, MODELS, make_home, serving, write_style  # noqa: E402


def missing() -> str:
    """Why the browser tests cannot run, and how to change that."""
    if not (COMFYUI and MODELS):
        return "needs ComfyUI: run 'python3 tools/dev.py test'"
    if not dev.chromium():
        return f"needs Chromium: {dev.CHROMIUM_HINT}"
    try:
        import playwright  # noqa: F401
    except ImportError:
        return "needs playwright: run 'python3 tools/dev.py test', which installs it"
    return ""


def pytest_collection_modifyitems(items):
    reason = missing()
    for item in items:
        if reason and Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def home(tmp_path_factory) -> Path:
    folder = make_home(tmp_path_factory.mktemp("browser"))
    write_style(folder, "style_00001")
    write_style(folder, "style_00002")
    return folder


@pytest.fixture(scope="session")
def whole_session(home):
    """The editor; the page, the browser and the server end with the session."""
    from editor import FLAGS, SCREEN, Editor
    from playwright.sync_api import sync_playwright

    folder = dev.DEV / "screenshots"
    folder.mkdir(parents=True, exist_ok=True)
    with serving(home) as url, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=dev.chromium(), args=FLAGS)
        try:
            page = browser.new_page(viewport=SCREEN)
            page.set_default_timeout(180000)
            editor = Editor(page, url, folder)
            editor.open()
            yield editor
        finally:
            browser.close()


@pytest.fixture()
def editor(whole_session):
    """The editor with nothing held against it."""
    whole_session.errors.clear()
    return whole_session


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """A failed test leaves a screenshot."""
    report = yield
    if report.failed and "editor" in getattr(item, "funcargs", {}):
        item.funcargs["editor"].screenshot(f"failed_{item.name}")
        item.funcargs["editor"].stop()
    return report
