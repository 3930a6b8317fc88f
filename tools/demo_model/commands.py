"""The stages as commands. Each imports what it needs when it is called: ``join`` runs where there is only torch."""
import argparse
import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / ".dev" / "demo_model"
MODELS = ROOT / ".dev" / "home" / "models"
WEIGHTS = MODELS / "style_transfer" / "lpips-alex.safetensors"


def _pictures(options: argparse.Namespace) -> None:
    from . import pictures

    pictures.make(options)


def _styles(options: argparse.Namespace) -> None:
    from . import styles

    styles.make(options)


def _pairs(options: argparse.Namespace) -> None:
    from . import pairs

    pairs.make(options)


def _autoencoder(options: argparse.Namespace) -> None:
    from . import autoencoder

    autoencoder.train(options)


def _latents(options: argparse.Namespace) -> None:
    from . import pairs

    pairs.encode(options)


def _decoder(options: argparse.Namespace) -> None:
    from . import autoencoder

    autoencoder.train_decoder(options)


def _denoiser(options: argparse.Namespace) -> None:
    from . import denoiser

    denoiser.train(options)


def _continue(options: argparse.Namespace) -> None:
    from . import denoiser

    denoiser.adopt(options.sources, options.folder)
    denoiser.train(options)


def _export(options: argparse.Namespace) -> None:
    from whole import read_tensors

    from .checkpoint import SHIPPED, ship

    parts = {}
    for name in ("unet", "vae", "space"):
        path = next((p / f"{name}.safetensors" for p in (options.folder, options.folder / "state")
                     if (p / f"{name}.safetensors").exists()), options.folder / f"{name}.safetensors")
        parts[name] = read_tensors(path)
    recipe = {"unet": parts["unet"][1], "vae": parts["vae"][1]} | json.loads(options.recipe)
    target = options.output or SHIPPED
    ship(target, *(parts[name][0] for name in parts), recipe)
    print(f"[export] {target}: {target.stat().st_size / 1e6:.1f} MB, {json.dumps(recipe)}")


def _quality(options: argparse.Namespace) -> None:
    from . import quality

    quality.run(options)


def _examples(options: argparse.Namespace) -> None:
    from . import examples

    examples.make(options)


def _join(options: argparse.Namespace) -> None:
    from .checkpoint import join

    join(options.shipped, options.target)
    print(f"[join] {options.target}")


def _folder_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--folder", type=Path, default=FOLDER,
                        help="where everything is kept (default .dev/demo_model)")
    parser.add_argument("--comfyui", type=Path, help="a ComfyUI checkout (default: the one of tools/dev.py)")
    parser.add_argument("--threads", type=int, default=0, help="of the CPU (default: all; 1 for the teacher)")


def _training_options(parser: argparse.ArgumentParser, minutes: float) -> None:
    _folder_options(parser)
    parser.add_argument("--minutes", type=float, default=minutes, help=f"how long (default {minutes:g})")
    parser.add_argument("--steps", type=int, help="end after so many steps, if that comes first")
    parser.add_argument("--finish", action="store_true", help="let the rate fall to zero towards the end")
    parser.add_argument("--rate", type=float, help="of Muon")
    parser.add_argument("--batch", type=int)
    parser.add_argument("--device", default="", help="such as cpu or cuda (default: a GPU where there is one)")
    parser.add_argument("--bfloat16", action="store_true", help="faster where the processor knows it")
    parser.add_argument("--weights", type=Path, default=WEIGHTS, help="AlexNet with the LPIPS heads")


