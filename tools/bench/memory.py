"""How much memory learning takes at its highest, as a share of the weights of denoiser and text encoder together.

On a small random Z-Image in the proportions of the real one (as many layers, a text encoder of 0.65 times its size),
learned on a pretend device (tests/device, needs g++) that counts what is taken and refuses more than it has.  Beside
the width of the layers, pictures have as many tokens as on the real model.  An adapter counts for more than
there: beside the width, its rank is fifteen times as high.
"""
import argparse
import os
import sys
from itertools import product

import torch
from comfyui import in_process

MODEL, WIDTH = "z-image-deep", 256
REAL_WIDTH, REAL_PATCH = 3840, 16  # of Z-Image; pixels that make a token
SHARES = 8.0, 0.645


def side_of_latent(pixels: int) -> int:
    """Of a small picture that has, beside the width of the layers, as many tokens as the real one."""
    tokens = (pixels / REAL_PATCH) ** 2 * WIDTH / REAL_WIDTH
    return 2 * max(1, round(tokens**0.5))


def learn(model, clip, pixels: int, rank: int, together: bool, steps: int):
    from inst_core import host
    from inst_core.learning import Painting, learn_style
    from inst_core.recipes import Recipe

    side = side_of_latent(pixels)
    views = torch.randn(4, 16, side, side, generator=torch.Generator().manual_seed(0))
    recipe = Recipe(steps=steps, rate=1e-4, patience=None)
    encoder = host.adapter.with_adapter(host.learning.make_encoder(clip, recipe), model, rank, recipe)
    with (host.training.training_mode(),
          host.training.training_session(model, clip, "*", recipe.tokens, together=together) as session,
          encoder.attached(session)):
        return learn_style(session, encoder, Painting(views, views[:1]), recipe)


HEAD = ("picture, px", "adapter_rank", "device has", "models", "peak", "at once", "learned")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--pixels", type=int, nargs="*", default=[512])
    parser.add_argument("--ranks", type=int, nargs="*", default=[0])
    parser.add_argument("--shares", type=float, nargs="*", default=SHARES, help="of both models' weights, that the "
                        "device has; the models are on it together where it is more than 1")
    parser.add_argument("--steps", type=int, default=10)


def main(args: argparse.Namespace) -> int:
    sys.path.append(str(in_process.ROOT / "tests" / "device"))
    in_process.use_comfyui(on_cpu=True)
    import comfy.model_management as management
    import pretend
    import shrunk_families

    from inst_core.metrics.tables import markdown

    pretend.use(in_process.MODELS.parent)
    memory = pretend.Memory(in_process.MODELS.parent)
    with torch.inference_mode():
        model, clip = shrunk_families.open_shrunk(in_process.MODELS / "shrunk", MODEL, [""])
    both = model.model_size() + clip.patcher.model_size()

    def free(device=None, torch_free_too=False):
        left = memory.limit - memory.now
        return (left, left) if torch_free_too else left

    management.get_free_memory, management.get_total_memory = free, lambda *_, **__: memory.limit
    rows = []
    for pixels, rank, share in product(args.pixels, args.ranks, args.shares):
        management.unload_all_models()
        memory.start(int(share * both))
        learned = learn(model, clip, pixels, rank, share > 1, args.steps)
        rows.append([str(pixels), str(rank), f"{share:g}", "together" if share > 1 else "in turn",
                     f"{memory.peak / both:.3f}", learned.verdict.partition("memory was short: ")[2] or "4 at once",
                     f"{1 - learned.kept / learned.checks[0].loss:.2%}"])
        print(f"[benchmark] {rows[-1]}", file=sys.stderr, flush=True)
    print(f"{MODEL}: {both / 2**20:.1f} MiB of weights, text encoder {clip.patcher.model_size() / both:.2f} of them; "
          f"device and peak as shares of them\n\n{markdown(HEAD, rows)}", flush=True)
    os._exit(0)  # torch's backward thread of such a device may abort a process that waits for it
