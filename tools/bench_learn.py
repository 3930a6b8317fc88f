"""What learning a style costs: the released recipe, ours, and the device's own limit, side by side in one run.

Weights are random in the real sizes, since cost does not depend on their values; --checkpoint takes any file.  A few
steps of each recipe are timed after one that warms up, and totals are extrapolated from them: the table says how many.
FLOPs are counted by torch, one multiply-add as two.
"""
import argparse
import platform
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from peak_memory import PeakMemory
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

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
        first: seconds of a sample that is met for the first time, where something is remembered about it.
        bytes: peak memory of a step, above weights, on a GPU. (What a process takes on a CPU depends on what it had
            before.)
        fixed: seconds for the crops, for making the model again and for held-out losses.
        samples: of a whole run.
        new: how many of them are met for the first time.
        kept: bytes that backward keeps of one sample; None where they are recomputed.
    """

    name: str
    dtype: torch.dtype
    flops: float
    per_sample: float
    first: float
    bytes: int | None
    fixed: float = 0.0
    samples: int = RELEASED_SAMPLES
    new: int = 0
    kept: int | None = None

    @property
    def total(self) -> float:
        return self.fixed + self.new * self.first + (self.samples - self.new) * self.per_sample


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(function: Callable[[], object], device: torch.device, repeats: int = 1) -> float:
    """Mean time of some calls: of the clock, or of the processor on a CPU with one thread, where a busy machine does
    not change it."""
    clock = time.process_time if device.type == "cpu" and torch.get_num_threads() == 1 else time.perf_counter
    wait(device)
    start = clock()
    for _ in range(repeats):
        function()
    wait(device)
    return (clock() - start) / repeats


def matrix_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Floating-point operations a second in the product of two large matrices: what the device can do at best."""
    side = MATRIX[device.type]
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    a @ b
    return 2 * side**3 / min(seconds(lambda: a @ b, device) for _ in range(10))


def opened(path: Path, dtype: torch.dtype | None):
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


def timed(step: Callable[[], object], samples: int, repeats: int, device: torch.device) -> dict:
    """A first step, one that is counted, and some that are timed; ``samples`` are in each."""
    first = seconds(step, device)
    with PeakMemory(device) as memory, FlopCounterMode(display=False) as counter:
        step()
    return {"flops": counter.get_total_flops() / samples, "per_sample": seconds(step, device, repeats) / samples,
            "first": first / samples, "bytes": memory.bytes if device.type == "cuda" else None}


def released(path: Path, vision_file: Path, pixels: int, repeats: int) -> Cost:
    """The released recipe: float32, batch 1, gradient checkpointing, uniform times, AdamW 1e-4; VAE and CLIP vision
    encode the picture again in every step.  Encoder 'released' where the text encoder is CLIP-L alone, else a free
    vector, which costs the same."""
    import comfy.clip_vision

    from inst_core import host
    from inst_core.encoders import build_encoder
    from inst_core.learning import Room, backward
    from inst_core.objective import fresh_samples

    model, clip, vae = opened(path, torch.float32)
    clip_vision = comfy.clip_vision.load(str(vision_file))
    seen, generator = picture(pixels), torch.Generator().manual_seed(0)
    with host.training_mode():
        words = host.word_vectors(clip, "painting")
        encoder = build_encoder("released" if set(words) == {"clip_l"} else "direct", words, 1, generator)
        optimizer = torch.optim.AdamW(encoder.parameters(), lr=encoder.learning_rate)
        with host.training_session(model, clip, PROMPT, 1) as session:
            def step() -> None:
                with torch.no_grad():
                    latent = host.encode_latent(vae, model, seen).cpu().clone()
                    features = host.picture_features(clip_vision, seen, released=True)
                batch = next(fresh_samples(latent, 1, generator))
                backward(session, encoder, features, batch, generator, Room(1, recompute=True))
                optimizer.step()
                optimizer.zero_grad()

            return Cost("released", torch.float32, **timed(step, 1, repeats, session.device))


