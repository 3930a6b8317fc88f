"""tools/bench_quality.py: what its table says of runs."""
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[2] / "tools"))
from bench_quality import HEAD, OURS, RELEASED, Kept, table_rows  # noqa: E402

PAINTING = Path("wave.png")


def learned(*losses: float) -> dict:
    checks = [[40 * i, float(i), loss] for i, loss in enumerate(losses)]
    return {"checks": checks, "kept": min(losses)}


def row(*ours: dict) -> dict:
    found, = table_rows({RELEASED: {PAINTING: [learned(1.5, 1.0), learned(1.5, 0.8)]}, OURS: {PAINTING: list(ours)}})
    return dict(zip(HEAD, found, strict=True))


def test_the_slowest_run_says_when_ours_is_as_good():
    found = row(learned(1.5, 0.9, 0.7), learned(1.5, 1.2, 1.0, 0.85))
    assert found["ours as good after"] == "120 samples"  # the goal is 0.9, the mean of 1.0 and 0.8
    assert found["released"] == "0.9000 ± 0.1414" and found["seeds"] == "2 / 2"


def test_a_run_that_never_gets_there_is_not_hidden():
    assert row(learned(1.5, 0.9), learned(1.5, 1.2))["ours as good after"] == "1 of 2 were"


def test_a_finished_run_is_not_made_again(tmp_path):
    Kept(tmp_path / "runs.jsonl").get(("a", 1), lambda: {"kept": 0.5})
    assert Kept(tmp_path / "runs.jsonl").get(("a", 1), lambda: 1 / 0)["kept"] == 0.5
