"""Writes what the pack shows of itself in ComfyUI, with a server of ``tools/dev.py serve`` running.

    .dev/venv/bin/python tools/workflows make URL                      templates and the box
    .dev/venv/bin/python tools/workflows pictures URL HOME [NAME ...]  their thumbnails and the strip of the help pages
    .dev/venv/bin/python tools/workflows pairs                         before-and-after pictures of the help pages
"""
import argparse
import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])  # Python puts this folder there, whose names are common ones

from workflows import pairs, pictures, shipped  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, kind in (("make", shipped), ("pictures", pictures), ("pairs", pairs)):
        command = commands.add_parser(name, description=kind.__doc__)
        kind.add_arguments(command)
        command.set_defaults(work=kind.main)
    args = parser.parse_args()
    args.work(args)


if __name__ == "__main__":
    main()
