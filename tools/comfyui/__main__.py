"""Writes small models of ``tests/models`` where ComfyUI finds them.

    python tools/comfyui COMFYUI MODELS small_models small_styleshot
"""
import argparse
import importlib
import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])  # Python puts this folder there, whose names are common ones

from comfyui.in_process import use_comfyui  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("comfyui", type=Path, help="a ComfyUI checkout")
    parser.add_argument("models", type=Path, help="the folder of models where they are written")
    parser.add_argument("makers", nargs="+", help="modules of tests/models")
    args = parser.parse_args()
    use_comfyui(on_cpu=True, comfyui=args.comfyui)
    for maker in args.makers:
        importlib.import_module(maker).write(args.models)


if __name__ == "__main__":
    main()
