"""Styles with pseudo-words of their own for every stage of the noise."""
from dataclasses import replace

import pytest
import torch
from inst_pack.inst_core.learning import STOPPED, learn_style
from inst_pack.inst_core.staged_learning import learn_stages
from inst_pack.inst_core.stages import Stage, middle, times
from inst_pack.inst_core.strength import BORDER, Course, split_at
from inst_pack.inst_core.style import Style, load_style, save_style, to_bytes
from test_learning_loop import FAST, SCALE, Denoiser, Session, Stop, encoder, painting, stopping

LONG = replace(FAST, steps=150, rate=5e-2, batch=16, patience=None)


def target(sigma):
    return 4 * sigma**2


def learn(count: int, recipe=LONG, report=lambda step: None, rescue=lambda learned: None):
    def one(module, part, **more):
        return learn_style(Session(Denoiser(target=target)), module, painting(), part, **more)

    return learn_stages(one, [encoder() for _ in range(count)], recipe, report, lambda text: None, rescue)


# ---- learning ----

@pytest.mark.parametrize("strongest", [1.0, 0.6])
def test_every_stage_learns_what_is_right_at_its_own_levels(strongest):
    learned = learn(3, replace(LONG, strongest=strongest))
    for stage, (low, high) in zip(learned.stages, times(3, strongest), strict=True):
        level = 0.02 + 0.96 * (low + (torch.arange(1000) + 0.5) / 1000 * (high - low))
        says = stage.vectors["clip_l"].mean(0)[:4] / SCALE
        torch.testing.assert_close(says, target(level).mean().expand(4), atol=0.05, rtol=0.05)
    assert [s.start for s in learned.stages] == pytest.approx([0, 1 - 2 / 3 * strongest, 1 - strongest / 3])
    assert learned.vectors is learned.stages[middle(3)].vectors
    alone = learn_style(Session(Denoiser(target=target)), encoder(), painting(), replace(LONG, strongest=strongest))
    assert learned.kept < 0.5 * alone.kept and len(learned.losses) == 3 * LONG.steps


def test_the_stages_meet_and_the_first_has_the_most_noise():
    assert times(4) == [(0.75, 1.0), (0.5, 0.75), (0.25, 0.5), (0.0, 0.25)]
    assert [middle(n) for n in (1, 2, 3, 6)] == [0, 1, 1, 3]


def test_steps_are_counted_over_all_stages():
    seen = []
    learn(2, replace(FAST, steps=3), seen.append)
    assert [step.done for step in seen] == [1, 2, 3, 4, 5, 6] and {step.steps for step in seen} == {6}
    assert all(step.seconds_left >= 0 for step in seen)


@pytest.mark.parametrize("at, different", [(5, 0), (25, 1), (75, 3)])
def test_a_run_that_is_stopped_keeps_all_that_was_learned(at, different):
    """What was not reached says what came last."""
    kept = []
    with pytest.raises(Stop):
        learn(3, replace(FAST, steps=30, patience=None), stopping(at), kept.append)
    assert bool(kept) == (different > 0)  # nothing is known before the first check
    for learned in kept:
        assert len(learned.stages) == 3 and learned.ended == STOPPED
        assert len({tuple(stage.vectors["clip_l"].flatten().tolist()) for stage in learned.stages}) == different


def test_a_stage_without_gain_stays_where_it_began_and_none_at_all_is_an_error():
    with pytest.raises(ValueError, match="nothing was learned in any of the 2 stages"):
        learn(2, replace(FAST, steps=2, rate=1e-12))


# ---- applying ----

def test_pieces_of_a_course_are_cut_where_stages_begin():
    assert split_at(Course().pieces(1.0), [0.0]) == [(0.0, 1.0, 1.0, 0)]
    assert split_at(Course().pieces(0.5), [0.0, 0.5]) == [(0.0, 0.5 + BORDER, 0.5, 0), (0.5 + BORDER, 1.0, 0.5, 1)]
    found = split_at(Course(0.25, 0.75).pieces(1.0), [0.0, 0.5, 0.75])
    assert [round(begin, 2) for begin, *_ in found] == [0, 0.25, 0.5, 0.75]
    assert [(height, stage) for *_, height, stage in found] == [(0, 0), (1, 0), (1, 1), (0, 2)]
    assert all(a[1] == b[0] for a, b in zip(found, found[1:], strict=False))


# ---- files ----

def style(starts=(0.0, 0.25, 0.5)) -> Style:
    vectors = [{"clip_l": torch.full((2, 8), float(i)), "clip_g": torch.full((2, 4), float(i))}
               for i in range(len(starts))]
    return Style(vectors[middle(len(starts))], stages=tuple(map(Stage, starts, vectors)))


@pytest.mark.parametrize("with_metadata", [True, False])
def test_a_file_holds_all_stages_and_its_embedding_is_the_middle_one(tmp_path, with_metadata):
    saved = style()
    save_style(saved, tmp_path / "a.safetensors", with_metadata)
    found = load_style(tmp_path / "a.safetensors")
    assert [s.start for s in found.stages] == [0.0, 0.25, 0.5] and not found.extra
    for stage, expected in zip(found.stages, saved.stages, strict=True):
        assert all(torch.equal(stage.vectors[k], v) for k, v in expected.vectors.items())
    assert float(found.vectors["clip_l"][0, 0]) == 1.0 and "2 tokens in 3 stages" in found.describe()


def test_a_style_of_one_stage_is_the_file_that_it_was():
    plain = Style(style().vectors)
    assert b"stage" not in to_bytes(plain) and not plain.stages


@pytest.mark.parametrize("wrong, says", [
    (style((0.0, 0.5, 0.25)), "in order from 0"), (style((0.1, 0.5)), "in order from 0"), (style((0.0,)), "2 to 6"),
    (style(tuple(i / 7 for i in range(7))), "2 to 6"), (replace(style(), stages=(
        Stage(0.0, {"clip_l": torch.zeros(1, 8)}), Stage(0.5, style().vectors))), "other vectors"),
    (replace(style(), stages=(Stage(0.0, {}), Stage(0.5, style().vectors))), "no style vectors")])
def test_stages_that_cannot_be_are_neither_written_nor_read(tmp_path, wrong, says):
    with pytest.raises(ValueError, match=says):
        save_style(wrong, tmp_path / "a.safetensors")
    (tmp_path / "b.safetensors").write_bytes(to_bytes(wrong))
    with pytest.raises(ValueError, match="b.safetensors"):
        load_style(tmp_path / "b.safetensors")
