"""What users install."""
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MOST = 25e6  # bytes


def test_the_archive_is_small_and_holds_no_laboratory():
    """The files of the repository without those of ``.comfyignore``."""
    listed = subprocess.run(["git", "-C", ROOT, "ls-files", "-z"], capture_output=True, text=True, check=False).stdout
    left_out = tuple((ROOT / ".comfyignore").read_text().split())
    paths = [ROOT / name for name in listed.split("\0") if name and not name.startswith(left_out)]
    if not paths:
        pytest.skip("needs a git checkout")
    assert sum(path.stat().st_size for path in paths if path.is_file()) < MOST
    places = {path.relative_to(ROOT).parts[0] for path in paths}
    assert {"__init__.py", "nodes", "inst_core", "web"} <= places and not {"tests", "tools", ".ci"} & places
