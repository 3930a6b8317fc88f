"""What users install."""
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
MOST = 25e6  # bytes


def test_the_archive_is_small_and_holds_no_laboratory(archive):
    assert sum(path.stat().st_size for path in archive) < MOST
    places = {path.relative_to(ROOT).parts[0] for path in archive}
    assert {"__init__.py", "nodes", "inst_core", "web"} <= places and not {"tests", "tools", ".ci"} & places
