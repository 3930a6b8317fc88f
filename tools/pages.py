"""Tables that commands write into pages of the documentation, between two marks."""
import sys
from pathlib import Path


def write_between(page: Path, text: str, marks: tuple[str, str]) -> None:
    """Puts ``text`` in the place of what stands between the marks."""
    before, _, rest = page.read_text(encoding="utf-8").partition(marks[0])
    _, found, after = rest.partition(marks[1])
    if not found:
        sys.exit(f"{page} has no {marks[0]} ... {marks[1]}.")
    page.write_text(f"{before}{marks[0]}\n{text}\n{marks[1]}{after}", encoding="utf-8")
