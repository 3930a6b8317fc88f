"""tools/bench/quality.py: what its table says of runs."""
from pathlib import Path

import pytest
from bench.quality import HEAD, MARKS, table_rows
from kept import Kept
from pages import write_between

PAINTING = Path("wave.png")


def learned(*losses: float) -> dict:
    checks = [[40 * i, float(i), loss] for i, loss in enumerate(losses)]
    return {"checks": checks, "kept": min(losses)}


def test_each_painting_and_encoder_has_a_row_with_its_own_numbers():
    runs = {"direct": {PAINTING: [learned(1.5, 0.9, 0.75), learned(1.5, 1.2)]},
            "paper": {PAINTING: [learned(2.0, 1.0, 1.1)]}}
    first, second = (dict(zip(HEAD, row, strict=True)) for row in table_rows(runs, {"direct": 4, "paper": 1}))
    assert first == {"painting": "wave", "encoder": "direct", "seeds": "2", "start": "1.5000 ± 0.0000",
                     "kept": "0.9750 ± 0.3182", "fell by": "35.00%", "steps": "20 10", "seconds": "2"}
    assert second["kept"] == "1.0000" and second["steps"] == "80" and second["fell by"] == "50.00%"


def test_a_finished_run_is_not_made_again(tmp_path):
    Kept(tmp_path / "runs.jsonl").get(("a", 1), lambda: {"kept": 0.5})
    assert Kept(tmp_path / "runs.jsonl").get(("a", 1), lambda: 1 / 0)["kept"] == 0.5


def test_the_table_takes_its_place_in_a_page(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(f"before\n{MARKS[0]}\nold\n{MARKS[1]}\nafter")
    for text in ("new", "newer"):
        write_between(page, text, MARKS)
    assert page.read_text() == f"before\n{MARKS[0]}\nnewer\n{MARKS[1]}\nafter"
    page.write_text("a page")
    with pytest.raises(SystemExit, match="has no <!-- quality: begin"):
        write_between(page, "new", MARKS)
