"""Numbers as tables: for people, for papers, for programs."""
import json
from collections.abc import Mapping, Sequence

from .judge import MEASURES

Values = Mapping[str, float]

NOTE = ("v: lower is better, ^: higher is better. A copy of the content has perfect content numbers, a copy of the\n"
        "style perfect style numbers. A result says something where it beats the unrelated picture on content and\n"
        "'colours only' on style; the mirrored style shows how near the same textures come in another place. The\n"
        "leakage alarm is high when parts of the style picture itself turn up.")


def means(rows: Sequence[Values]) -> dict[str, float]:
    """Mean of each value over rows that have the same keys."""
    return {key: sum(row[key] for row in rows) / len(rows) for key in rows[0]}


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table whose columns also line up as plain text; the first column is text, the others numbers."""
    widths = [max(3, *(len(row[i]) for row in (head, *rows))) for i in range(len(head))]

    def line(cells: Sequence[str]) -> str:
        first, *others = (cell.ljust(w) if i == 0 else cell.rjust(w)
                          for i, (cell, w) in enumerate(zip(cells, widths, strict=True)))
        return "| " + " | ".join((first, *others)) + " |"

    rule = "| " + " | ".join("-" * w if i == 0 else "-" * (w - 1) + ":" for i, w in enumerate(widths)) + " |"
    return "\n".join([line(head), rule, *map(line, rows)])


def number(value: float) -> str:
    return f"{value:.3f}" if abs(value) < 100 else f"{value:.1f}"


def by_measure(columns: Mapping[str, Values]) -> str:
    """One row for each measure, one column for each method."""
    first = next(iter(columns.values()))
    rows = [[f"{m.title} {'^' if m.higher else 'v'} ({m.against})",
             *(number(values[m.key]) for values in columns.values())] for m in MEASURES if m.key in first]
    return markdown(["", *columns], rows)


def by_method(rows: Mapping[str, Values]) -> str:
    """One row for each method, one column for each measure; other keys than those of MEASURES come last."""
    first = next(iter(rows.values()))
    known = {m.key: f"{m.title} {'^' if m.higher else 'v'}" for m in MEASURES if m.key in first}
    titles = known | {key: key for key in first if key not in known}
    return markdown(["method", *titles.values()],
                    [[name, *(number(values[key]) for key in titles)] for name, values in rows.items()])


def report(results: Sequence[Values], trivial: Sequence[Mapping[str, Values]], extra: Values | None = None) -> str:
    """The table for people: mean of the results beside the means of the trivial ones, then each picture.

    Args:
        results: of each picture.
        trivial: of each picture {name: values}.
        extra: numbers of the whole set, such as ArtFID.
    """
    columns = {"result": means(results)} | {name: means([t[name] for t in trivial]) for name in trivial[0]}
    lines = [by_measure(columns), ""]
    if extra:
        lines += [f"{key} of the set: {number(value)}" for key, value in extra.items()] + [""]
    if len(results) > 1:
        lines += [by_method({f"picture {i}": values for i, values in enumerate(results, 1)}), ""]
    return "\n".join([*lines, NOTE])


def as_json(results: Sequence[Values], trivial: Sequence[Mapping[str, Values]], extra: Values | None = None) -> str:
    """The same for programs: {"mean", "pictures", "trivial", "set", "higher_is_better"}."""
    return json.dumps({
        "mean": means(results),
        "pictures": list(results),
        "trivial": {name: means([t[name] for t in trivial]) for name in trivial[0]},
        "set": dict(extra or {}),
        "higher_is_better": [m.key for m in MEASURES if m.higher and m.key in results[0]],
    }, indent=1)
