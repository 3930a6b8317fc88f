"""Every refusal says what came and what to do: a walk over all ``raise`` of the product.

A message has to name what it is about (a socket, a file, a value: something filled in, or a socket's name), and has to
say what to do or what is expected.
"""
import ast
import builtins
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted([*(ROOT / "inst_core").rglob("*.py"), *(ROOT / "nodes").rglob("*.py"), ROOT / "__init__.py"])

# What to do, as a sentence's first word or after "or", "and", "to" and commas; or what is expected.
VERBS = ("accept allow check choose compare connect copy download encode expect fetch give install keep learn leave "
         "load lower make press put raise reinstall remove rename restart run save scale select send set start take "
         "train try turn update use write")
DOES = re.compile(rf"(?:^|[.:;,]\s+|\b(?:or|and|to|then|otherwise)\s+)(?:{'|'.join(VERBS.split())})\b"
                  r"|\bexpected\b|\bneeds?\b|\bmust\b|\bat (?:least|most)\b|\btakes?\b", re.IGNORECASE)
SOCKETS = re.compile(r"\b(image|latent|model|clip|vae|style|content|result|noise|sigma|name|prompt|text|strength|step|"
                     r"painting|picture|file|grid|control_type)s?\b", re.IGNORECASE)

# (file, words of the message or name of the exception): why the rule does not bind it.
EXCEPTIONS = {
    ("inst_core/encoders.py", "TypeError"): "for developers: an abstract class was made",
    ("inst_core/style.py", "{} is a pickle"): "sends the reader to another node, in a sentence of its own kind",
    ("inst_core/methods/__init__.py", "The files are closest to"): "what to do is in the problems that are filled in",
    ("inst_core/official.py", "{} was not imported: {}"): "the first half of a sentence, what is wrong is filled in",
    ("inst_core/state_dicts.py", "{} is not opened: {}"): "the same",
    ("inst_core/whole.py", "NotADirectoryError"): "as the system would say it; whoever saves goes on in another folder",
}


class Site(NamedTuple):
    """One ``raise``. ``message`` holds ``{}`` where something is filled in; None where it is not written there."""

    file: str
    line: int
    kind: str
    message: str | None


def text_of(node: ast.expr, constants: dict[str, ast.expr]) -> str | None:
    match node:
        case ast.Constant(value=str() as text):
            return text
        case ast.JoinedStr(values=parts):
            return "".join(text_of(part, constants) or "{}" for part in parts)
        case ast.FormattedValue():
            return "{}"
        case ast.BinOp(left=left, right=right):
            return (text_of(left, constants) or "{}") + (text_of(right, constants) or "{}")
        case ast.IfExp(body=body):
            return text_of(body, constants)
        case ast.Name(id=name) if name in constants:
            return text_of(constants[name], constants)
    return None


def sites(path: Path) -> Iterator[Site]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    constants = {t.id: n.value for n in ast.walk(tree) if isinstance(n, ast.Assign) for t in n.targets
                 if isinstance(t, ast.Name)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
            kind = ast.unparse(node.exc.func)
            message = text_of(node.exc.args[0], constants) if node.exc.args else None
            yield Site(str(path.relative_to(ROOT)), node.lineno, kind, message)


def fault(site: Site) -> str | None:
    """What the rule says against a message."""
    inner = site.kind.endswith("Refused")  # the half of a sentence that whoever opens the file begins with its name
    if not (inner or site.kind == "ValueError" or site.kind.endswith("Error") and not hasattr(builtins, site.kind)):
        return f"raises {site.kind}; bad input is a ValueError"
    if site.message is None:
        return "its message is not written where it is raised"
    if not inner and "{}" not in site.message and not SOCKETS.search(site.message):
        return "names neither a socket nor a value"
    if not DOES.search(site.message):
        return "says neither what is expected nor what to do"
    return None


def excused(site: Site) -> bool:
    return any(file == site.file.replace("\\", "/") and (words == site.kind or (site.message or "").startswith(words))
               for file, words in EXCEPTIONS)


def test_every_refusal_names_what_came_and_what_to_do():
    faults = [f"{site.file}:{site.line}: {found}: {site.message}" for path in FILES for site in sites(path)
              if not excused(site) and (found := fault(site))]
    assert not faults, "\n".join(faults)


def test_the_walk_sees_the_product():
    assert len([site for path in FILES for site in sites(path)]) > 80


def test_no_exception_is_kept_for_nothing():
    found = [site for path in FILES for site in sites(path)]
    assert not [file for file, words in EXCEPTIONS
                if not any(file == s.file and (words == s.kind or (s.message or "").startswith(words)) for s in found)]


@pytest.mark.parametrize("kind, message, wrong", [
    ("ValueError", "The grid has no picture. Connect at least one.", None),
    ("ValueError", "{} is damaged.", "says neither"),
    ("ValueError", "That went wrong. Use another one.", "names neither"),
    ("ValueError", None, "not written"),
    ("RuntimeError", "strength is {}. Use 1.", "bad input is a ValueError"),
])
def test_the_rule(kind, message, wrong):
    found = fault(Site("file.py", 1, kind, message))
    assert found is None if wrong is None else wrong in found
