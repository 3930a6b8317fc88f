#!/usr/bin/env python3
"""Tries to break the pack; bounded, and the same every time.

    .dev/venv/bin/python tools/torture files [--count 12000] [--start 0]
    .dev/venv/bin/python tools/torture faults
    .dev/venv/bin/python tools/torture graphs [--graphs 200] [--seed 1]
    .dev/venv/bin/python tools/torture modes [--only novram]

files    damaged style files, embeddings.pt and weight files: each is read, or refused by an error that names it
faults   several servers, sudden death, full and read-only disks, moving folders, spoiled files: no style is lost
graphs   random graphs on a real server, cancelled, queued again, the server killed: nothing is stuck or changed
modes    learning and painting in ComfyUI's memory modes and precisions, on quantised and compiled models

Ends with 1 and the list when something was found. ``--start N --count 1`` makes finding N again.
"""
import argparse
import logging
import multiprocessing
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])  # Python puts this folder there, whose names are common ones

from torture import faults, files, graphs, modes  # noqa: E402

CHUNK = 1000


def _work(numbers: range, report) -> None:
    with tempfile.TemporaryDirectory() as folder:
        for found in files.run(numbers, Path(folder)):
            report.send(found)


def read_damaged_files(start: int, count: int) -> list[str]:
    """What was found; prints the table. A process that dies is a finding, and its work goes on behind the file."""
    outcomes, findings, began, end = Counter(), [], time.monotonic(), start + count
    while start < end:
        receive, send = multiprocessing.Pipe(duplex=False)
        process = multiprocessing.Process(target=_work, args=(range(start, min(start + CHUNK, end)), send))
        process.start()
        send.close()
        try:
            while True:
                number, outcome, fault = receive.recv()
                start = number + 1
                outcomes[files.KINDS[number % len(files.KINDS)][0], outcome] += 1
                if fault:
                    findings.append(f"{number}: {fault}")
        except EOFError:
            process.join()
        if process.exitcode:
            findings.append(f"{start}: the process ended with {process.exitcode}")
            start += 1
    print("| file | read | refused |\n|---|---|---|")
    for kind, *_ in files.KINDS:
        print(f"| {kind} | {outcomes[kind, 'read']} | {outcomes[kind, 'refused']} |")
    print(f"\n{sum(outcomes.values())} files in {time.monotonic() - began:.0f} s, {len(findings)} findings")
    return findings


def put_faults_under_saving() -> list[str]:
    """What was found; prints the table."""
    logging.disable(logging.WARNING)  # each style that goes elsewhere says so
    with tempfile.TemporaryDirectory() as folder:
        results = faults.faults(Path(folder))
    print("| fault | styles or tries | wrong | |\n|---|---|---|---|")
    for result in results:
        print(f"| {result.fault} | {result.trials} | {len(result.wrong)} | {result.note} |")
    return [f"{result.fault}: {wrong}" for result in results for wrong in result.wrong]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = parser.add_subparsers(required=True)
    damaged = parts.add_parser("files", help="damaged files")
    damaged.add_argument("--count", type=int, default=12000)
    damaged.add_argument("--start", type=int, default=0)
    damaged.set_defaults(work=lambda options: read_damaged_files(options.start, options.count))
    parts.add_parser("faults", help="faults under saving").set_defaults(work=lambda _: put_faults_under_saving())
    random_graphs = parts.add_parser("graphs", description=graphs.__doc__, help="random graphs on a server")
    graphs.add_arguments(random_graphs)
    random_graphs.set_defaults(work=graphs.main)
    parts.add_parser("modes", description=modes.__doc__, help="memory modes and precisions").set_defaults(
        work=lambda _: modes.main())
    options = parser.parse_args()
    found = options.work(options)
    print("\n".join(found[:50]))
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
