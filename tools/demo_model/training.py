"""What every training here shares: two optimizers, averaged weights, a progress line, and going on after any end."""
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from whole import save_training

WARM_UP = 100  # steps, after a start without an optimizer's memory
DECAY = 0.999  # of the averaged weights, at most
SAVE_SECONDS = 240.0
SAY_SECONDS = 20.0
FALLING = 1 / 3  # of the minutes, at the end, in which the rate falls to zero when it is meant to
LOWEST = 0.01  # of the rate, at the very end


def say(stage: str, line: str) -> None:
    print(f"[{stage}] {line}", flush=True)


# ---- optimizers ----

def as_matrix(kernel: Tensor) -> Tensor:
    """(outputs, inputs x height x width) of the same memory; Muon does not care about the order of columns."""
    if kernel.ndim == 4 and kernel.is_contiguous(memory_format=torch.channels_last):
        kernel = kernel.permute(0, 2, 3, 1)
    return kernel.view(len(kernel), -1)


class MatrixMuon(torch.optim.Muon):
    """Muon (Jordan et al. 2024) for convolutions as well, which it sees as matrices; updates as large as AdamW's
    (Liu et al., Muon is Scalable for LLM Training, 2025, section 2.2)."""

    def __init__(self, weights: list[nn.Parameter], rate: float, weight_decay: float = 0.01):
        self.weights = weights
        self.matrices = [nn.Parameter(as_matrix(w.detach())) for w in weights]
        super().__init__(self.matrices, lr=rate, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw")

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        for weight, matrix in zip(self.weights, self.matrices, strict=True):
            matrix.grad = None if weight.grad is None else as_matrix(torch.empty_like(weight).copy_(weight.grad))
        super().step(closure)


def split(model: nn.Module, others: Callable[[str, nn.Parameter], bool]) -> tuple[list, list]:
    """(matrices for Muon, the rest): vectors, and those matrices that ``others`` names, are not for Muon."""
    matrices, rest = [], []
    for name, weight in model.named_parameters():
        (rest if weight.ndim < 2 or others(name, weight) else matrices).append(weight)
    return matrices, rest


# ---- a training ----

def warmed(averaged: list[Tensor], current: list[Tensor], count: Tensor) -> None:
    """Exponential average that forgets its beginning (Karras et al. 2024 call the reason; the formula is TensorFlow's):
    decay (1 + n) / (10 + n), at most DECAY."""
    n = float(count)
    torch._foreach_lerp_(averaged, current, 1 - min(DECAY, (1 + n) / (10 + n)))


class Training:
    """A model on its way.

    Every random number of a step comes from ``generator``, which is seeded by the step: a training that was interrupted
    anywhere computes the same as one that was not.

    Attributes:
        step: steps behind it, over all calls.
        average: the averaged model; what is judged and kept.
    """

    def __init__(self, stage: str, path: Path, model: nn.Module, rates: tuple[float, float],
                 not_for_muon: Callable[[str, nn.Parameter], bool], step: int = 0):
        self.stage, self.path, self.model = stage, path, model
        matrices, rest = split(model, not_for_muon)
        self.rates = rates
        self.optimizers = [MatrixMuon(matrices, rates[0]),
                           torch.optim.AdamW(rest, rates[1], betas=(0.9, 0.99), weight_decay=0)]
        self.average = AveragedModel(model, multi_avg_fn=warmed)
        self.step = self.began = step
        self.average.n_averaged.fill_(step + 1)  # so that what it starts with counts
        self.generator = torch.Generator()
        self.fraction = 0.0
        if path.exists():
            self._resume()

    def _resume(self) -> None:
        state = torch.load(self.path, map_location="cpu", weights_only=True)
        self.model.load_state_dict(state["model"])
        self.average.load_state_dict(state["average"])
        for optimizer, kept in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(kept)
        self.step, self.began = state["step"], state["began"]
        say(self.stage, f"goes on at step {self.step}")

    def save(self) -> None:
        save_training(self.path, {"model": self.model.state_dict(), "average": self.average.state_dict(),
                                  "optimizers": [o.state_dict() for o in self.optimizers], "step": self.step,
                                  "began": self.began})

    def averaged(self) -> dict[str, Tensor]:
        """A copy of the averaged weights."""
        return {k: v.detach().clone() for k, v in self.average.module.state_dict().items()}

    def going(self, minutes: float, keep: Callable[[], None], finish: bool = False, steps: int | None = None,
              ) -> Iterator[int]:
        """Step numbers until the time is over; what was done is saved now and then, and at the end.

        Args:
            keep: writes what others read of the averaged weights; called with every save.
            finish: the rate falls to zero in the last third of the time.
            steps: end after so many steps of this call, if that comes first.
        """
        start = saved = time.monotonic()
        last = None if steps is None else self.step + steps
        while (spent := time.monotonic() - start) < 60 * minutes and self.step != last:
            self.fraction = max(spent / (60 * minutes), 0 if last is None else 1 - (last - self.step) / steps)
            self.generator.manual_seed(self.step)
            self._set_rates(finish)
            yield self.step
            if time.monotonic() - saved > SAVE_SECONDS:
                self.save()
                keep()
                saved = time.monotonic()
        self.save()
        keep()

    def _set_rates(self, finish: bool) -> None:
        share = min(1.0, (self.step - self.began + 1) / WARM_UP)
        if finish:
            share *= min(1.0, max(LOWEST, (1 - self.fraction) / FALLING))
        for optimizer, rate in zip(self.optimizers, self.rates, strict=True):
            for group in optimizer.param_groups:
                group["lr"] = share * rate

    def learn(self, loss: Tensor) -> None:
        """One step downhill."""
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
        self.model.zero_grad(set_to_none=True)
        self.average.update_parameters(self.model)
        self.step += 1


class Progress:
    """Says now and then how far a training is: means of what was noted since."""

    def __init__(self, stage: str):
        self.stage, self.start = stage, time.monotonic()
        self._forget()

    def _forget(self) -> None:
        self.since, self.samples, self.sums, self.count = time.monotonic(), 0, {}, 0

    def note(self, step: int, samples: int, values: Mapping[str, float]) -> None:
        self.samples, self.count = self.samples + samples, self.count + 1
        self.sums = {k: self.sums.get(k, 0.0) + v for k, v in values.items()}
        now = time.monotonic()
        if now - self.since > SAY_SECONDS:
            means = ", ".join(f"{k} {v / self.count:.4f}" for k, v in self.sums.items())
            say(self.stage, f"{(now - self.start) / 60:.1f} min, step {step}: {means}; "
                            f"{self.samples / (now - self.since):.1f} samples/s")
            self._forget()


@contextmanager
def weights_of(model: nn.Module, weights: Mapping[str, Tensor]) -> Iterator[None]:
    """Other weights for the length of a block."""
    own = {k: v.detach().clone() for k, v in model.state_dict().items()}
    model.load_state_dict(weights)
    try:
        yield
    finally:
        model.load_state_dict(own)
