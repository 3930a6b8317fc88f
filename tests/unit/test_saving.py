"""Names of styles, their numbers, and where they go."""
import errno
import multiprocessing
import os
import random
import signal
import sys
import threading
import time
from dataclasses import replace

import pytest
import torch
from inst_pack.inst_core import saving
from inst_pack.inst_core.style import Style, load_style


def style(value: float = 1.0) -> Style:
    return Style({"clip_l": torch.full((1, 768), value)})


def save(name, *folders, searched=()):
    return saving.save_new(style(), name, folders, True, searched)


def names(folder):
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


@pytest.mark.parametrize("name", [
    # what a prompt takes for weights, choices, the next word, or the end of the name
    "Monet_(1872)", "style(1)", "style[v2]", "a{b|c}", "two words", "a\u3000b", "a\xa0b", "a\nb", "a,b", "a*", "a:1.2",
    "1889", "0", "1e3", "-5", "1.5", "٣", "1_000",
    # what is no place inside the folder, or no file on some system
    "../up", "a/../b", "/a", "a/", "a//b", "a\\b", "", " ", "..", ".hidden", "a/.b", "c:/a", "nul", "con/a", "a./b",
    # what nobody sees or can type
    "a\u200bb", "a\u202eb", "a\ud800", "\x00", "\x1b[0m",
    # what is too long in bytes, also in few characters
    "x" * 201, "星" * 80, "é" * 101,
])
def test_unusable_names_are_refused_with_one_that_works(name):
    with pytest.raises(ValueError, match="Expected a file name, also in folders") as refused:
        saving.check_name(name)
    suggested = str(refused.value).split("such as '")[1].split("'")[0]
    assert saving.check_name(suggested) == suggested
    assert len(str(refused.value)) < 500


@pytest.mark.parametrize("name", ["starry_night", "星月夜", "été-2", "v1.2", "1889_irises", "inf", "painters/monet",
                                  "Звёздная_ночь", "شب\u200cپرستاره", "🎨", "x" * 200, "星" * 66, "it's"])
def test_other_names_work(tmp_path, name):
    assert saving.check_name(name) == name
    assert f"embedding:{name}_00001" in save(name, tmp_path)
    load_style(tmp_path / f"{name}_00001.safetensors")


@pytest.mark.parametrize("typed, used", [("wave.safetensors", "wave"), (" wave\n", "wave"), ("a/w.SafeTensors", "a/w"),
                                         ("e\u0301te\u0301", "été"), ("wave.pt", "wave.pt")])
def test_what_is_typed_beside_the_name_is_dropped(tmp_path, typed, used):
    assert saving.check_name(typed) == used
    assert save(typed, tmp_path).startswith(f"{used}_00001.safetensors is saved; ")


def test_what_is_said_names_the_file_first_and_no_folder(tmp_path):
    assert save("wave", tmp_path) == "wave_00001.safetensors is saved; in any prompt it is embedding:wave_00001"


def test_no_title_in_the_header_contradicts_the_name_of_the_file(tmp_path):
    """Lists of models show the title where there is one, also when the file has been renamed since."""
    titled = replace(style(), metadata={"modelspec.title": "dune", "inst.text": "*"})
    saving.save_new(titled, "wave", [tmp_path], True)
    assert "modelspec.title" not in load_style(tmp_path / names(tmp_path)[0]).metadata


def test_numbers_go_on_after_the_highest(tmp_path):
    for _ in range(3):
        save("wave", tmp_path)
    save("wave_x", tmp_path)
    os.remove(tmp_path / "wave_00001.safetensors")
    assert save("wave", tmp_path).startswith("wave_00004.")
    (tmp_path / "wave_00123.safetensors").touch()
    assert save("wave", tmp_path).startswith("wave_00124.")
    (tmp_path / f"wave_{'9' * 40}.safetensors").touch()
    assert save("wave", tmp_path).startswith("wave_00125.")


