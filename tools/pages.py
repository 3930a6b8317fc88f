"""Tables that commands write into pages of the documentation, between two marks."""
import sys


def put_between(page: str, text: str, marks: tuple[str, str]) -> str:
    """The page with ``text`` in the place of what stands between its marks."""
    before, _, rest = page.partition(marks[0])
    _, found, after = rest.partition(marks[1])
    if not found:
        sys.exit(f"The page has no {marks[0]} ... {marks[1]}.")
    return f"{before}{marks[0]}\n{text}\n{marks[1]}{after}"
