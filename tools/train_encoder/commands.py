"""Stages and their options; each says what it is for with --help."""
import argparse
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]
MODELS = ROOT / ".dev" / "home" / "models"
SHIPPED = ROOT / "inst_encoders" / "inst-demo-guesser.safetensors"


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="train_encoder", description=__doc__)
    stages = top.add_subparsers(dest="stage", required=True)

    def stage(name: str, about: str) -> argparse.ArgumentParser:
        one = stages.add_parser(name, help=about, description=about)
        one.add_argument("--folder", type=Path, default=ROOT / ".dev" / "train_encoder",
                         help="what is made is kept here")
        return one

    def eyes(one: argparse.ArgumentParser) -> None:
        one.add_argument("--features", default="alexnet", help="alexnet or clip_vit_l14")
        one.add_argument("--clip-vision", type=Path, help="for clip_vit_l14")
        one.add_argument("--alexnet", type=Path, default=MODELS / "style_transfer" / "lpips-alex.safetensors")
        one.add_argument("--side", type=int, default=256, help="px of latents, and at which AlexNet looks")

    def models(one: argparse.ArgumentParser) -> None:
        one.add_argument("--model", default="demo", help='a checkpoint file; "demo" is the demo model, unwidened')
        eyes(one)
        one.add_argument("--tokens", type=int, default=4)
        one.add_argument("--cpu", action="store_true")

    demo = stage("demo-set", "the demo model's training pictures, in WikiArt's layout")
    demo.add_argument("--pictures", type=Path, default=ROOT / ".dev" / "demo_model", help="of demo_model pictures")
    demo.add_argument("--pairs", type=Path, help="folder of demo_model pairs")
    demo.add_argument("--rules", type=int, default=120, help="styles by rule")
    demo.add_argument("--photographs", type=int, default=160)
    demo.add_argument("--held-out", action="store_true", help="styles and photographs that are never trained on")

    cache = stage("cache", "features, latents and captions of all pictures, once")
    cache.add_argument("sources", type=Path, nargs="+", help="WikiArt parquet, ShareGPT4V JSON, folders of "
                                                            "either, or of pictures")
    cache.add_argument("--pictures", type=Path, help="root of the pictures that ShareGPT4V's JSON names")
    models(cache)

    train = stage("train", "trains the encoder; goes on after any end")
    models(train)
    train.add_argument("--run", default="encoder", help="name of the run; its checkpoints are in FOLDER/RUN")
    train.add_argument("--begin", type=Path, help="an encoder to begin from")
    train.add_argument("--output", type=Path, help="file to write, instead of FOLDER/RUN.safetensors")
    train.add_argument("--ridge", type=float, default=0.3, help="a new encoder begins with the best linear guess of "
                       "known words; weight of its squared coefficients, 0 = it begins with the starting words")
    train.add_argument("--trained-on", default="", help="what the file says it was trained on")
    train.add_argument("--start", default="painting")
    train.add_argument("--context", type=float, default=0.0, help="share of samples that start from context words")
    train.add_argument("--hidden", type=int, default=256)
    train.add_argument("--rank", type=int, default=64)
    train.add_argument("--steps", type=int, default=1000)
    train.add_argument("--batch", type=int, default=64, help="of all processes together")
    train.add_argument("--accumulate", type=int, default=1)
    train.add_argument("--rate", type=float, default=1e-3)
    train.add_argument("--decay", type=float, default=0.01, help="weight decay")
    train.add_argument("--clip", type=float, default=1.0)
    train.add_argument("--denoise", type=float, default=0.0, help="weight of the denoiser's loss")
    train.add_argument("--bank", type=float, default=1.0, help="of the distance to known words")
    train.add_argument("--leakage", type=float, default=0.0, help="of the distance between two pictures of a style")
    train.add_argument("--length", type=float, default=0.0, help="of the offset's length")
    train.add_argument("--same", action="store_true", help="pictures are told by themselves, not by another one")
    train.add_argument("--crop", type=int, default=0, help="places of the latents that the denoiser sees, 0 = all")
    train.add_argument("--seed", type=int, default=0)
    train.add_argument("--keep-every", type=int, default=100, help="steps between checkpoints")
    train.add_argument("--say-every", type=int, default=50)

    stage("judge", "leakage and retrieval on held-out styles").add_argument(
        "encoders", type=Path, nargs="+")
    measure = stage("measure", "held-out losses of guesses for the demo model, beside learning; goes on after any end")
    measure.add_argument("encoder", type=Path)
    measure.add_argument("--paintings", type=Path, required=True, help="folder of paintings")
    measure.add_argument("--checkpoint", type=Path, default=MODELS / "checkpoints" / "inst-demo.safetensors")
    measure.add_argument("--comfyui", type=Path, default=ROOT / ".dev" / "ComfyUI")
    measure.add_argument("--context", default="", help="words that guesses start from, in a further column")
    measure.add_argument("--curve", type=Path, metavar="FILE", help="also plots the losses against steps")
    eyes(measure)
    plan = stage("plan", "floating point operations, hours and memory of a full-size training; runs nothing")
    plan.add_argument("--steps", type=int, default=50_000)
    plan.add_argument("--batch", type=int, default=64)
    plan.add_argument("--gpu", default="H100")
    plan.add_argument("--peak", type=float, default=989.0, help="its TFLOP/s in bfloat16, without sparsity")
    plan.add_argument("--used", type=float, default=0.4, help="share of it that training reaches")
    return top


def cache(options: argparse.Namespace) -> None:
    from accelerate import PartialState

    from . import cache, engines
    from .look import looking

    state = PartialState(cpu=options.cpu)
    with engines.opened(options, state.device) as engine:
        skipped = cache.make(options, engine, looking(options), state.process_index, state.num_processes)
    print(f"[cache] left out: {sum(skipped.values())} {dict(skipped)}", flush=True)


def demo_set(options: argparse.Namespace) -> None:
    from .demo_set import make

    make(options)


def train(options: argparse.Namespace) -> None:
    from .training import train

    train(options)


def judge(options: argparse.Namespace) -> None:
    from .judge import judge

    judge(options)


def measure(options: argparse.Namespace) -> None:
    from .measure import measure

    measure(options)


def plan(options: argparse.Namespace) -> None:
    from .plan import plan

    plan(options)


def main() -> int:
    options = parser().parse_args()
    sys.path.append(str(ROOT))
    torch.set_num_threads(max(1, torch.get_num_threads()))
    try:
        {"demo-set": demo_set, "cache": cache, "train": train, "judge": judge, "measure": measure,
         "plan": plan}[options.stage](options)
    except ValueError as error:
        sys.exit(str(error))
    return 0
