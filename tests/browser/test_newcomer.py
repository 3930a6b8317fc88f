"""A newcomer's way, walked with a small checkpoint: every click that the page asks for is possible and enough."""
from newcomer import BOX, Newcomer
from running import ROOT

SAMPLES = ROOT / "samples"
TINY = {"InST_LearnStyle": {"steps": 2, "resolution": 64}, "InST_Sample": {"steps": 2}, BOX: {"scale": 0.25}}


def test_a_newcomer_paints_and_learns_nothing_twice(editor, home, tmp_path):
    pictures = []
    for name in ("inst_painting_3.jpg", "inst_photograph_2.jpg", "inst_photograph.jpg"):
        pictures.append(tmp_path / f"my_{name}")  # files of one's own
        pictures[-1].write_bytes((SAMPLES / name).read_bytes())
    newcomer = Newcomer(editor, home)
    learned, renamed = newcomer.walk(pictures[0], (pictures[1], pictures[2]),
                                     {"checkpoint": "inst-small.safetensors", "quality": "quick"},
                                     lambda: editor.set_widgets(TINY))
    assert learned == "my_inst_painting_3_00001.safetensors"  # as the painting
    first = newcomer.stages[:5]  # up to the first result
    assert sum(s.clicks for s in first) <= 10 and sum(s.files for s in first) == 2
    assert not any(s.typed for s in first)
    assert not editor.errors
    newcomer.delete(renamed)
    editor.screenshot("newcomer")
