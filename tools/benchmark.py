#!/usr/bin/env python3
"""What things cost and what they bring, always side by side in one run.

    .dev/venv/bin/python tools/benchmark.py learn      a style learned: the released recipe, ours, the device's limit
    .dev/venv/bin/python tools/benchmark.py quality    held-out loss against seconds and samples, released and ours
    .dev/venv/bin/python tools/benchmark.py ablation   every default of learning, changed one at a time
    .dev/venv/bin/python tools/benchmark.py adapter    held-out loss with and without an adapter beside the words
    .dev/venv/bin/python tools/benchmark.py content    what a painting shows: how much of it is kept out of results
    .dev/venv/bin/python tools/benchmark.py memory     the highest memory while text encoder and denoiser take turns
    .dev/venv/bin/python tools/benchmark.py methods    the comparison methods against their official arithmetic
    .dev/venv/bin/python tools/benchmark.py structure  what holds a photograph's layout, and what it costs in style
    .dev/venv/bin/python tools/benchmark.py color      whether colours go where they belong
    .dev/venv/bin/python tools/benchmark.py schedules  a cosine schedule beside others, at sampling and at learning

Each takes --help.
"""
import argparse
import sys

from bench import ablation, adapter, color, content, learn, memory, methods, quality, schedules, structure

KINDS = {"learn": learn, "quality": quality, "ablation": ablation, "adapter": adapter, "content": content,
         "memory": memory, "methods": methods, "structure": structure, "color": color, "schedules": schedules}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, kind in KINDS.items():
        kind.add_arguments(commands.add_parser(name, description=kind.__doc__))
    args = parser.parse_args()
    return KINDS[args.command].main(args)


if __name__ == "__main__":
    sys.exit(main())
