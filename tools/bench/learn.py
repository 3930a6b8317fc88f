"""What learning a style costs: the released recipe, ours, and the device's own limit, side by side in one run.

Weights are random in the real sizes, since cost does not depend on their values; --checkpoint takes any file.  A few
steps of each recipe are timed after one that warms up, and totals are extrapolated from them: the table says how many.
FLOPs are counted by torch, one multiply-add as two.
"""
import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from bench.costs import PeakMemory, measure_seconds, name_of

RELEASED_SAMPLES = 6100
MATRIX = {"cuda": 8192, "cpu": 2048}  # side of the matrices whose product is the device's limit
SIZES = {"sd15": 512, "sdxl": 1024}
PIXELS = 512  # for a checkpoint of one's own
PROMPT = "*"


@dataclass(frozen=True)
class Cost:
    """Of one recipe.

    Attributes:
        dtype: of the denoiser.
        flops: of one sample.
        per_sample: seconds.
        bytes: peak memory of a step, above weights, on a GPU. (What a process takes on a CPU depends on what it had
            before.)
        weights: bytes of weights that are on the device at once.
        fixed: seconds for the crops, for making the model again, for what is computed once and for held-out losses.
        samples: of a whole run.
        kept: bytes that backward keeps of one sample; None where they are recomputed.
    """

    name: str
    dtype: torch.dtype
    flops: float
    per_sample: float
    bytes: int | None
    weights: int
    fixed: float = 0.0
    samples: int = RELEASED_SAMPLES
    kept: int | None = None

    @property
    def total(self) -> float:
        return self.fixed + self.samples * self.per_sample


