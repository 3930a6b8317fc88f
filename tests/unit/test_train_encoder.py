"""Training of the encoder: its sources in their real layouts, and what every process sees.

Readers of parquet files and the loop need the packages of the dependency group ``train``.
"""
import importlib.util
import io
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT))
from train_encoder import cache, judge, plan, sources  # noqa: E402

from inst_core import guessing  # noqa: E402

needs_datasets = pytest.mark.skipif(importlib.util.find_spec("datasets") is None,
                                    reason="needs the packages of the dependency group 'train'")

needs_training = pytest.mark.skipif(
    not all(importlib.util.find_spec(name) for name in ("accelerate", "datasets", "torchdata", "tensorboard")),
    reason="needs the packages of the dependency group 'train'")


def encoded(mode: str = "RGB", size: tuple[int, int] = (64, 48), format_: str = "JPEG") -> bytes:
    stream = io.BytesIO()
    Image.new(mode, size, 100).save(stream, format_)
    return stream.getvalue()


PICTURES = {"rgb": encoded(), "grey": encoded("L"), "cmyk": encoded("CMYK"), "palette": encoded("P", format_="PNG"),
            "huge": encoded("L", (20_000, 40)), "cut": encoded(format_="PNG")[:60], "empty": b"", "text": b"no picture",
            "tiny": encoded(size=(3, 3))}
LEFT_OUT = {"cut": "damaged", "empty": "empty", "text": "damaged", "tiny": "too small"}


def test_pictures_of_every_kind_are_opened_or_left_out_for_a_reason():
    for name, data in PICTURES.items():
        if name in LEFT_OUT:
            with pytest.raises(sources.Unusable, match=LEFT_OUT[name]):
                sources.opened({"bytes": data}, 64)
        else:
            assert sources.opened({"bytes": data}, 64).mode == "RGB"
    for missing in (None, {"bytes": None, "path": None}, Path("nowhere.jpg")):
        with pytest.raises(sources.Unusable, match="missing"):
            sources.opened(missing, 64)


def test_a_large_jpeg_is_read_smaller_but_not_below_what_is_needed():
    assert min(sources.opened({"bytes": encoded(size=(2400, 1600))}, 256).size) in range(256, 1600)


