"""Numbers for style transfer: how much of the content stayed, how much of the style came, and what was only copied.

One file per measure; ``judge`` brings them together, ``tables`` prints them.  No number means anything alone: a copy of
the content has LPIPS 0, a copy of the painting has Gram distance 0.  So the same numbers of a few results that nobody
would call style transfer stand beside every report (``trivial``).
"""
from .judge import (
    MEASURES,
    SIDE,
    Judge,
    Measure,
    Measured,
    Networks,
    Pair,
    load_networks,
    measure_batches,
)
from .tables import as_json, by_method, markdown, means, report
from .trivial import TRIVIAL, trivial_results

__all__ = ["MEASURES", "SIDE", "TRIVIAL", "Judge", "Measure", "Measured", "Networks", "Pair", "as_json",
           "by_method", "load_networks", "markdown", "means", "measure_batches", "report",
           "trivial_results"]
