#!/usr/bin/env python3
"""Deliberate mistakes in the learning core, each of which a test must notice. Run by hand:

    .dev/venv/bin/python tests/mutants.py [words that a mutant's name must contain]

Every mistake is made in a copy of the pack, and the unit tests that should notice are run there. A mutant that survives
is printed, and the exit status says so.
"""
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
LOOP, BANK, OBJECTIVE, ENCODERS = "test_learning_loop.py", "test_bank.py", "test_objective.py", "test_encoders.py"
INVERSION, SAVING, RECIPES = "test_inversion.py", "test_saving.py", "test_recipes.py"


class Mutant(NamedTuple):
    """``old`` stands once in ``file``; ``new`` is the mistake; ``tests`` should notice."""

    name: str
    file: str
    old: str
    new: str
    tests: str


MUTANTS = [
    # Found alive in a review; those of parts that are gone are left out.
    Mutant("released levels rounded", "inversion.py", "int(strength * TRAIN_TIMESTEPS), int(strength * steps)",
           "round(strength * TRAIN_TIMESTEPS), round(strength * steps)", INVERSION),
    Mutant("released start not rescaled", "inversion.py", "return x_noised * ((sigma_start",
           "return x_noised + 0 * ((sigma_start",
           INVERSION),
    Mutant("weight decay on words", "encoders.py", '"weight_decay": 0.0', '"weight_decay": 0.3', ENCODERS),
    Mutant("first attention without its residual", "encoders.py", "x = x + self.attn1(x, patches)",
           "x = self.attn1(x, patches)", ENCODERS),
    Mutant("heads not in lengths of the word", "encoders.py",
           "head(x[0]) * self.words[k].norm(dim=-1, keepdim=True).detach()", "head(x[0])", ENCODERS),
    Mutant("dropout lowers the mean", "encoders.py", "x * keep.to(x) / (1 - PAPER_DROPOUT)", "x * keep.to(x)",
           ENCODERS),
    Mutant("numbers of files counted", "saving.py", "return max(numbers) + 1", "return len(numbers)", SAVING),
    Mutant("bank not shuffled", "bank.py", "order = torch.randperm(count, generator=generator)",
           "order = torch.arange(count)", BANK),
    Mutant("another held-out seed", "bank.py", "HELD_OUT_SEED = 0x1257", "HELD_OUT_SEED = 0x1258", BANK),
    Mutant("another share of memory", "batch_plan.py", "SHARE_OF_FREE_MEMORY = 0.8", "SHARE_OF_FREE_MEMORY = 0.9",
           LOOP),
    # The objective.
    Mutant("every model's error taken as eps", "objective.py", "torch.where(slope == 0, 0.0, 1 / slope)",
           "(1 / sigma).view(-1, 1, 1, 1)", LOOP),
    Mutant("errors not weighted by the model", "objective.py",
           "(denoised - clean) * torch.where(slope == 0, 0.0, 1 / slope)",
           "(denoised - clean)", OBJECTIVE),
    Mutant("dead outputs divide by zero", "objective.py", "torch.where(slope == 0, 0.0, 1 / slope)", "(1 / slope)",
           OBJECTIVE),
    Mutant("no gain counts as converged", "objective.py", "return now < held_out[0] and ", "return ", OBJECTIVE),
    # The samples.
    Mutant("held-out levels that are not learned", "bank.py", "_between(weakest, strongest, (torch.arange(HELD",
           "_between(weakest, 1.0, (torch.arange(HELD", LOOP),
    Mutant("learned levels that are not used", "bank.py", "time = _between(weakest, recipe.strongest, time)\n",
           "time = _between(weakest, 1.0, time)\n", LOOP),
    Mutant("levels of other stages learned", "bank.py", "time = _between(weakest, recipe.strongest, time)\n",
           "time = _between(0.0, recipe.strongest, time)\n", BANK),
    Mutant("prepared samples mixed up", "bank.py", "tuple(tensor[index.to(tensor.device)] for tensor in self.prepared)",
           "tuple(tensor[:len(index)] for tensor in self.prepared)", BANK),
    Mutant("strata not shuffled", "bank.py", "part[torch.randperm(len(part), generator=generator)]", "part", BANK),
    # The rate.
    Mutant("one rate for all vocabularies", "encoders.py", '"lr": rate * scale', '"lr": rate', LOOP),
    Mutant("rate stays", "recipes.py", "return 1 - step / self.steps if self.decay else 1.0", "return 1.0", LOOP),
    Mutant("paper's rate falls", "recipes.py", "rate=1e-4, decay=False", "rate=1e-4", RECIPES),
    # The loop.
    Mutant("the last is kept", "learning.py", "if loss <= self._kept or not self.recipe.keep_best:", "if True:", LOOP),
    Mutant("the best is kept though the last counts", "learning.py",
           "if loss <= self._kept or not self.recipe.keep_best:",
           "if loss <= self._kept:", LOOP),
    Mutant("nothing learned is a success", "learning.py", "    run.check_gained()\n", "", LOOP),
    Mutant("long runs are checked too rarely", "learning.py", "CHECK_SAMPLES // recipe.batch, done // 10)",
           "CHECK_SAMPLES // recipe.batch, recipe.steps // 10)", LOOP),
    Mutant("what was learned is lost", "learning.py", "            if run.gained:\n                rescue(",
           "            if False:\n                rescue(", LOOP),
    Mutant("interrupts are not rescued", "learning.py", "except BaseException as", "except Exception as", LOOP),
    Mutant("interrupts are swallowed", "learning.py", "            raise reason  #", "            pass  #", LOOP),
    Mutant("a failed rescue hides the reason", "learning.py", "        finally:\n            raise reason",
           "        finally:\n            pass\n        raise reason", LOOP),
    Mutant("the time limit is not kept", "learning.py", "last = run.out_of_time or step", "last = step", LOOP),
    Mutant("gradients of a failed try stay", "learning.py", "    encoder.zero_grad()  #", "    #", LOOP),
    Mutant("dropout is drawn anew", "learning.py", "torch.Generator().manual_seed(seed))\n    context",
           "torch.default_generator)\n    context",
           LOOP),
    Mutant("the rate is always blamed", "learning.py", "if not growth < GROWN:", "if True:", LOOP),
    Mutant("prepared samples do not count", "batch_plan.py", "(free - prepared * on_device)", "free", LOOP),
    Mutant("large banks stay on the device", "batch_plan.py", "prepared <= SHARE_FOR_BANK * free", "True", LOOP),
    # Half precision.
    Mutant("the loss scale forgets to recover", "loss_scale.py", "min(INITIAL, self.value * 2)", "self.value", LOOP),
    Mutant("the loss scale grows without end", "loss_scale.py", "min(INITIAL, self.value * 2)", "self.value * 2", LOOP),
    Mutant("an overflow does not restart the count", "loss_scale.py", "self.value, self._good = self.value / 2, 0",
           "self.value = self.value / 2", LOOP),
    Mutant("drivers' words for memory unknown", "memory.py", "in str(error).lower()", "in str(error)", LOOP),
    Mutant("error codes for memory unknown", "memory.py", "_CUDA_OUT_OF_MEMORY = 2", "_CUDA_OUT_OF_MEMORY = 3", LOOP),
]