@pytest.mark.parametrize("name, taken", [
    *(("wave", taken) for taken in ("wave_00007.safetensors", "wave_7.pt", "wave_007.bin", "wave_00007", "WAVE_7.PT",
                                    "Wave_00007.SafeTensors", "deep/er/wave_00007.safetensors")),
    ("wáve", "wa\u0301ve_00007.safetensors"), ("wáve", "WÁVE_00007.safetensors"), ("STRASSE", "straße_7.pt")])
def test_numbers_are_free_wherever_prompts_look(tmp_path, name, taken):
    """In every folder and subfolder, for every suffix that embedding: tries, whatever the case and Unicode form."""
    models, others = tmp_path / "models", tmp_path / "others"
    (others / taken).parent.mkdir(parents=True)
    (others / taken).touch()
    assert save(name, models, searched=[models, others]).startswith(f"{name}_00008.")
    assert save(f"sub/{name}", models, searched=[models, others]).startswith(f"sub/{name}_00009.")


def test_links_that_lead_in_circles_end(tmp_path):
    (tmp_path / "a").mkdir()
    os.symlink(tmp_path, tmp_path / "a" / "up", target_is_directory=True)
    assert save("wave", tmp_path).startswith("wave_00001.")


def without_links(*_):
    raise OSError(errno.EPERM, "Operation not permitted")


@pytest.mark.parametrize("linking", [os.link, without_links], ids=["hard links", "no hard links"])
def test_of_two_who_save_at_once_neither_loses_a_style(tmp_path, monkeypatch, linking):
    """Both look for a number before either has saved; threads stand for two servers on one folder."""
    monkeypatch.setattr("os.link", linking)
    meeting = threading.Barrier(2, timeout=20)
    look = saving._next_free

    def look_together(*arguments):
        found = look(*arguments)
        meeting.wait()
        return found

    monkeypatch.setattr(saving, "_next_free", look_together)
    said = []

    def save_twenty(value):
        said.extend(saving.save_new(style(value), "wave", [tmp_path], True) for _ in range(20))

    threads = [threading.Thread(target=save_twenty, args=(value,)) for value in (1.0, 2.0)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(said)) == len(names(tmp_path)) == 40
    found = [load_style(tmp_path / n).vectors["clip_l"][0, 0].item() for n in names(tmp_path)]
    assert sorted(found) == [1.0] * 20 + [2.0] * 20


def save_for_ever(folder) -> None:
    torch.set_num_threads(1)
    while True:
        save("wave", folder)


@pytest.mark.skipif(sys.platform != "linux", reason="forks")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_killed_at_random_points_no_broken_file_is_left(tmp_path):
    draw, context = random.Random(1), multiprocessing.get_context("fork")
    for _ in range(20):
        child = context.Process(target=save_for_ever, args=(tmp_path,))
        before = len(list(tmp_path.glob("*.safetensors")))
        child.start()
        while len(list(tmp_path.glob("*.safetensors"))) == before and child.is_alive():
            time.sleep(0.001)  # it works by now
        time.sleep(draw.random() * 0.03)
        os.kill(child.pid, signal.SIGKILL)
        child.join()
        assert child.exitcode == -signal.SIGKILL
    files = list(tmp_path.glob("*.safetensors"))
    assert len(files) >= 20 and all(load_style(path).tokens == 1 for path in files)


def test_a_style_that_cannot_be_saved_in_models_goes_elsewhere_and_says_so(tmp_path):
    models = tmp_path / "models"
    models.write_text("a file where the folder should be")
    output, temp = tmp_path / "output", tmp_path / "temp"
    text = save("wave", models / "inst_styles", output, searched=[output])
    assert text.startswith(f"wave_00001.safetensors is saved in {output}, because it could not be in {models}")
    assert text.endswith("embedding:wave_00001")
    assert save("wave", models / "inst_styles", temp, searched=[output]).endswith("Move the file there to keep it.")
    assert names(temp) == ["wave_00002.safetensors"]
    nowhere = save("wave", models / "inst_styles")
    assert "NOT SAVED" in nowhere and "on this node's output" in nowhere


