"""A run that is stopped, wherever, leaves the best style so far, whole; one that is killed leaves no broken file."""
import multiprocessing
import os
import random
import signal
import sys
import time
from dataclasses import replace

import pytest
import torch
from inst_pack.inst_core.bank import held_out_bank
from inst_pack.inst_core.batch_plan import BatchPlan
from inst_pack.inst_core.learning import held_out_loss
from inst_pack.inst_core.saving import save_new
from inst_pack.inst_core.style import Style, load_style
from test_learning_loop import FAST, Session, Stop, encoder, learn, painting, stopping

POINTS = 20


def save(folder, learned, name: str = "wave") -> None:
    save_new(Style(learned.vectors, encoder_weights=learned.weights), name, [folder], True, [folder])


def test_cancel_at_random_points_keeps_the_best_so_far(tmp_path):
    draw, stopped = random.Random(0), 0
    for point in range(POINTS):
        folder, steps, seen = tmp_path / str(point), draw.randrange(1, 100), []
        with pytest.raises(Stop):
            learn(replace(FAST, patience=None, seed=point), report=stopping(steps),
                  rescue=lambda learned, folder=folder, seen=seen: (seen.append(learned), save(folder, learned)))
        assert bool(seen) == folder.exists() == (steps >= 10)  # the first check comes after ten steps
        for path in folder.glob("*.safetensors"):
            module = encoder()
            module.vectors["clip_l"].data = load_style(path).vectors["clip_l"]
            loss = held_out_loss(Session(), module, None, held_out_bank(painting().whole), BatchPlan(8))
            assert loss == pytest.approx(min(check.loss for check in seen[0].checks), rel=1e-6)
            stopped += 1
    assert stopped > POINTS / 2


def learn_and_save(folder) -> None:
    """For ever."""
    torch.set_num_threads(1)
    while True:
        save(folder, learn(replace(FAST, steps=2, rate=1e-3)))


@pytest.mark.skipif(sys.platform != "linux", reason="forks")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_killed_at_random_points_no_broken_file_is_left(tmp_path):
    draw, context = random.Random(1), multiprocessing.get_context("fork")
    for _ in range(POINTS):
        child = context.Process(target=learn_and_save, args=(tmp_path,))
        before = len(list(tmp_path.glob("*.safetensors")))
        child.start()
        while len(list(tmp_path.glob("*.safetensors"))) == before and child.is_alive():
            time.sleep(0.001)  # it works by now
        time.sleep(draw.random() * 0.03)
        os.kill(child.pid, signal.SIGKILL)
        child.join()
        assert child.exitcode == -signal.SIGKILL
    files = list(tmp_path.glob("*.safetensors"))
    assert len(files) >= POINTS and all(load_style(path).tokens == 2 for path in files)
