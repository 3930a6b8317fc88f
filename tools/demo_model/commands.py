"""The stages as commands. A stage is imported when it is called: ``join`` runs where there is only torch."""
import argparse
import sys
from importlib import import_module
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / ".dev" / "demo_model"
MODELS = ROOT / ".dev" / "home" / "models"
WEIGHTS = MODELS / "style_transfer" / "lpips-alex.safetensors"  # AlexNet with the LPIPS heads


def parse() -> argparse.Namespace:
    threads = argparse.ArgumentParser(add_help=False)
    threads.add_argument("--threads", type=int, default=0, help="of the CPU (default: all; 1 for the teacher)")

    folder = argparse.ArgumentParser(add_help=False, parents=[threads])
    folder.add_argument("--folder", type=Path, default=FOLDER,
                        help="where everything is kept (default .dev/demo_model)")

    training = argparse.ArgumentParser(add_help=False, parents=[folder])
    training.add_argument("--minutes", type=float, default=30, help="how long (default 30)")
    training.add_argument("--finish", action="store_true", help="let the rate fall to zero towards the end")
    training.add_argument("--bfloat16", action="store_true", help="faster where the processor knows it")

    studio = argparse.ArgumentParser(add_help=False, parents=[threads])
    studio.add_argument("--checkpoint", type=Path, default=MODELS / "checkpoints" / "inst-demo.safetensors",
                        help="default: the one that tools/dev.py put together")
    studio.add_argument("--clip-vision", type=Path, metavar="FILE", help="for the encoders attention and paper")
    studio.add_argument("--models", type=Path, default=WEIGHTS.parent, help="folder of AlexNet and VGG")
    studio.add_argument("--work", type=Path, default=ROOT / ".dev" / "quality", help="where every result is kept")
    studio.add_argument("--comfyui", type=Path, help="a ComfyUI checkout (default: the one of tools/dev.py)")

    parser = argparse.ArgumentParser(prog="demo_model", description=__doc__)
    stages = parser.add_subparsers(dest="stage", required=True)

    def stage(name: str, run: str, about: str, *parents: argparse.ArgumentParser) -> argparse.ArgumentParser:
        """``run``: module.function, which gets the options."""
        one = stages.add_parser(name, help=about, parents=parents)
        one.set_defaults(run=run)
        return one

    pictures = stage("pictures", "pictures.make", "pack the photographs to train on", folder)
    pictures.add_argument("--more", type=Path, nargs="+", default=[], metavar="FOLDER", help="of further pictures")
    stage("styles", "styles.make", "measure the bank of styles (needs the group 'train')", folder)
    pairs = stage("pairs", "pairs.make", "let the teacher repaint photographs (needs the group 'train')", folder)
    pairs.add_argument("--first", type=int, default=0, metavar="N", help="number of the first file of 16 pairs")
    pairs.add_argument("--last", type=int, default=400, metavar="N", help="number behind the last file (default 400)")
    stage("autoencoder", "autoencoder.train", "train the autoencoder on photographs and pairs", training)
    stage("latents", "pairs.encode", "encode the pairs for the denoiser", folder)
    stage("denoiser", "denoiser.train", "train the denoiser on the pairs of the folder", training)
    goes_on = stage("continue", "denoiser.go_on", "the same, from weights and pairs of another folder", training)
    goes_on.add_argument("--from", dest="sources", type=Path, nargs="+", required=True, metavar="FOLDER",
                         help="each file is taken from the first of these that has it, once")
    stage("decoder", "autoencoder.train_decoder", "train the decoder alone, on what the denoiser gives", training)
    export = stage("export", "checkpoint.export", "write the file for the repository from a folder's weights")
    export.add_argument("folder", type=Path, nargs="?", default=FOLDER)
    join = stage("join", "checkpoint.make", "write the checkpoint that stock Load Checkpoint opens")
    join.add_argument("shipped", type=Path)
    join.add_argument("target", type=Path)
    quality = stage("quality", "quality.run", "measure the model through the real nodes, for docs/quality.md", studio)
    quality.add_argument("--contents", type=Path, required=True, metavar="FOLDER", help="photographs")
    quality.add_argument("--styles", type=Path, required=True, metavar="FOLDER", help="paintings")
    quality.add_argument("--output", type=Path, default=ROOT / "docs" / "quality.md")
    quality.add_argument("--only", nargs="+", metavar="NAME", help="beside the trivial results and InST")
    stage("examples", "examples.make", "learn the styles that ship, from the paintings in samples", studio)
    return parser.parse_args()


def _choose_device(options: argparse.Namespace) -> None:
    import torch

    if getattr(options, "threads", 0):
        torch.set_num_threads(options.threads)
    options.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    options.bfloat16 = getattr(options, "bfloat16", False) or options.device.type == "cuda"


def main() -> int:
    options = parse()
    module, function = options.run.split(".")
    try:
        _choose_device(options)
        getattr(import_module(f".{module}", __package__), function)(options)
    except ValueError as error:
        print(f"[{options.stage}] {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"\n[{options.stage}] interrupted. What was saved is kept: the same command goes on.", file=sys.stderr)
        return 130
    return 0
