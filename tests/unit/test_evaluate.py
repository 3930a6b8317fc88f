"""tools/evaluate.py: an interrupted and resumed run gives what an uninterrupted one gives."""
import argparse
import csv
import shutil
from pathlib import Path

import evaluate
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """AlexNet with LPIPS heads, and the first layers of CAST, from a seed."""
    from inst_core.methods import RECIPES
    from inst_core.metrics import alexnet, lpips

    folder, generator = tmp_path_factory.mktemp("models") / "style_transfer", torch.Generator().manual_seed(0)
    folder.mkdir()

    def filled(shapes):
        return {k: torch.randn(s, generator=generator) / max(1, torch.Size(s[1:]).numel()) ** 0.5
                for k, s in shapes.items()}

    save_file(filled(alexnet.shapes()) | {k: v.abs() for k, v in filled(lpips.HEADS).items()},
              folder / "lpips-alex.safetensors")
    for part in next(recipe for recipe in RECIPES if recipe.name == "CAST").parts:
        torch.save(filled(part.shapes()), folder / part.file)
    (folder / "notes.pth").write_bytes(b"no weights")
    return folder.parent


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Two photographs and two paintings, of different sizes."""
    home, generator = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for kind, size in (("contents", (40, 56)), ("styles", (64, 48))):
        (home / kind).mkdir()
        for name in "ab":
            small = Image.fromarray(generator.integers(0, 255, (6, 6, 3), np.uint8))
            small.resize(size, Image.Resampling.BICUBIC).save(home / kind / f"{name}.png")
    return home


@pytest.fixture()
def run(models, pictures, capsys):
    def run(output: Path, *more: str) -> tuple[int, str]:
        parser = argparse.ArgumentParser()
        evaluate.add_arguments(parser)
        status = evaluate.main(parser.parse_args([
            "--contents", str(pictures / "contents"), "--styles", str(pictures / "styles"), "--output", str(output),
            "--models", str(models), "--size", "40", "--device", "cpu", *more]))
        said = capsys.readouterr()
        return status, said.out + said.err
    return run


def tables(folder: Path) -> dict[str, bytes]:
    names = "metrics.csv", "means.csv", "means.md", "sheet.jpg"
    return {name: (folder / name).read_bytes() for name in names}


def test_resumed_is_uninterrupted(run, tmp_path, monkeypatch):
    status, said = run(tmp_path / "whole")
    assert status == 0 and "| CAST" in said and "left out: notes.pth" in said

    original, painted = evaluate.FeedForward.__call__, []

    def interrupted(self, *pair):
        painted.append(1)
        if len(painted) == 3:
            raise KeyboardInterrupt
        return original(self, *pair)

    with monkeypatch.context() as patch:
        patch.setattr(evaluate.FeedForward, "__call__", interrupted)
        assert run(tmp_path / "half")[0] == 130
    assert not (tmp_path / "half" / "metrics.csv").exists()
    record = tmp_path / "half" / "pairs" / "cast" / "a__a.json"
    record.write_text(record.read_text()[:20])  # as if the power had gone
    kept = (tmp_path / "half" / "pairs" / "cast" / "b__a.json").stat().st_mtime_ns

    def counted(self, *pair):
        painted.append(1)
        return original(self, *pair)

    monkeypatch.setattr(evaluate.FeedForward, "__call__", counted)
    painted.clear()
    assert run(tmp_path / "half")[0] == 0
    assert len(painted) == 3  # the damaged one and the two that were not reached
    assert (tmp_path / "half" / "pairs" / "cast" / "b__a.json").stat().st_mtime_ns == kept
    assert tables(tmp_path / "half") == tables(tmp_path / "whole")
    assert not list((tmp_path / "half").rglob("*.part"))

    rows = list(csv.DictReader((tmp_path / "whole" / "metrics.csv").open()))
    cast = [row for row in rows if row["method"] == "CAST"]
    assert [(row["content"], row["style"]) for row in cast] == [("a", "a"), ("b", "a"), ("a", "b"), ("b", "b")]
    means = {row["method"]: row for row in csv.DictReader((tmp_path / "whole" / "means.csv").open())}
    assert float(means["CAST"]["lpips"]) == pytest.approx(sum(float(row["lpips"]) for row in cast) / 4)
    assert float(means["copy of content"]["lpips"]) == 0
    assert "| CAST" in (tmp_path / "whole" / "cost.md").read_text()

    copied, unrelated = (np.asarray(Image.open(tmp_path / "whole" / "pictures" / name)).astype(int)
                         for name in ("copy-of-content/b__a.png", "unrelated-picture/a__a.png"))
    assert abs(copied - unrelated).max() <= 1  # the unrelated picture is the next content

    status, said = run(tmp_path / "whole", "--square")
    assert status == 1 and "run.json is of a run with other pictures or settings" in said


@pytest.mark.parametrize("more, message", [
    (["--methods", "gatys"], "gatys: not here. Methods with weight files: CAST"),
    (["--preset", "styleid"], "has 20 contents and 40 styles; the folders hold 2 and 2"),
    (["--models", "nowhere"], "lpips-alex.safetensors is not in"),
    (["--contents", "nowhere"], "nowhere is not a folder"),
    (["--workflow", f"other={__file__}"], "--workflow needs --server"),
    (["--server", "http://127.0.0.1:9", "--methods", "inst"], "No ComfyUI answers at http://127.0.0.1:9"),
])
def test_what_is_missing_is_said_before_anything_is_made(run, tmp_path, more, message):
    status, said = run(tmp_path / "out", *more)
    assert status == 1 and message in said and not (tmp_path / "out").exists()


def test_other_weights_are_other_settings_and_a_servers_memory_is_not_ours(models, tmp_path):
    shutil.copytree(models, tmp_path / "models")
    (tmp_path / "workflow.json").write_text("{}")
    options = argparse.Namespace(workflow={"other": tmp_path / "workflow.json"}, server="http://nowhere", gatys_steps=1,
                                 gatys_style_weight=1.0)

    def found():
        library = evaluate.Library(tmp_path / "models" / "style_transfer")
        return evaluate.available(library, options, torch.device("cpu"))

    before = found()
    file = tmp_path / "models" / "style_transfer" / "latest_net_Dec_B.pth"
    size, held = file.stat().st_size, torch.load(file)
    file.unlink()  # opened files stay as they are
    torch.save({key: tensor + 1 for key, tensor in held.items()}, file)
    assert file.stat().st_size == size and found()["CAST"].settings != before["CAST"].settings
    assert before["other"].remote and not before["CAST"].remote


def test_the_presets_size():
    options = argparse.Namespace(size=64, square=False)
    evaluate.apply_styleid(options, 20, 40)
    assert options.size == 512 and options.square


def test_pictures_are_opened_at_the_size_asked_for(pictures, tmp_path):
    path = pictures / "contents" / "a.png"
    assert evaluate.open_picture(path, 20).shape == (1, 3, 28, 20)
    assert evaluate.open_picture(path, 20, square=True).shape == (1, 3, 20, 20)
    assert evaluate.open_picture(path).shape == (1, 3, 56, 40)
    for name in ("x.png", "x.jpg"):
        Image.new("RGB", (4, 4)).save(tmp_path / name)
    with pytest.raises(evaluate.EvaluationError, match=r"x\.jpg and x\.png in .* have the same name"):
        evaluate.pictures_in(tmp_path)
