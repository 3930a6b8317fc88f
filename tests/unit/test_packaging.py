"""What users install."""
import re
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
MOST = 25e6  # bytes


def test_the_archive_is_small_and_holds_no_laboratory(archive):
    assert sum(path.stat().st_size for path in archive) < MOST
    places = {path.relative_to(ROOT).parts[0] for path in archive}
    assert {"__init__.py", "nodes", "inst_core", "web"} <= places and not {"tests", "tools", ".ci"} & places


def test_the_registry_finds_icon_and_banner_in_the_forms_it_asks_for():
    """Square, and 21:9 (docs.comfy.org/registry/specifications)."""
    branch = "https://raw.githubusercontent.com/comfyui-inst/ComfyUI-InST/main/"
    told = dict(re.findall(r'^(Icon|Banner) = "(.*)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE))
    sides = {name: Image.open(ROOT / url.removeprefix(branch)).size for name, url in told.items()}
    assert sides["Icon"] == (256, 256) and sides["Banner"][0] * 9 == sides["Banner"][1] * 21