def survives(mutant: Mutant, copy: Path) -> bool:
    """Whether the tests pass with this mistake in the copy."""
    path = copy / "inst_core" / mutant.file
    right = path.read_text(encoding="utf-8")
    if right.count(mutant.old) != 1:
        raise SystemExit(f"{mutant.name}: {mutant.old!r} stands {right.count(mutant.old)} times in {mutant.file}")
    path.write_text(right.replace(mutant.old, mutant.new), encoding="utf-8")
    try:
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-c", "tests/pytest.ini", "--rootdir=tests", "-q", "-x", "-n", "0", "-p",
             "no:cacheprovider", f"tests/unit/{mutant.tests}"], cwd=copy, capture_output=True, text=True, timeout=1800,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"})
    finally:
        path.write_text(right, encoding="utf-8")
    if done.returncode not in (0, 1):
        raise SystemExit(f"{mutant.name}: {done.stdout[-2000:]}{done.stderr[-2000:]}")
    return done.returncode == 0


def main() -> int:
    chosen = [m for m in MUTANTS if all(word in m.name for word in sys.argv[1:])]
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder, "pack")
        shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(".git", ".dev", "__pycache__", "workflows", "web"))
        alive = []
        for mutant in chosen:
            alive += [mutant.name] if survives(mutant, copy) else []
            print(f"{'SURVIVES' if mutant.name in alive else 'dies':8}  {mutant.name}", flush=True)
    print(f"{len(chosen) - len(alive)} of {len(chosen)} die")
    return 1 if alive else 0


if __name__ == "__main__":
    sys.exit(main())
