#!/usr/bin/env python3
"""What things cost and what they bring, always side by side in one run.

    .dev/venv/bin/python tools/benchmark.py NAME --help
"""
import argparse
import sys

from bench import ablation, adapter, color, content, learn, memory, methods, quality, schedules, structure


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    for kind in (learn, quality, ablation, adapter, content, memory, methods, structure, color, schedules):
        about = kind.__doc__.partition("\n\n")[0]
        command = commands.add_parser(kind.__name__.removeprefix("bench."), help=about, description=kind.__doc__)
        kind.add_arguments(command)
        command.set_defaults(main=kind.main)
    args = parser.parse_args()
    return args.main(args)


if __name__ == "__main__":
    sys.exit(main())
