"""What every training here shares: two optimizers, averaged weights, a progress line, and going on after any end."""
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import fmean

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from torchvision.transforms.functional import crop
from whole import save_training

WARM_UP = 100  # steps, after a start without an optimizer's memory
DECAY = 0.999  # of the averaged weights, at most
SAVE_SECONDS = 240.0
SAY_SECONDS = 20.0
FALLING = 1 / 3  # of the minutes, at the end, in which the rate falls to zero when it is meant to
LOWEST = 0.01  # of the rate, at the very end


def say(stage: str, line: str) -> None:
    print(f"[{stage}] {line}", flush=True)


# ---- parts of pictures ----

def random_corners(pictures: Sequence[Tensor], side: int, generator: torch.Generator) -> list[list[int]]:
    """(top, left) of a square of this side in each picture (..., H, W)."""
    room = torch.tensor([picture.shape[-2:] for picture in pictures]) - side + 1
    return (room * torch.rand(room.shape, generator=generator)).long().tolist()


def crops(pictures: Sequence[Tensor], corners: Sequence[Sequence[int]], side: int) -> Tensor:
    """(B, ..., side, side) of pictures (..., H, W), each from its own corner."""
    return torch.stack([crop(p, top, left, side, side) for p, (top, left) in zip(pictures, corners, strict=True)])


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

    @property
    def averaged(self) -> nn.Module:
        """The model with averaged weights; what is judged and kept."""
        return self.average.module

    def going(self, minutes: float, keep: Callable[[], None], finish: bool = False) -> Iterator[int]:
        """Step numbers until the time is over; what was done is saved now and then, and at the end.

        Args:
            keep: writes what others read of the averaged weights; called with every save.
            finish: the rate falls to zero in the last third of the time.
        """
        start, seconds = time.monotonic(), 60 * minutes
        saved = start
        while (spent := time.monotonic() - start) < seconds:
            self.generator.manual_seed(self.step)
            self._set_rates(spent / seconds if finish else 0.0)
            yield self.step
            if time.monotonic() - saved > SAVE_SECONDS:
                self.save()
                keep()
                saved = time.monotonic()
        self.save()
        keep()

    def _set_rates(self, spent: float) -> None:
        """Rises at first, falls when most of the time is spent (0 to 1)."""
        share = min(1.0, (self.step - self.began + 1) / WARM_UP) * min(1.0, max(LOWEST, (1 - spent) / FALLING))
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
        self.stage, self.since, self.noted = stage, time.monotonic(), []

    def note(self, step: int, **values: float) -> None:
        self.noted.append(values)
        if (seconds := time.monotonic() - self.since) > SAY_SECONDS:
            means = ", ".join(f"{name} {fmean(noted[name] for noted in self.noted):.4f}" for name in values)
            say(self.stage, f"step {step}: {means}; {len(self.noted) / seconds:.2f} steps/s")
            self.since, self.noted = time.monotonic(), []
