"""Labels in any script: the letters that are drawn are those that were written, wherever a font has them."""
import logging
from pathlib import Path

import pytest
import torch
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from inst_pack.inst_core import lettering as module
from inst_pack.inst_core.grid import grid
from inst_pack.inst_core.lettering import Lettering, plain, system_fonts

SIZE = 20


def write_font(path: Path, letters: str) -> None:
    """A font in which the k-th letter is a bar of k + 1 tenths of the height; what is missing is a hollow box."""
    def bar(top: int, hollow: bool = False):
        pen = TTGlyphPen(None)
        corners = [[(50, 0), (50, top), (450, top), (450, 0)]]
        corners += [[(100, 50), (400, 50), (400, top - 50), (100, top - 50)]] if hollow else []
        for contour in corners:
            pen.moveTo(contour[0])
            for point in contour[1:]:
                pen.lineTo(point)
            pen.closePath()
        return pen.glyph()

    names = [f"letter{i}" for i in range(len(letters))]
    builder = FontBuilder(1000, isTTF=True)
    builder.setupGlyphOrder([".notdef", *names])
    builder.setupCharacterMap({ord(letter): name for letter, name in zip(letters, names, strict=True)})
    builder.setupGlyf({".notdef": bar(700, hollow=True)}
                      | {name: bar(100 * (i + 1)) for i, name in enumerate(names)})
    builder.setupHorizontalMetrics({name: (500, 50) for name in [".notdef", *names]})
    builder.setupHorizontalHeader(ascent=800, descent=-200)
    builder.setupNameTable({"familyName": path.stem, "styleName": "Regular"})
    builder.setupOS2(sTypoAscender=800, sTypoDescender=-200)
    builder.setupPost()
    path.parent.mkdir(parents=True, exist_ok=True)
    builder.save(path)


@pytest.fixture()
def fonts(tmp_path, monkeypatch):
    """Adds a font to a system that has none: ``fonts("name", "letters")``."""
    monkeypatch.setattr(module.sys, "platform", "linux")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "own"))
    monkeypatch.setenv("XDG_DATA_DIRS", str(tmp_path / "shared"))
    return lambda name, letters: write_font(tmp_path / "shared" / "fonts" / "kind" / f"{name}.ttf", letters)


def heights(text: str, lettering: Lettering | None = None) -> list[int]:
    """How high each letter of a drawn label is, in pixels; letters of the test fonts stand apart."""
    dark = (lettering or Lettering(SIZE)).draw(text, 400)[0] < 0.5
    columns = dark.any(0)
    edges = torch.diff(torch.cat([torch.zeros(1), columns.float(), torch.zeros(1)]))
    starts, ends = (edges > 0).nonzero().flatten().tolist(), (edges < 0).nonzero().flatten().tolist()
    return [int(dark[:, a:b].any(1).sum()) for a, b in zip(starts, ends, strict=True)]


def test_letters_are_whole_and_long_labels_end_in_dots():
    lettering = Lettering(24)
    drawn = lettering.draw("Agjpq|", 200) < 0.5
    assert not drawn[0, 0].any() and not drawn[0, -1].any() and drawn.any()
    assert lettering.shortened("a very long label indeed", 80).endswith("...")
    assert lettering.width(lettering.shortened("a very long label indeed", 80)) <= 80
    assert lettering.shortened("short", 200) == "short"


def test_a_label_is_measured_a_few_times_however_long_it_is(monkeypatch):
    lettering, measure, asked = Lettering(24), Lettering.width, []
    monkeypatch.setattr(Lettering, "width", lambda self, text: asked.append(text) or measure(self, text))
    shown = lettering.shortened("x" * 5000, 80)
    assert len(asked) < 20 and measure(lettering, shown) <= 80 < measure(lettering, f"x{shown}")


@pytest.mark.parametrize("script", ["内容风格", "Привет", "Ωμέγ", "სტილი", "화풍", "Größe", "–—"])
def test_any_script_is_drawn_in_a_font_that_has_it(fonts, script):
    letters = "".join(dict.fromkeys(script))
    fonts("other", "abc")
    fonts("fitting", letters)
    lettering = Lettering(SIZE)
    found = heights(script, lettering)
    assert found == pytest.approx([SIZE * (letters.index(c) + 1) / 10 for c in script], abs=1)
    assert not lettering.replaced


def test_a_label_in_two_scripts_takes_a_font_for_each(fonts, caplog):
    fonts("one", "内")
    fonts("two", "ЖЗ")
    lettering = Lettering(SIZE)
    assert heights("内ЗЖ", lettering) == pytest.approx([2, 4, 2], abs=1)
    assert lettering.width("内ЗЖ") == pytest.approx(3 * SIZE / 2, abs=2)
    grid([[torch.zeros(3, 40, 40)]], columns=["内З"])
    assert "no font" not in caplog.text


def test_what_no_font_has_is_replaced_and_said(fonts, caplog):
    fonts("other", "Ж")
    figure = grid([[torch.zeros(3, 64, 64)]], columns=["café 内"], height=64)
    assert "no font of this system has the letters é内 of the labels" in caplog.text
    caplog.clear()
    assert torch.equal(figure, grid([[torch.zeros(3, 64, 64)]], columns=["cafe ?"], height=64))
    assert not [r for r in caplog.records if r.levelno >= logging.WARNING]


def test_english_looks_the_same_whatever_fonts_there_are(fonts):
    before = Lettering(SIZE).draw("InST, StyTr2", 200)
    fonts("dejavusans", "InSTtyr2, ")
    assert torch.equal(before, Lettering(SIZE).draw("InST, StyTr2", 200))


def test_broken_fonts_and_fonts_of_boxes_are_passed_over(fonts, tmp_path):
    fonts("LastResort", "内")
    fonts("whole", "Ж内")
    for name in ("a.ttf", "b.otf", "c.ttc", "d.txt"):
        (tmp_path / "shared" / "fonts" / name).write_bytes(b"\0\1\0\0 no font")
    assert [p.name for p in system_fonts()] == ["a.ttf", "b.otf", "c.ttc", "whole.ttf"]
    assert heights("内") == pytest.approx([4], abs=1)


def test_plain_faces_with_many_scripts_come_first(fonts):
    for name in ("zzz", "NotoSans-Regular", "Another-Bold", "Another", "DejaVuSans"):
        fonts(name, "Ж")
    assert [p.stem for p in system_fonts()] == ["DejaVuSans", "NotoSans-Regular", "Another", "zzz", "Another-Bold"]


@pytest.mark.parametrize("system", ["win32", "darwin", "linux"])
def test_every_system_has_folders(monkeypatch, system):
    monkeypatch.setattr(module.sys, "platform", system)
    assert len(module.font_folders()) >= 2


@pytest.mark.parametrize("text, expected", [
    ("StyTr²", "StyTr2"), ("café", "cafe"), ("abc", "abc"), ("测", "?"), ("Größe", "Grosse"),
    ("a – b", "a - b"), ("Łódź, Sørøya", "Lodz, Soroya"), ("„A“", '"A"'),
])
def test_spelling_in_the_letters_of_english(text, expected):
    assert plain(text) == expected
