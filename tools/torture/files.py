"""Mutated files: style files, official embeddings.pt and weight files, damaged in every way that can be thought of.

Each must be read, or refused by a ValueError that names it.  Nothing in it may run, and no more memory may be taken
than twice the file.  Every file follows from its number alone, so a finding can be made again: ``case(number)``.
"""
import io
import json
import os
import pickle
import random
import struct
import sys
import types
import warnings
import zipfile
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import safetensors.torch
import torch
from bench.costs import PeakMemory
from torch import nn

sys.path.append(str(Path(__file__).resolve().parents[2]))

from inst_core.library import read_metadata
from inst_core.official import load_embeddings
from inst_core.state_dicts import read_weights
from inst_core.style import MAX_TOKENS, Style, load_style, to_bytes

SLACK = 8 * 2**20  # bytes that any read may take, whatever the file
# What Python reports when code does something to the system. Reading a file does none of it.
FORBIDDEN = ("os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "os.remove", "os.rename", "os.rmdir",
             "os.mkdir", "os.putenv", "subprocess.Popen", "socket.connect", "shutil.rmtree", "ctypes.dlopen",
             "webbrowser.open")


class Case(NamedTuple):
    """A damaged file: its name, bytes, and the reader it is given to."""

    name: str
    data: bytes
    read: Callable[[Path], object]


# ---- whole files ----

def _rows(count: int, width: int) -> torch.Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(count))


@cache
def style_files() -> tuple[bytes, ...]:
    """Styles of this pack and textual inversions of others."""
    learned = Style({"clip_l": _rows(4, 768)}, "direct", "SD15", {"vectors.clip_l": _rows(4, 768)},
                    {"image_embed": _rows(1, 768)}, {"inst.text": "*", "inst.key": "0" * 64, "inst.losses": "0.5 0.4"})
    two = Style({"clip_l": _rows(2, 768), "clip_g": _rows(2, 1280)}, "attention", "SDXL")
    foreign = [{"emb_params": _rows(3, 768)}, {"<cat>": _rows(1, 1024)[0]},
               {"bundle_emb.a.clip_l": _rows(2, 768), "bundle_emb.a.clip_g": _rows(2, 1280), "lora": _rows(2, 9)},
               {"clip_l": _rows(2, 768).to(torch.float8_e4m3fn)}, {"text_encoders_0": _rows(2, 768).bfloat16()}]
    return to_bytes(learned), to_bytes(two), to_bytes(two, False), *map(safetensors.torch.save, foreign)


def _torch_file(held: object, **options) -> bytes:
    stream = io.BytesIO()
    torch.save(held, stream, **options)
    return stream.getvalue()


class Payload:
    """Would write a file if it were run."""

    def __reduce__(self):
        return os.system, ("touch torture_was_here",)


@cache
def embeddings_files(width: int = 8, inner: int = 8) -> tuple[bytes, ...]:
    """As InST's training writes them; small, since the shapes are looked at last."""
    names = ("ldm", "ldm.modules", "ldm.modules.attention", "ldm.modules.embedding_manager")
    before = {name: sys.modules.get(name) for name in names}
    sys.modules |= {name: types.ModuleType(name) for name in names}

    def named(module: str, name: str) -> type:
        made = type(name, (nn.Module,), {"__module__": module})
        setattr(sys.modules[module], name, made)
        return made

    attention, manager = named(names[2], "CrossAttention"), named(names[3], "Attentions")
    try:
        official = manager()
        for name in ("attn1", "attn2"):
            part = attention()
            part.to_q, part.to_k, part.to_v = (nn.Linear(width, inner, bias=False) for _ in range(3))
            part.to_out = nn.Sequential(nn.Linear(inner, width), nn.Dropout(0.05))
            setattr(official, name, part)
        official.net = nn.Sequential(nn.Dropout(0.05), nn.Linear(width, width))
        whole = {"string_to_token": {"*": torch.tensor(265)}, "attention": official.half()}
        return (_torch_file(whole), _torch_file({**whole, "attention": official.state_dict()}),
                _torch_file({"string_to_param": {"*": _rows(2, width)}, "step": 100}),
                _torch_file({**whole, "more": Payload()}))
    finally:
        for name, module in before.items():
            sys.modules.pop(name) if module is None else sys.modules.update({name: module})


@cache
def weight_files() -> tuple[bytes, ...]:
    """safetensors, torch's two formats, wrapped and plain."""
    table = {f"block{i}.{kind}": _rows(8, 8) for i in range(4) for kind in ("weight", "bias")}
    wrapped = {"model_state_dict": {f"module.{k}": v for k, v in table.items()}, "epoch": 3,
               "optimizer": {"state": {0: {"step": torch.tensor(1.0)}}}, "settings": types.SimpleNamespace(rate=0.1)}
    return (safetensors.torch.save(table), _torch_file(table), _torch_file(wrapped),
            _torch_file(table, _use_new_zipfile_serialization=False),
            _torch_file({**table, "more": Payload()}, _use_new_zipfile_serialization=False),
            _torch_file({k: v.half() for k, v in table.items()}))


