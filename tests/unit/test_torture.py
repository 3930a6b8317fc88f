"""A small part of tools/torture: damaged files and faults under saving."""
import mmap
import os
import sys

import numpy as np
import pytest
from torture import faults, files, modes


def test_damaged_files_are_read_or_refused_by_name(tmp_path):
    outcomes = list(files.run(range(600), tmp_path))
    assert [found for found in outcomes if found[2]] == []
    assert {outcome for _, outcome, _ in outcomes} == {"read", "refused"} and not list(tmp_path.iterdir())


def test_a_finding_can_be_made_again():
    assert [files.case(n) for n in (7, 8, 9)] == [files.case(n) for n in (7, 8, 9)]
    assert len({files.case(n).data for n in range(60)}) > 50


def raises(error):
    def read(path):
        raise error
    return read


def greedy(path):
    pages = mmap.mmap(-1, 2**28)  # from the system itself: what other tests freed cannot be taken again unseen
    for at in range(0, len(pages), mmap.PAGESIZE):
        pages[at] = 1
    return pages


def runs(path):
    os.system("true")


@pytest.mark.parametrize("read, found", [
    (raises(KeyError("x")), "KeyError"), (raises(ValueError("no name")), "does not name the file"),
    (raises(UnicodeDecodeError("utf-8", b"", 0, 1, "a.pt")), "UnicodeDecodeError"), (greedy, "took 2"),
    (runs, "ran something: os.system"), (lambda path: path.name, None), (raises(ValueError("a.pt is cut")), None)])
def test_every_kind_of_finding_is_found(tmp_path, read, found):
    if found == "took 2" and sys.platform != "linux":
        pytest.skip("memory is read from /proc")
    _, fault = files.judge(files.Case("a.pt", b"x", read), tmp_path, files.Watch())
    assert fault is None if found is None else found in fault


@pytest.mark.parametrize("fault", ["several_servers", "sudden_death", "moving_folder", "spoiled_file", "slow_disk"])
def test_no_style_is_lost(tmp_path, fault):
    few = {"several_servers": (2, 10), "sudden_death": (3,), "moving_folder": (20,), "spoiled_file": (0.3,),
           "slow_disk": (20,)}[fault]
    result = getattr(faults, fault)(tmp_path, *few)
    assert result.wrong == [] and (result.trials or "not tried" in result.note)


NOISY = np.random.default_rng(0).uniform(0, 255, (8, 8, 3))


@pytest.mark.parametrize("losses, picture, said, found", [
    ([0.3, 0.2], NOISY, "", ""), ([0.3, 0.3], NOISY, "", "does not fall"), ([0.3, 0.2], NOISY * 0, "", "shows nothing"),
    ([0.3, float("nan")], NOISY, "", "does not fall"), ([0.3, 0.2], 255 - NOISY, "", "levels in the mean"),
    ([], None, "InST_LearnStyle: model comes from a loader that cannot make it a second time.", ""),
    ([], None, "InST_LearnStyle: RuntimeError", "RuntimeError"), ([], None, "KSampler: x", "KSampler: x")])
def test_a_mode_that_learns_or_paints_otherwise_is_found(losses, picture, said, found):
    usual = modes.Outcome([0.3, 0.2], NOISY)
    wrong = modes.problem_of(modes.MODES[0], modes.Outcome(losses, picture, said), usual)
    assert found in wrong and bool(found) == bool(wrong)