def _studio_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--checkpoint", type=Path, default=MODELS / "checkpoints" / "inst-demo.safetensors",
                        help="default: the one that tools/dev.py put together")
    parser.add_argument("--clip-vision", type=Path, metavar="FILE", help="for the encoders attention and paper")
    parser.add_argument("--models", type=Path, default=WEIGHTS.parent,
                        help="folder with the weights of AlexNet and VGG")
    parser.add_argument("--work", type=Path, default=ROOT / ".dev" / "quality", help="where every result is kept")
    parser.add_argument("--device", default="", help="such as cpu or cuda (default: a GPU where there is one)")
    parser.add_argument("--threads", type=int, default=0, help="of the CPU (default: all)")
    parser.add_argument("--comfyui", type=Path, help="a ComfyUI checkout (default: the one of tools/dev.py)")


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="demo_model", description=__doc__)
    stages = parser.add_subparsers(dest="stage", required=True)

    stage = stages.add_parser("pictures", help="pack the photographs to train on")
    _folder_options(stage)
    stage.add_argument("--more", type=Path, nargs="+", default=[], metavar="FOLDER", help="of further pictures")
    stage.set_defaults(run=_pictures)

    stage = stages.add_parser("styles", help="measure the bank of styles (needs the group 'train')")
    _folder_options(stage)
    stage.add_argument("--most", type=int, help="only so many of each kind, for a try")
    stage.set_defaults(run=_styles)

    stage = stages.add_parser("pairs", help="let the teacher repaint photographs (needs the group 'train')")
    _folder_options(stage)
    stage.add_argument("--first", type=int, default=0, metavar="N", help="number of the first file of 16 pairs")
    stage.add_argument("--last", type=int, default=400, metavar="N", help="number behind the last file (default 400)")
    stage.set_defaults(run=_pairs)

    stage = stages.add_parser("autoencoder", help="train the autoencoder on photographs and pairs")
    _training_options(stage, 30)
    stage.set_defaults(run=_autoencoder)

    stage = stages.add_parser("latents", help="encode the pairs for the denoiser")
    _folder_options(stage)
    stage.set_defaults(run=_latents)

    stage = stages.add_parser("denoiser", help="train the denoiser on the pairs of the folder")
    _training_options(stage, 60)
    stage.set_defaults(run=_denoiser)

    stage = stages.add_parser("continue", help="the same, from weights and pairs of another folder")
    stage.add_argument("--from", dest="sources", type=Path, nargs="+", required=True, metavar="FOLDER",
                       help="each file is taken from the first of these that has it, once")
    _training_options(stage, 60)
    stage.set_defaults(run=_continue)

    stage = stages.add_parser("decoder", help="train the decoder alone, on what the denoiser gives")
    _training_options(stage, 30)
    stage.add_argument("--results", type=int, default=20, metavar="N",
                       help="files of 16 photographs to repaint for it first (default 20)")
    stage.set_defaults(run=_decoder)

    stage = stages.add_parser("export", help="write the file for the repository from a folder's weights")
    stage.add_argument("folder", type=Path, nargs="?", default=FOLDER)
    stage.add_argument("--output", type=Path, help="default: the shipped file of this repository")
    stage.add_argument("--recipe", default="{}", metavar="JSON", help="more about how they were made")
    stage.set_defaults(run=_export)

    stage = stages.add_parser("join", help="write the checkpoint that stock Load Checkpoint opens")
    stage.add_argument("shipped", type=Path)
    stage.add_argument("target", type=Path)
    stage.set_defaults(run=_join)

    stage = stages.add_parser("quality", help="measure the model through the real nodes; writes docs/quality.md")
    stage.add_argument("--contents", type=Path, required=True, metavar="FOLDER", help="photographs")
    stage.add_argument("--styles", type=Path, required=True, metavar="FOLDER", help="paintings")
    _studio_options(stage)
    stage.add_argument("--output", type=Path, default=ROOT / "docs" / "quality.md")
    stage.add_argument("--sheet", type=Path, default=ROOT / ".dev" / "quality" / "sheet.jpg",
                       help="contact sheet (default .dev/quality/sheet.jpg); beside --output, the page shows it")
    stage.add_argument("--only", nargs="+", metavar="NAME", help="beside the trivial results and InST")
    stage.add_argument("--quick", action="store_true", help="two photographs and two paintings, for a try")
    stage.set_defaults(run=_quality)

    stage = stages.add_parser("examples", help="learn the styles that ship, from the paintings in samples")
    _studio_options(stage)
    stage.set_defaults(run=_examples)

    options = parser.parse_args(arguments)
    return options


def _choose_device(options: argparse.Namespace) -> None:
    import torch

    if getattr(options, "threads", 0):
        torch.set_num_threads(options.threads)
    if hasattr(options, "device"):
        options.device = torch.device(options.device or ("cuda" if torch.cuda.is_available() else "cpu"))
        options.bfloat16 = getattr(options, "bfloat16", False) or options.device.type == "cuda"


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    try:
        _choose_device(options)
        options.run(options)
    except ValueError as error:
        print(f"[{options.stage}] {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"\n[{options.stage}] interrupted. What was saved is kept: the same command goes on.", file=sys.stderr)
        return 130
    return 0