def test_pillow_keeps_its_own_limit(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    assert sources.opened({"bytes": PICTURES["rgb"]}, 64) and Image.MAX_IMAGE_PIXELS == 10


@needs_datasets
def test_wikiart_goes_through_the_real_reader(tmp_path):
    """huggan/wikiart's layout: class labels for artist, genre and style, pictures as bytes."""
    import pyarrow as pa
    from datasets import ClassLabel, Features, Value
    from datasets import Image as ImageFeature
    from pyarrow import parquet

    artists = ClassLabel(names=["Unknown Artist", "katsushika-hokusai"])
    styles = ClassLabel(names=["Ukiyo_e", "Romanticism"])
    rows = {"image": [{"bytes": data, "path": f"{name}.jpg"} for name, data in PICTURES.items()] + [None],
            "artist": [1] * len(PICTURES) + [0], "genre": ["landscape"] * (len(PICTURES) + 1),
            "style": [0] * (len(PICTURES) + 1)}
    features = Features({"image": ImageFeature(), "artist": artists, "genre": Value("string"), "style": styles})
    parquet.write_table(pa.table(rows, schema=features.arrow_schema), tmp_path / "train-00000-of-00001.parquet")
    skipped = Counter()
    found = list(sources.wikiart([str(tmp_path / "train-00000-of-00001.parquet")], skipped=skipped))
    assert len(found) == len(PICTURES) - len(LEFT_OUT)
    assert skipped == {"damaged": 2, "empty": 1, "too small": 1, "missing": 1}
    assert {e.group for e in found} == {"katsushika-hokusai | Ukiyo e"}
    assert {e.context for e in found} == {"Ukiyo e, landscape"}
    parts = [list(sources.wikiart([str(tmp_path / "train-00000-of-00001.parquet")], rank, 2)) for rank in (0, 1)]
    assert len(parts[0]) + len(parts[1]) == len(found) and parts[0] and parts[1]


def test_the_context_of_the_other_wikiart_layouts():
    row = {"artistName": "Claude Monet", "completitionYear": 1872, "period": {"title": "Argenteuil"},
           "media": ["oil", "canvas"], "styles": ["Impressionism"], "genres": ["marina"], "style": None}
    assert sources.context_of(row) == "Impressionism, oil, canvas, Argenteuil, marina, 1872"
    assert sources.first_of(row, sources.ARTIST) == "Claude Monet"
    assert sources.words("Unknown_Artist") == "" and sources.words(None) == ""


def test_sharegpt4v_goes_through_the_real_reader(tmp_path):
    (tmp_path / "coco/train2017").mkdir(parents=True)
    (tmp_path / "wikiart/images").mkdir(parents=True)
    (tmp_path / "coco/train2017/000000000009.jpg").write_bytes(PICTURES["cmyk"])
    (tmp_path / "wikiart/images/claude-monet_sunrise.jpg").write_bytes(PICTURES["grey"])
    (tmp_path / "coco/train2017/000000000025.jpg").write_bytes(b"")

    def record(image: str, said: str) -> dict:
        return {"id": image, "image": image, "conversations": [{"from": "human", "value": "<image>\nWhat is it?"},
                                                               {"from": "gpt", "value": said}]}

    records = [record("coco/train2017/000000000009.jpg", "Some plates."), {"id": "text only", "conversations": []},
               record("wikiart/images/claude-monet_sunrise.jpg", "A harbour."),
               record("coco/train2017/000000000025.jpg", "A giraffe."), record("coco/train2017/none.jpg", "Nothing.")]
    (tmp_path / "share.json").write_text(json.dumps(records))
    skipped = Counter()
    found = list(sources.sharegpt4v(tmp_path / "share.json", tmp_path, skipped=skipped))
    assert [(e.caption, e.group) for e in found] == [("Some plates.", ""), ("A harbour.", "claude-monet")]
    assert skipped == {"empty": 1, "missing": 1}


def test_a_folder_of_pictures_with_captions(tmp_path):
    (tmp_path / "monet").mkdir()
    for name in ("monet/a.jpg", "monet/b.png", "c.JPG"):
        (tmp_path / name).write_bytes(PICTURES["rgb"])
    (tmp_path / "monet/a.txt").write_text("a pond\n")
    found = list(sources.folder(tmp_path))
    assert [(e.group, e.caption) for e in found] == [("", ""), ("monet", "a pond"), ("monet", "")]


@pytest.mark.parametrize("world", [2, 3])
def test_all_processes_together_see_what_one_sees(world):
    """In every step, also beyond the end of an epoch."""
    batch, steps = 6, 5
    alone = [*itertools.islice(cache.Order(17, 3, 0, 1), batch * steps)]
    parts = [[*itertools.islice(cache.Order(17, 3, rank, world), batch // world * steps)] for rank in range(world)]
    for step in range(steps):
        each = batch // world
        together = [item for part in parts for item in part[each * step:each * (step + 1)]]
        assert sorted(together) == alone[batch * step:batch * (step + 1)]
    assert sorted(i for _, i in alone[:17]) == list(range(17)) != [i for _, i in alone[:17]]


class Engine:
    """Stands for a model that encodes pictures."""

    def encode(self, pictures: torch.Tensor) -> torch.Tensor:
        return pictures.mean((1, 2)).view(-1, 3, 1, 1).expand(-1, 3, 4, 4)


@needs_datasets
def test_a_sample_is_told_by_another_picture_of_its_style_and_depends_on_its_number_alone(tmp_path):
    import pyarrow as pa
    from pyarrow import parquet

    def look(image: torch.Tensor) -> torch.Tensor:
        return image.mean((1, 2))

    def row(i: int, group: str) -> dict:
        picture = Image.fromarray(np.full((40, 40, 3), 20 * i, np.uint8))
        return cache.row_of(sources.Example(picture, group), i, Engine(), look, 32)

    (tmp_path / "cache").mkdir()
    rows = [row(0, "monet"), row(1, "monet"), row(2, ""), row(3, "")]
    parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "cache" / "0.parquet")
    cached = cache.Cached(tmp_path, seed=1)
    assert len(cached) == 4 and len(cached.groups) == 3
    for i, told_by in ((0, 1), (1, 0), (2, 2), (3, 3)):
        sample = cached[7, i]
        assert torch.allclose(sample["seen"], torch.full((3,), 20 * told_by / 255), atol=1e-3)
        assert torch.allclose(sample["own"], torch.full((3,), 20 * i / 255), atol=1e-3)
        assert torch.equal(sample["noise"], cached[7, i]["noise"])
        assert not torch.equal(sample["noise"], cached[8, i]["noise"])
    assert torch.allclose(cache.Cached(tmp_path, 1, same=True)[7, 0]["seen"], torch.zeros(3))


def test_retrieval_and_distances_of_words_that_are_known():
    words = torch.tensor([[0.0, 0], [0, 1], [5, 0], [5, 1], [9, 9], [9, 8]])
    within, between, found = judge.distances(words, torch.tensor([0, 0, 1, 1, 2, 2]))
    assert (within, found) == (1.0, 1.0) and between > 4
    assert judge.distances(words, torch.tensor([0, 1, 0, 1, 2, 2]))[2] == pytest.approx(1 / 3)


def launched(processes: int, folder: Path, run: str) -> subprocess.Popen:
    """``accelerate launch`` of the training on a CPU, as docs/guessing.md has it."""
    several = ["--multi_gpu"] if processes > 1 else []
    command = [sys.executable, "-m", "accelerate.commands.launch", *several, "--num_processes", str(processes),
               "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0",
               str(ROOT / "tools" / "train_encoder"), "train", "--cpu", "--folder", str(folder), "--run", run,
               "--steps", "120", "--keep-every", "20", "--batch", "4", "--leakage", "0.1", "--tokens", "1"]
    return subprocess.Popen(command, start_new_session=True, env={**os.environ, "OMP_NUM_THREADS": "1"})


def lines(folder: Path, run: str) -> list[dict]:
    log = folder / run / "log.jsonl"
    return [json.loads(line) for line in log.read_text().splitlines() if line.endswith("}")] if log.exists() else []


@needs_training
def test_two_processes_killed_and_resumed_see_and_say_what_one_does(tmp_path):
    """Batches and losses, to rounding, of a run that nothing happened to."""
    import pyarrow as pa
    from pyarrow import parquet

    def random(*shape: int) -> bytes:
        return cache.stored(torch.randn(*shape, generator=generator))

    generator = torch.Generator().manual_seed(0)
    rows = [{"group": f"artist {i // 2}", "caption": "", "context": "", "latent": random(4, 8, 8), "shape": [4, 8, 8],
             "seen": random(cache.VIEWS, guessing.FEATURES["alexnet"]), "words": random(768)} for i in range(14)]
    (tmp_path / "cache").mkdir()
    parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "cache" / "0.parquet")

    alone = launched(1, tmp_path, "alone")
    assert alone.wait() == 0
    killed = launched(2, tmp_path, "two")
    while len(lines(tmp_path, "two")) < 50:
        assert killed.poll() is None
        time.sleep(0.01)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.wait()
    assert len(lines(tmp_path, "two")) < 120
    assert launched(2, tmp_path, "two").wait() == 0
    one, two = lines(tmp_path, "alone"), lines(tmp_path, "two")
    assert [line["step"] for line in two] == list(range(1, 121))
    assert [line["rows"] for line in two] == [line["rows"] for line in one]
    assert len({tuple(line["rows"]) for line in one}) > 100
    for a, b in zip(one, two, strict=True):
        assert b["loss"] == pytest.approx(a["loss"], rel=1e-4)
    assert guessing.load(tmp_path / "two.safetensors").about.tokens == 1


def test_the_plan_counts_multiplications_and_what_backward_keeps():
    """Of a layer on the way to what is learned: forward and backward to its input, no gradient of its weights."""
    with torch.device("meta"):
        layer = plan.frozen(torch.nn.Linear(8, 4)).bfloat16()
    flops, kept = plan.counted(lambda: layer(plan.empty(3, 8, learned=True)).sin())
    assert flops == 2 * (2 * 3 * 8 * 4) and kept == 3 * 4 * 2  # the sine keeps its argument, in two bytes a number
    assert plan.counted(lambda: layer(plan.empty(3, 8)))[0] == 2 * 3 * 8 * 4


def test_a_batch_that_cannot_be_shared_is_refused():
    pytest.importorskip("accelerate", reason="needs the packages of the dependency group 'train'")
    pytest.importorskip("torchdata")
    from train_encoder.training import shared_share

    assert shared_share(SimpleNamespace(batch=12, accumulate=2), 3) == 2
    with pytest.raises(ValueError, match="--batch is 10, which 3 processes"):
        shared_share(SimpleNamespace(batch=10, accumulate=1), 3)
