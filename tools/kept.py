"""Results that take long: kept as soon as they are there, so that an interrupted command goes on where it was."""
import json
from collections.abc import Callable
from pathlib import Path


class Kept:
    """Finished runs, one line of JSON each."""

    def __init__(self, path: Path):
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        self.found = {tuple(run["key"]): run for run in map(json.loads, lines)}

    def get(self, key: tuple, make: Callable[[], dict]) -> dict:
        """What the file has under this key; made and appended where it has nothing."""
        if key not in self.found:
            self.found[key] = {"key": list(key), **make()}
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(self.found[key]) + "\n")
        return self.found[key]
