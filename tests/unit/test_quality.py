"""What tools/quality.py concludes from numbers."""
import sys
from pathlib import Path

import pytest
import torch

sys.path.append(str(Path(__file__).resolve().parents[2] / "tools"))
import quality  # noqa: E402


def measures(**more: float) -> dict[str, float]:
    return dict.fromkeys(("gram", "palette_lab", "lpips", "lpips_grey", "edge_correlation", "leakage"), 0.5) | more


@pytest.fixture()
def means():
    return {"copy of content": measures(gram=0.8, lpips=0.0), "copy of style": measures(gram=0.0, lpips=0.8),
            "colours only": measures(gram=0.5), "unrelated picture": measures(lpips=0.8),
            "InST": measures(gram=0.3, lpips=0.5), "embedding:": measures(gram=0.3, lpips=0.5),
            "no style": measures(gram=0.7), "wrong style": measures(gram=0.6)}


def failing(means, nearest=0.9, alarms=0.0) -> list[str]:
    return [text for text, ok in quality.promises(means, nearest, alarms) if not ok]


def test_a_good_model_keeps_every_promise(means):
    assert len(quality.promises(means, 0.9, 0.0)) == 8 and failing(means) == []


@pytest.mark.parametrize("name, change, said", [
    ("InST", {"gram": 0.45, "lpips": 0.5}, "times closer"), ("colours only", {"gram": 0.2}, "colour transfer"),
    ("InST", {"lpips": 0.75}, "unrelated"), ("no style", {"gram": 0.31}, "no style"),
    ("wrong style", {"gram": 0.31}, "wrong style"), ("embedding:", {"leakage": 0.4}, "embedding"),
])
def test_each_promise_can_fail(means, name, change, said):
    means[name] |= change
    assert any(said in text for text in failing(means))


def test_the_right_style_and_copied_content(means):
    assert any("nearest" in text for text in failing(means, nearest=0.79))
    assert any("leakage" in text for text in failing(means, alarms=0.01))
    assert quality.nearest_share(torch.tensor([[0.1, 0.2], [0.3, 0.2], [0.1, 0.5], [0.2, 0.4]])) == 0.75
    assert quality.alarm_share([0.1, 0.3, 0.0], [0.5, 0.5, 0.5]) == pytest.approx(1 / 3)


def test_the_report_has_a_line_for_each(means):
    shares = dict.fromkeys(means, 0.5)
    text = quality.report(means, shares, shares, dict.fromkeys(means, 2.0))
    assert all(f"| {name} |" in text for name in means)
    assert "FAILS" in text  # half of the results have alarms


def test_variants_change_what_exists():
    known = set(quality.asdict(quality.Variant()))
    assert all(set(changes) <= known for changes in quality.VARIANTS.values())
    assert quality.VARIANTS["InST"] == {}