# ---- damage ----

NUMBERS = (0, 1, 2, 255, 2**15, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**63 - 1, 2**63, 2**64 - 1)
SAYINGS = (b"cos\nsystem\n", b"cbuiltins\neval\n", b"cbuiltins\nbytearray\n", b"ctorch\nFloatTensor\n", b"(lp0\n",
           b"R.", b"\x80\x04\x95", b"cnumpy\ndtype\n", b"\x8f", b"c__builtin__\nset\n", b"\x00" * 32, b"\xff" * 32)


def flip(draw: random.Random, data: bytes) -> bytes:
    """Some bytes become others."""
    data = bytearray(data)
    for _ in range(draw.choice((1, 1, 2, 8, 64))):
        data[draw.randrange(len(data))] = draw.randrange(256)
    return bytes(data)


def flip_start(draw: random.Random, data: bytes) -> bytes:
    """Where the structure is."""
    size = min(len(data), draw.choice((8, 64, 1024)))
    return flip(draw, data[:size]) + data[size:]


def cut(draw: random.Random, data: bytes) -> bytes:
    return data[:draw.randrange(len(data))]


def lose(draw: random.Random, data: bytes) -> bytes:
    """A piece in the middle is gone."""
    start = draw.randrange(len(data))
    return data[:start] + data[start + draw.choice((1, 4, 100, 4096)):]


def repeat(draw: random.Random, data: bytes) -> bytes:
    start = draw.randrange(len(data))
    piece = data[start:start + draw.choice((1, 8, 512))]
    return data[:start] + piece * draw.randrange(2, 9) + data[start:]


def write_number(draw: random.Random, data: bytes) -> bytes:
    """A number that is too large, too small or on the edge, somewhere near the start or the end."""
    number = struct.pack(draw.choice(("<Q", ">Q")), draw.choice(NUMBERS))[:draw.choice((2, 4, 8))]
    span = min(len(data), 512)
    start = draw.choice((0, draw.randrange(span), len(data) - 1 - draw.randrange(span)))
    return data[:start] + number + data[start + len(number):]


def insert(draw: random.Random, data: bytes) -> bytes:
    start = draw.randrange(len(data))
    return data[:start] + draw.choice(SAYINGS) + data[start:]