def ours(path: Path, pixels: int, repeats: int, layers: str,
         change: Callable[[torch.nn.Module], torch.nn.Module] | None = None, name: str = "ours") -> Cost:
    """Learn InST Style with its default settings, to the last step.

    Args:
        change: what is tried on the denoiser.
    """
    from inst_core import host, learning, objective, preprocess
    from inst_core.encoders import build_encoder

    model, clip, vae = opened(path, None)
    settings, generator = learning.Settings(), torch.Generator().manual_seed(0)
    start = time.perf_counter()
    with host.training_mode():
        crops = preprocess.random_crops(picture(pixels), pixels, learning.CROPS, generator)
        with torch.no_grad():
            views = host.encode_latent(vae, model, crops).cpu().clone()
        painting = learning.Painting(views, views[:1].clone())
        encoder = build_encoder("direct", host.word_vectors(clip, "painting"), learning.TOKENS, generator)
        optimizer = torch.optim.AdamW(encoder.parameters(), lr=settings.learning_rate, fused=True)
        with host.training_session(model, clip, PROMPT, learning.TOKENS, layers) as session:
            network = session.denoiser.network
            if change is not None:
                session.denoiser.network = change(network)
            room = learning.room_for(session, encoder, painting, settings.batch_size)
            # A bank of one batch: all but the first step meet what they know.
            few = objective.Objective(bank=settings.batch_size)
            batches = objective.samples(views, settings.batch_size, few, session.denoiser.log_snr, generator)
            fixed = time.perf_counter() - start
            kept = None if room.recompute else learning.kept_of_one_sample(session, encoder, painting)

            def step() -> None:
                learning.backward(session, encoder, None, next(batches), generator, room)
                optimizer.step()
                optimizer.zero_grad()

            cost = timed(step, settings.batch_size, repeats, session.device)
            learning.held_out_loss(session, encoder, painting, room)
            check = seconds(lambda: learning.held_out_loss(session, encoder, painting, room), session.device)
            session.denoiser.network = network
    samples = settings.steps * settings.batch_size
    checks = 1 + samples // learning.CHECK_SAMPLES
    name = f"{name}, {room.samples} at once{', recomputed' if room.recompute else ''}"
    return Cost(name, model.model.get_dtype_inference(), **cost, fixed=fixed + checks * check, samples=samples,
                new=settings.objective.bank, kept=kept)


# ---- the table ----

HEAD = ("recipe", "dtype", "s / sample", "faster", "TFLOP / sample", "of the limit", "kept, MiB / sample",
        "peak, MiB / step", "samples", "total, s", "faster")


def mebibytes(count: int | None) -> str:
    return "" if count is None else f"{count / 2**20:.0f}"


def rows(costs: list[Cost], limits: dict[torch.dtype, float]) -> list[list[str]]:
    base = costs[0]

    def row(cost: Cost) -> list[str]:
        share = cost.flops / cost.per_sample / limits[cost.dtype]
        return [cost.name, str(cost.dtype).removeprefix("torch."), f"{cost.per_sample:.3f}",
                f"{base.per_sample / cost.per_sample:.1f}x", f"{cost.flops / 1e12:.3f}", f"{share:.0%}",
                mebibytes(cost.kept), mebibytes(cost.bytes), str(cost.samples), f"{cost.total:.0f}",
                f"{base.total / cost.total:.0f}x"]

    return [row(cost) for cost in costs]


TRIED = {
    "channels_last": lambda network: network.to(memory_format=torch.channels_last),
    "compile": torch.compile,
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--size", choices=SIZES, default="sd15", help="which model, with random weights")
    parser.add_argument("--checkpoint", type=Path, help="a checkpoint of your own instead")
    parser.add_argument("--pixels", type=int, help="side of the painting (512; SDXL 1024)")
    parser.add_argument("--clip-vision", type=Path, help="clip-vit-large-patch14.safetensors; without it a random one")
    parser.add_argument("--repeats", type=int, default=None, help="timed steps (10 on a GPU, 1 on a CPU)")
    parser.add_argument("--tried", nargs="*", choices=TRIED, default=[], help="further rows: ours with a change")
    parser.add_argument("--cpu", action="store_true", help="leave the GPU alone")
    parser.add_argument("--half", action="store_true", help="on a CPU: all but the released recipe computes in "
                        "bfloat16, in half precision as on a GPU, which ComfyUI itself does on no CPU")


def main(args: argparse.Namespace) -> int:
    import in_process

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

    keep(released(path, vision, pixels, repeats))
    if args.half:
        comfy.model_management.should_use_bf16 = lambda *_, **__: True
    keep(ours(path, pixels, repeats, "all"))
    keep(ours(path, pixels, repeats, "late", name="ours, late layers"))
    for name in args.tried:
        keep(ours(path, pixels, repeats, "all", change=TRIED[name], name=f"ours, {name}"))
    limits = {dtype: matrix_rate(device, dtype) for dtype in {c.dtype for c in costs}}
    place = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{platform.machine()} CPU"
    print(f"{path.stem} at {pixels} px, {place}, {torch.get_num_threads()} threads, torch {torch.__version__}; matrix "
          f"product: {', '.join(f'{str(d)[6:]} {r / 1e12:.3f} TFLOP/s' for d, r in limits.items())}; {repeats} timed "
          f"steps each, totals extrapolated\n")
    print(markdown(HEAD, rows(costs, limits)))
    return 0
