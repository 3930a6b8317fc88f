"""Feed-forward methods against their official arithmetic: seconds and peak memory at several picture sizes.

'official' computes what the released code computes: whole attention matrices, whole feature maps, no tiles.  Weights
are random in the official shapes, since cost does not depend on their values.  Every number comes from a fresh process;
the two of a row run one after the other.  With OMP_NUM_THREADS=1 on a CPU, seconds are of processor time, which other
work on the machine does not change.
"""
import argparse
import math
import multiprocessing
import os
import sys
from concurrent.futures import ProcessPoolExecutor
from itertools import product
from pathlib import Path
from typing import NamedTuple

sys.path.append(str(Path(__file__).resolve().parents[2]))

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F

from bench.costs import PeakMemory, measure_seconds, name_of
from inst_core.memory import is_out_of_memory
from inst_core.methods import RECIPES, Limits, StyleTransferModel, adaattn, stytr2
from inst_core.methods.vgg import VGG
from inst_core.metrics.tables import markdown

METHODS = ("StyTr2", "AdaAttN", "CAST")
SIZES = (256, 512, 1024)
OURS, OFFICIAL = "ours", "official"
UNLIMITED = Limits(entries=2**62, tile=2**20)
WARM_UP = 64  # px
SHARE = 0.8  # of the memory that is free, which a run may take
WORKER_SECONDS = 1200


class Cost(NamedTuple):
    """Of one picture. ``seconds`` is None where it did not fit into ``bytes`` of memory."""

    seconds: float | None
    bytes: int


# ---- official arithmetic ----

def materialised_attention(self: stytr2.Attention, query: Tensor, key: Tensor, value: Tensor, limits: Limits) -> Tensor:
    """StyTr2's: softmax(Q K^T / sqrt(d)) as a matrix for all heads, then times V."""
    weights, biases = self.in_proj_weight.chunk(3), self.in_proj_bias.chunk(3)
    q, k, v = (rearrange(F.linear(x, w, b), "b n (h d) -> (b h) n d", h=stytr2.HEADS)
               for x, w, b in zip((query, key, value), weights, biases, strict=True))
    attention = torch.bmm(q * q.shape[-1] ** -0.5, k.mT).softmax(-1)
    return self.out_proj(rearrange(torch.bmm(attention, v), "(b h) n d -> b n (h d)", h=stytr2.HEADS))


def whole_features(net: VGG, picture: Tensor, levels: int, limits: Limits) -> tuple[Tensor, ...]:
    """AdaAttN's: all levels at their full resolution."""
    names = [f"relu{number}_1" for number in range(1, levels + 1)]
    found = net(net.normalise(picture), names)
    return tuple(found[name] for name in names)


def use_official_arithmetic() -> None:
    """In this process, from now on."""
    stytr2.Attention.forward = materialised_attention
    adaattn.encode = whole_features


# ---- one measurement, in a process of its own ----

def random_model(name: str) -> StyleTransferModel:
    """A method with random weights in the shapes of its released files."""
    generator = torch.Generator().manual_seed(0)

    def random_tensor(key: str, shape: tuple[int, ...]) -> Tensor:
        if len(shape) == 1:  # biases, and the gains of normalisation layers
            return torch.full(shape, float(key.endswith("weight")))
        return torch.randn(shape, generator=generator) / math.sqrt(math.prod(shape[1:]))

    recipe = next(recipe for recipe in RECIPES if recipe.name == name)
    return recipe.build(*(part.load({k: random_tensor(k, s) for k, s in part.shapes().items()})
                          for part in recipe.parts))


def free_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def limit_memory(device: torch.device, limit: int) -> None:
    """Taking more raises an error here, instead of pushing everyone else's work out of memory."""
    if device.type == "cuda":
        torch.cuda.set_per_process_memory_fraction(limit / torch.cuda.get_device_properties(device).total_memory)
    elif sys.platform == "linux":
        import resource

        resource.setrlimit(resource.RLIMIT_DATA, (limit, resource.getrlimit(resource.RLIMIT_DATA)[1]))


@torch.inference_mode()
def measure(name: str, size: int, kind: str, device: torch.device, repeats: int) -> Cost:
    """The fastest of some runs, and the peak memory of the first, without the weights and the pictures."""
    limit = int(free_bytes(device) * SHARE)
    limit_memory(device, limit)
    if kind == OFFICIAL:
        use_official_arithmetic()
    limits = UNLIMITED if kind == OFFICIAL else Limits()
    model, generator = random_model(name).to(device), torch.Generator().manual_seed(0)

    def paint(side: int) -> float:
        content, style = (torch.rand(1, 3, side, side, generator=generator).to(device) for _ in range(2))
        return measure_seconds(lambda: model.stylize(content, style, limits=limits), device)

    paint(WARM_UP)
    try:
        with PeakMemory(device) as memory:
            seconds = paint(size)
        return Cost(min([seconds, *(paint(size) for _ in range(repeats - 1))]), memory.bytes or 0)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        return Cost(None, limit)


def measured_apart(*of: object) -> Cost:
    """``measure`` in a fresh process."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(measure, *of).result(WORKER_SECONDS)


# ---- the table ----

def row(name: str, size: int, ours: Cost, official: Cost) -> list[str]:
    """How much faster and smaller ours is; where the official one did not fit, its memory is a lower bound."""
    if ours.seconds is None:
        return [name, str(size), "does not fit", *[""] * 5]
    seconds, faster, bound = "did not fit", "", ">"
    if official.seconds is not None:
        seconds, faster, bound = f"{official.seconds:.2f}", f"{official.seconds / ours.seconds:.2f}x", ""
    return [name, str(size), f"{ours.seconds:.2f}", seconds, faster, f"{ours.bytes / 2**20:.0f}",
            f"{bound}{official.bytes / 2**20:.0f}", f"{bound}{official.bytes / max(1, ours.bytes):.1f}x"]


HEAD = ("method", "px", "ours, s", "official, s", "faster", "ours, MiB", "official, MiB", "smaller")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--sizes", nargs="+", type=int, default=list(SIZES), help="sides in pixels")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--repeats", type=int, default=3, help="runs up to 512 px, of which the fastest counts")


def main(args: argparse.Namespace) -> int:
    done, device = [], torch.device(args.device)
    for name, size in product(args.methods, args.sizes):
        repeats = args.repeats if size <= 512 else 1
        done.append(row(name, size, *(measured_apart(name, size, kind, device, repeats) for kind in (OURS, OFFICIAL))))
        print("[benchmark]", *done[-1], file=sys.stderr, flush=True)
    print(f"{name_of(device)}\n")
    print(markdown(HEAD, done))
    return 0
