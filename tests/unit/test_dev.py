"""tools/dev.py: what it refuses, and that steps are done once."""
import socket
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).resolve().parents[2] / "tools"))
import dev  # noqa: E402


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.setattr(dev, "DEV", tmp_path)
    monkeypatch.setattr(dev, "VENV", tmp_path / "venv")
    monkeypatch.setattr(dev, "HOME", tmp_path / "home")
    monkeypatch.delenv("COMFYUI_PATH", raising=False)


def test_a_step_is_done_once_per_recipe_and_again_when_it_failed_or_its_product_is_gone(tmp_path):
    product = tmp_path / "product"

    def due(*recipe, fail=False):
        with dev.once("step", *recipe, makes=product) as needed:
            if fail:
                raise dev.SetupError("no")
            if needed:
                product.touch()
        return needed

    with pytest.raises(dev.SetupError):
        due("a", fail=True)
    assert [due("a"), due("a"), due("b"), due("b")] == [True, False, True, False]
    product.unlink()
    assert due("b")
    with pytest.raises(dev.SetupError):
        due("c", fail=True)
    assert due("b")  # what a failed step left behind is not trusted


def test_a_busy_port_is_named():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(dev.SetupError, match=f"port {port} is in use"):
            dev.free_port(port)


def test_an_old_python_and_a_full_disk_are_named(monkeypatch):
    monkeypatch.setattr(dev.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 2**30}))
    with pytest.raises(dev.SetupError, match="1.0 GiB are free"):
        dev.check_machine()
    monkeypatch.setattr(dev.sys, "version_info", (3, 9))
    with pytest.raises(dev.SetupError, match="3.10 to 3.14 is needed"):
        dev.check_machine()


def test_a_wrong_comfyui_path_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("COMFYUI_PATH", str(tmp_path))
    with pytest.raises(dev.SetupError, match="no main.py"):
        dev.host()


def test_a_failing_command_shows_what_it_said():
    with pytest.raises(dev.SetupError, match="trying failed:\nout of cheese"):
        dev.run(sys.executable, "-c", "print('out of cheese'); raise SystemExit(3)", what="trying")


def test_a_server_that_dies_is_reported_and_ended(tmp_path, monkeypatch):
    main = tmp_path / "main.py"
    main.write_text("print('no such module'); raise SystemExit(1)")
    dev.HOME.mkdir()
    monkeypatch.setattr(dev, "LOG", tmp_path / "log")
    with pytest.raises(dev.SetupError, match="did not start:\nno such module"), \
            dev.server(tmp_path, Path(sys.executable)):
        pass


def test_the_pack_is_linked_and_linking_again_is_fine():
    dev.link_pack()
    dev.link_pack()
    assert (dev.HOME / "custom_nodes" / "ComfyUI-InST").resolve() == dev.ROOT