def nothing_left(draw: random.Random, data: bytes) -> bytes:
    """Another file altogether."""
    return draw.choice((b"", b"\n", b"<!DOCTYPE html><html>", bytes(draw.randrange(256) for _ in range(99)), b"\0" * 99,
                        pickle.dumps({"a": [1] * 50}), b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n"))


def edit_header(draw: random.Random, data: bytes) -> bytes:
    """Another shape, type, place or name in the header of a safetensors file, which stays readable JSON."""
    try:
        length = struct.unpack("<Q", data[:8])[0]
        header = json.loads(data[8:8 + length])
        key = draw.choice([k for k, entry in header.items() if "shape" in entry])
    except (ValueError, struct.error, TypeError, AttributeError, IndexError, RecursionError):
        return flip(draw, data)  # damaged before
    entry, strange = header[key], draw.choice((-1, 0, 0.5, None, "x", [], {}, True, *NUMBERS))
    match draw.randrange(8):
        case 0:
            entry["dtype"] = draw.choice(("F64", "F16", "I8", "BOOL", "F8_E4M3", "F4", "C64", "F32x", "", None, 3))
        case 1:
            entry["shape"] = draw.choice(([], [strange], [1, strange], [1] * 99, [768, 4], [4, 96, 8], strange))
        case 2:
            entry["data_offsets"] = draw.choice(([0, strange], [strange, 4], [0, 0], [8, 4], [0], strange))
        case 3:
            header[draw.choice(("clip_l", "inst.x", "bundle_emb.a.clip_l", "", "a" * 1000, "\0"))] = header.pop(key)
        case 4:
            header["__metadata__"] = draw.choice((strange, {"inst.version": strange}, {"inst.version": "9"},
                                                  {"inst.layers": "x"}, {"a": {"b": "c"}}, {"a" * 9999: "b" * 9999}))
        case 5:
            header[key] = strange
        case 6:
            del header[key]
        case 7:
            entry[draw.choice(("shape", "dtype", "data_offsets"))] = "deep"
    depth = draw.choice((2, 100, 200_000))
    text = json.dumps(header).replace('"deep"', "[" * depth + "]" * depth)
    if draw.random() < 0.1:
        text = f"{text[:-1]}, {text[1:]}"  # every key twice
    return struct.pack("<Q", len(text)) + text.encode() + data[8 + length:]


def edit_records(draw: random.Random, data: bytes) -> bytes:
    """Damage inside a torch file: the pickle, a tensor, the list of records; sums and lengths are right again."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as old:
            records = [(item.filename, old.read(item)) for item in old.infolist()]
    except Exception:  # damaged before, or the old format
        records = []
    if not records:
        return flip(draw, data)
    damage = draw.choice((flip, flip, cut, lose, repeat, insert, write_number, nothing_left))
    chosen = draw.choice([n for n, (name, _) in enumerate(records) if name.endswith("data.pkl")] * 6
                         + list(range(len(records))))
    name, record = records[chosen]
    match draw.randrange(8):
        case 0:
            del records[chosen]
        case 1:
            records.append((name, record))
        case 2:
            records[chosen] = (draw.choice(("data.pkl", "a/data.pkl", "../../x", "archive/data/99", "x/")), record)
        case _:
            records[chosen] = (name, damage(draw, record) if record else b"x")
    stream, kind = io.BytesIO(), draw.choice((zipfile.ZIP_STORED,) * 5 + (zipfile.ZIP_DEFLATED,))
    with warnings.catch_warnings(), zipfile.ZipFile(stream, "w", kind) as new:
        warnings.simplefilter("ignore")  # the same name twice is meant
        for name, record in records:
            new.writestr(name or "x", record)
    return stream.getvalue()


def splice(draw: random.Random, data: bytes) -> bytes:
    """The head of one file and the tail of another."""
    other = draw.choice(style_files() + weight_files())
    return data[:draw.randrange(len(data))] + other[draw.randrange(len(other)):]


DAMAGES = (flip, flip_start, cut, lose, repeat, write_number, insert, nothing_left, splice)
KINDS = (
    ("style", ".safetensors", style_files, load_style, (*DAMAGES, *(edit_header,) * 6)),
    ("embeddings", ".pt", embeddings_files, load_embeddings, (*DAMAGES, *(edit_records,) * 8)),
    ("weights", ".pth", weight_files, read_weights, (*DAMAGES, *(edit_records,) * 5, *(edit_header,) * 2)),
)


def case(number: int) -> Case:
    """The damaged file of this number."""
    draw = random.Random(number)
    kind, suffix, files, read, damages = KINDS[number % len(KINDS)]
    whole = kind == "embeddings" and number % 100 == 1  # of the real size, 7 MB
    data = draw.choice(embeddings_files(768, 512)[:2] if whole else files())
    for _ in range(draw.choice((1, 1, 1, 2, 3))):
        if data:
            data = draw.choice(damages)(draw, data)
    return Case(f"{kind}_{number}{suffix}", data, read)


# ---- judgement ----

class Watch:
    """What the code did to the system since the last look; hooks cannot be taken out again."""

    def __init__(self):
        self.seen, self.on = [], False
        sys.addaudithook(self._hear)

    def _hear(self, event: str, arguments: tuple) -> None:
        if self.on and event.startswith(FORBIDDEN):
            self.seen.append(f"{event} {arguments}"[:200])


def judge(one: Case, folder: Path, watch: Watch) -> tuple[str, str | None]:
    """("read" or "refused", what is wrong about it or None)."""
    path = folder / one.name
    path.write_bytes(one.data)
    watch.seen, watch.on, outcome, fault = [], True, "read", None
    try:
        with PeakMemory("cpu") as memory:
            try:
                found = one.read(path)
            except ValueError as error:
                outcome = "refused"
                if type(error) is not ValueError or one.name not in str(error):
                    fault = f"{type(error).__name__} does not name the file: {error}"[:300]
            read_metadata(path)
    except Exception as error:  # the finding itself
        return "refused", f"{type(error).__name__}: {error}"[:300]
    finally:
        watch.on = False
        path.unlink()
    if watch.seen:
        fault = f"ran something: {watch.seen[0]}"
    elif memory.bytes is not None and memory.bytes > 2 * len(one.data) + SLACK:
        fault = f"took {memory.bytes / 2**20:.0f} MiB for a file of {len(one.data) / 2**20:.2f} MiB"
    elif outcome == "read" and isinstance(found, Style) and not _is_sound(found):
        fault = f"was read as {found.describe()}"
    return outcome, fault


def _is_sound(style: Style) -> bool:
    return bool(style.vectors) and all(
        v.ndim == 2 and v.dtype == torch.float32 and 1 <= len(v) <= MAX_TOKENS and torch.isfinite(v).all()
        for v in style.vectors.values())


def run(numbers: range, folder: Path) -> Iterator[tuple[int, str, str | None]]:
    """(number, outcome, fault) of every case; the files are made and deleted in ``folder``."""
    watch = Watch()
    for number in range(len(KINDS)):  # what the libraries load when they are first used is not the files'
        judge(Case(f"warm{number}", KINDS[number][2]()[0], KINDS[number][3]), folder, watch)
    for number in numbers:
        yield number, *judge(case(number), folder, watch)