def matrix_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Floating-point operations a second in the product of two large matrices: what the device can do at best."""
    side = MATRIX[device.type]
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    a @ b
    return 2 * side**3 / min(measure_seconds(lambda: a @ b, device) for _ in range(10))


def load_checkpoint(path: Path, dtype: torch.dtype | None):
    """(MODEL, CLIP, VAE) by the function behind Load Checkpoint; ``dtype`` None leaves the choice to ComfyUI."""
    import comfy.sd
    import comfy.utils

    options = {} if dtype is None else {"dtype": dtype}
    with torch.inference_mode():
        model, clip, vae = comfy.sd.load_checkpoint_guess_config(
            str(path), embedding_directory=[""], model_options=options, te_model_options=options)[:3]
        if dtype is not None:
            vae.vae_dtype = dtype
            vae.first_stage_model.to(dtype)
    return model, clip, vae


def picture(pixels: int) -> Tensor:
    return torch.rand(1, pixels, pixels, 3, generator=torch.Generator().manual_seed(0))


def time_step(step: Callable[[], object], samples: int, repeats: int, device: torch.device) -> dict:
    """A first step, one that is counted, and some that are timed; ``samples`` are in each."""
    step()
    with PeakMemory(device) as memory, FlopCounterMode(display=False) as counter:
        step()
    spent = measure_seconds(step, device, repeats)
    return {"flops": counter.get_total_flops() / samples, "per_sample": spent / samples,
            "bytes": memory.bytes if device.type == "cuda" else None}


def count_weights(session) -> int:
    """Bytes of weights that are on the device at once."""
    sizes = [patcher.model_size() for patcher in session.residents.patchers]
    return sum(sizes) if session.residents.together else max(sizes)


def measure_released(path: Path, vision_file: Path, pixels: int, repeats: int) -> Cost:
    """The released recipe: float32, batch 1, gradient checkpointing, uniform times, AdamW 1e-4; VAE and CLIP vision
    encode the picture again in every step.  Encoder 'released' where the text encoder is CLIP-L alone, else a free
    vector, which costs the same."""
    import comfy.clip_vision

    from inst_core import host
    from inst_core.bank import draw_fresh
    from inst_core.batch_plan import BatchPlan
    from inst_core.learning import backward
    from inst_core.recipes import RECIPES

    model, clip, vae = load_checkpoint(path, torch.float32)
    clip_vision, seen = comfy.clip_vision.load(str(vision_file)), picture(pixels)
    released = RECIPES["released"]
    recipe = released if set(host.text.text_widths(clip)) == {"clip_l"} else replace(released, encoder="direct")
    encoder, generator = host.learning.make_encoder(clip, recipe), torch.Generator().manual_seed(0)
    with host.training.training_mode(), host.training.training_session(model, clip, PROMPT, 1) as session:
        optimizer = torch.optim.AdamW(encoder.parameter_groups(recipe.rate))

        def step() -> None:
            with torch.no_grad():
                latent = host.vision.encode_latent(vae, model, seen).cpu().clone()
                features = host.vision.picture_features(clip_vision, seen, released=True)
            batch = next(draw_fresh(latent, recipe, generator))
            backward(session, encoder, features, batch, 0, 1.0, BatchPlan(1, recompute=True))
            optimizer.step()

        return Cost("released", torch.float32, **time_step(step, 1, repeats, session.device),
                    weights=count_weights(session))


def measure_ours(path: Path, pixels: int, repeats: int, layers: str = "all", name: str = "ours") -> Cost:
    """Learn InST Style with its default settings, to the last step."""
    from inst_core import batch_plan, host, learning
    from inst_core.bank import draw_bank, held_out_bank
    from inst_core.recipes import RECIPES

    model, clip, vae = load_checkpoint(path, None)
    recipe, start = RECIPES["direct"], time.perf_counter()
    encoder, generator = host.learning.make_encoder(clip, recipe), torch.Generator().manual_seed(0)
    with torch.inference_mode():
        painting = host.learning.look_at(picture(pixels), recipe, model, vae, None, pixels)
    with (host.training.training_mode(),
          host.training.training_session(model, clip, PROMPT, recipe.tokens, layers) as session):
        painting = painting.clone()
        held_out, bank = held_out_bank(painting.whole), draw_bank(painting.views, recipe, generator)
        plan, place = batch_plan.plan_batches(session, encoder, None, bank, held_out, recipe.batch)
        fixed = time.perf_counter() - start
        one = next(bank.split(1))
        kept = None if plan.recompute else batch_plan.kept_of_one_sample(session, encoder, None, one)
        # A few samples of the bank stand for all of them.
        few = bank.take(torch.arange(0, len(bank), len(bank) // recipe.batch)[:recipe.batch])
        prepare = partial(batch_plan.prepare_bank, session, few, place, lambda text: None, plan)
        once = measure_seconds(prepare, session.device) / len(few)
        batch = prepare()
        optimizer = torch.optim.AdamW(encoder.parameter_groups(recipe.rate))

        def step() -> None:
            learning.backward(session, encoder, None, batch, 0, 1.0, plan)
            optimizer.step()

        cost = time_step(step, recipe.batch, repeats, session.device)
        held_out = batch_plan.prepare_bank(session, held_out, place, lambda text: None, plan)
        check = measure_seconds(lambda: learning.held_out_loss(session, encoder, None, held_out, plan), session.device)
        weights = count_weights(session)
    checks, checked = 1, 0
    while checked < recipe.steps:
        checks, checked = checks + 1, checked + learning.steps_to_next_check(recipe, checked)
    name = f"{name}, {plan.samples} at once{', recomputed' if plan.recompute else ''}"
    return Cost(name, model.model.get_dtype_inference(), **cost, weights=weights,
                fixed=fixed + checks * check + once * (len(bank) + len(held_out)),
                samples=recipe.steps * recipe.batch, kept=kept)


# ---- the table ----

HEAD = ("recipe", "dtype", "s / sample", "faster", "TFLOP / sample", "of the limit", "weights, MiB",
        "kept, MiB / sample", "peak, MiB / step", "samples", "total, s", "faster")


def row(cost: Cost, base: Cost, limit: float) -> list[str]:
    mebibytes = ["" if b is None else f"{b / 2**20:.0f}" for b in (cost.weights, cost.kept, cost.bytes)]
    return [cost.name, str(cost.dtype).removeprefix("torch."), f"{cost.per_sample:.3f}",
            f"{base.per_sample / cost.per_sample:.1f}x", f"{cost.flops / 1e12:.3f}",
            f"{cost.flops / cost.per_sample / limit:.0%}", *mebibytes, str(cost.samples), f"{cost.total:.0f}",
            f"{base.total / cost.total:.0f}x"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--size", choices=SIZES, default="sd15", help="which model, with random weights")
    parser.add_argument("--checkpoint", type=Path, help="a checkpoint of your own instead")
    parser.add_argument("--pixels", type=int, help="side of the painting (512; SDXL 1024)")
    parser.add_argument("--clip-vision", type=Path, help="clip-vit-large-patch14.safetensors; without it a random one")
    parser.add_argument("--repeats", type=int, default=None, help="timed steps (10 on a GPU, 1 on a CPU)")
    parser.add_argument("--against", metavar="COMMIT", help="the same command on another commit of this repository, "
                        "afterwards in the same run")
    parser.add_argument("--cpu", action="store_true", help="leave the GPU alone")


def main(args: argparse.Namespace) -> int:
    from comfyui import in_process

    in_process.use_comfyui(args.cpu or not torch.cuda.is_available())
    import comfy.model_management
    import full_size_models

    from inst_core.metrics.tables import markdown

    models = in_process.MODELS
    path = args.checkpoint or full_size_models.checkpoint(args.size, models / "checkpoints")
    vision = args.clip_vision or models / "clip_vision" / "inst-small-vit-l.safetensors"
    pixels = args.pixels or (PIXELS if args.checkpoint else SIZES[args.size])
    device = comfy.model_management.get_torch_device()
    repeats = args.repeats or (10 if device.type == "cuda" else 1)

    costs = []

    def keep(cost: Cost) -> None:
        costs.append(cost)
        comfy.model_management.unload_all_models()
        print(f"[benchmark] {cost}", file=sys.stderr, flush=True)

    keep(measure_released(path, vision, pixels, repeats))
    keep(measure_ours(path, pixels, repeats))
    try:
        keep(measure_ours(path, pixels, repeats, "late", name="ours, late layers"))
    except ValueError as error:
        print(f"[benchmark] no row for late layers: {error}", file=sys.stderr)
    limits = {dtype: matrix_rate(device, dtype) for dtype in {c.dtype for c in costs}}
    best = ", ".join(f"{str(dtype)[6:]} {rate / 1e12:.3f} TFLOP/s" for dtype, rate in limits.items())
    print(f"{path.stem} at {pixels} px, {name_of(device)}; matrix product: {best}; {repeats} timed steps each, totals "
          "extrapolated\n")
    print(markdown(HEAD, [row(cost, costs[0], limits[cost.dtype]) for cost in costs]), flush=True)
    return measure_other(args.against) if args.against else 0


def measure_other(commit: str) -> int:
    """The same command line in a checkout of another commit with this one's set-up."""
    from comfyui import in_process

    arguments = [argument for argument, before in zip(sys.argv[1:], sys.argv, strict=False)
                 if "--against" not in (argument.split("=")[0], before)]
    with tempfile.TemporaryDirectory() as folder:
        git = ["git", "-C", str(in_process.ROOT), "worktree"]
        subprocess.run([*git, "add", "--detach", "--quiet", folder, commit], check=True)
        try:
            Path(folder, ".dev").symlink_to(in_process.ROOT / ".dev")
            print(f"\n{commit}:\n", flush=True)
            return subprocess.run([sys.executable, "tools/benchmark.py", *arguments], cwd=folder).returncode
        finally:
            subprocess.run([*git, "remove", "--force", folder], check=True)
