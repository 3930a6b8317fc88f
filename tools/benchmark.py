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

import bench_ablation
import bench_adapter
import bench_color
import bench_content
import bench_learn
import bench_memory
import bench_methods
import bench_quality
import bench_schedules
import bench_structure

KINDS = {"learn": bench_learn, "quality": bench_quality, "ablation": bench_ablation, "adapter": bench_adapter,
         "content": bench_content, "memory": bench_memory, "methods": bench_methods,
         "structure": bench_structure, "color": bench_color, "schedules": bench_schedules}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, kind in KINDS.items():
        kind.add_arguments(commands.add_parser(name, description=kind.__doc__))
    args = parser.parse_args()
    return KINDS[args.command].main(args)


if __name__ == "__main__":
    sys.exit(main())