def test_a_link_to_a_disk_that_is_gone_is_no_folder(tmp_path):
    """mkdir says that it exists already, as if the name of the style were taken."""
    gone = tmp_path / "styles"
    gone.symlink_to(tmp_path / "unplugged")
    text = save("wave", gone, tmp_path / "output")
    assert text.startswith(f"wave_00001.safetensors is saved in {tmp_path / 'output'}, because it could not be in")
    assert "a link to a folder that is gone" in text


@pytest.mark.parametrize("step", ["os.fsync", "os.link", "pathlib.Path.mkdir"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EIO, errno.ENAMETOOLONG])
def test_a_fault_at_any_step_leaves_nothing_and_the_style_elsewhere(tmp_path, monkeypatch, step, code):
    broken, whole = tmp_path / "broken", tmp_path / "whole"
    real = {"os.fsync": os.fsync, "os.link": os.link, "pathlib.Path.mkdir": os.makedirs}[step]
    faults = iter([OSError(code, os.strerror(code))])

    def fail_once(*arguments, **options):
        if fault := next(faults, None):
            raise fault
        return real(arguments[0], exist_ok=True) if step.endswith("mkdir") else real(*arguments)

    monkeypatch.setattr(step, fail_once)
    if step == "os.link":  # where there are no links the name is reserved instead, and that fails too
        monkeypatch.setattr("os.replace", without_links)
    text = save("wave", broken, whole)
    assert text.startswith(f"wave_00001.safetensors is saved in {whole}") or step == "os.link"
    assert names(broken) == [] if broken.exists() else True
    assert names(whole) == ["wave_00001.safetensors"]


def test_a_style_with_nan_is_refused_and_not_written(tmp_path):
    with pytest.raises(ValueError, match="NaN"):
        saving.save_new(style(float("nan")), "wave", [tmp_path], True)
    assert names(tmp_path) == []


@pytest.mark.parametrize("name, file, used", [
    ("auto", "starry_night.jpg", "starry_night"), (" auto ", "Nacht am Fluß (1).png", "Nacht_am_Fluß_1"),
    ("auto", "夕暮れ.webp", "夕暮れ"), ("auto", "001.jpg", "style_001"), ("auto", "con.png", "con_"),
    ("auto", "a, b: {c}.jpg", "a_b_c"), ("auto", "x" * 250 + ".jpg", "x" * 100), ("auto", "....jpg", "style"),
    ("auto", None, "style"), ("auto", "", "style"), ("monet", "starry_night.jpg", "monet"),
    ("style", "starry_night.jpg", "style")])
def test_a_style_is_called_as_typed_or_as_its_painting(name, file, used):
    assert saving.choose_name(name, file) == saving.check_name(used) == used


def load(file: str, kind: str = "LoadImage") -> dict:
    return {"class_type": kind, "inputs": {"image": file}}


@pytest.mark.parametrize("behind, found", [
    ({"1": load("monet.jpg")}, "monet.jpg"),
    ({"1": load("painters/monet.jpg [output]", "LoadImageOutput")}, "monet.jpg"),
    ({"1": load(["3", 0], "ImageScale"), "3": load("a.b.png [input]")}, "a.b.png"),
    ({"1": load("clipspace/clipspace-painted-masked-17.png [input]")}, None),
    ({"1": load("aGVsbG8=", "LoadImageFromText")}, None),
    ({"1": {"class_type": "VAEDecode", "inputs": {"samples": ["0", 0]}}}, None),
    ({"1": {"class_type": "BatchImagesNode", "inputs": {"images.image0": ["0", 0]}}}, None),
    ({"1": load(["5:2", 0], "ImageScale")}, None),  # round and round
    ({}, None), ({"5:2": {}}, None)])
def test_the_file_of_a_painting_is_found_behind_nodes_that_change_it(behind, found):
    assert saving.file_behind({"5:2": load(["1", 0], "InST_LearnStyle"), **behind}, "5:2") == found
    assert saving.file_behind({}, "5:2") is saving.file_behind(None, "5:2") is None
