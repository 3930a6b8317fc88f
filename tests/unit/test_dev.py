"""tools/dev.py: what it refuses, that steps are done once, and that what it starts is ended."""
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import dev
import pytest

posix = pytest.mark.skipif(os.name == "nt", reason="signals are sent")


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.setattr(dev, "DEV", tmp_path)
    monkeypatch.setattr(dev, "VENV", tmp_path / "venv")
    monkeypatch.setattr(dev, "HOME", tmp_path / "home")
    monkeypatch.setattr(dev, "LOG", tmp_path / "log")
    monkeypatch.delenv("COMFYUI_PATH", raising=False)


def test_a_step_is_done_again_after_a_failure_a_change_or_a_loss(tmp_path):
    made, done = tmp_path / "made", []

    def step(*recipe, work=made.touch):
        done.clear()
        dev.once("step", *recipe, makes=made, do=lambda: (done.append(1), work()))
        return bool(done)

    with pytest.raises(ZeroDivisionError):
        step("a", work=lambda: 1 / 0)
    assert [step("a"), step("a"), step("b"), step("b")] == [True, False, True, False]
    made.unlink()
    assert [step("b"), step("b")] == [True, False]
    with pytest.raises(ZeroDivisionError):
        step("c", work=lambda: 1 / 0)
    assert step("b")  # what the failed step left may be half of c


def test_a_busy_port_is_named():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(dev.SetupError, match=f"port {port} is in use"):
            dev.free_port(port)


@pytest.mark.parametrize("version", [(3, 9, 18), (3, 15, 0)])
def test_a_python_without_pytorch_is_named(monkeypatch, version):
    monkeypatch.setattr(dev.sys, "version_info", version)
    with pytest.raises(dev.SetupError, match="3.10 to 3.14 is needed"):
        dev.check_machine()


def test_a_full_disk_is_named(monkeypatch):
    monkeypatch.setattr(dev.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 2**30}))
    with pytest.raises(dev.SetupError, match="1.0 GiB are free"):
        dev.check_machine()


def test_a_wrong_comfyui_path_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("COMFYUI_PATH", str(tmp_path))
    with pytest.raises(dev.SetupError, match="no main.py"):
        dev.host()


def test_a_failing_command_shows_what_it_said_and_a_hint():
    with pytest.raises(dev.SetupError, match="trying failed:\nout of cheese\nbuy some"):
        dev.run(sys.executable, "-c", "print('out of cheese'); raise SystemExit(3)", what="trying", hint="buy some")


def test_uv_is_told_the_index_that_pip_uses(monkeypatch):
    monkeypatch.delenv("UV_DEFAULT_INDEX", raising=False)
    monkeypatch.delenv("UV_INDEX_URL", raising=False)
    monkeypatch.setenv("PIP_INDEX_URL", "https://index.invalid/simple")
    assert dev.index_for_uv() == {"UV_DEFAULT_INDEX": "https://index.invalid/simple"}
    monkeypatch.setenv("UV_INDEX_URL", "https://other.invalid/simple")
    assert dev.index_for_uv() == {}


def test_a_wrong_option_is_refused_before_anything_is_set_up(tmp_path):
    for options, said in ((["demo", "--content", "gone.jpg"], "there is no file gone.jpg"),
                          (["serve", "--prot", "1"], "unknown arguments: --prot 1"),
                          (["demo", "--help"], "--clip-vision")):
        done = subprocess.run([sys.executable, dev.TOOLS / "dev.py", *options], capture_output=True, text=True,
                              cwd=tmp_path, timeout=30)
        assert said in done.stdout + done.stderr and "[dev]" not in done.stdout


def test_paths_for_pytest_are_those_of_the_callers_folder(tmp_path, monkeypatch):
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_a.py").touch()
    (tmp_path / "golden").mkdir()
    monkeypatch.chdir(tmp_path)
    whole = str(tmp_path / "tests" / "test_a.py")
    assert [dev._absolute(o) for o in ("tests/test_a.py", "tests/test_a.py::test_b", "-k", "golden", "tests/gone.py")] \
        == [whole, f"{whole}::test_b", "-k", "golden", "tests/gone.py"]


def fake_comfyui(folder: Path, code: str) -> Path:
    """A main.py that takes ComfyUI's place; its process id goes into the file ``pid``."""
    note = f"import os, sys\nopen({str(folder / 'pid')!r}, 'w').write(str(os.getpid()))\n"
    (folder / "main.py").write_text(note + code)
    dev.HOME.mkdir(exist_ok=True)
    return folder


def test_a_server_that_dies_is_reported(tmp_path):
    comfyui = fake_comfyui(tmp_path, "print('no such module'); raise SystemExit(1)")
    with pytest.raises(dev.SetupError, match="did not start:\nno such module"), \
            dev.server(comfyui, Path(sys.executable)):
        pass


ANSWER = """
import http.server
class Ready(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers()
http.server.HTTPServer(("127.0.0.1", int(sys.argv[sys.argv.index("--port") + 1])), Ready).serve_forever()
"""


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    status = Path(f"/proc/{pid}/stat")
    return not status.exists() or status.read_text().rsplit(")")[-1].split()[0] != "Z"


def ends(pid: int) -> bool:
    end = time.monotonic() + 20
    while alive(pid) and time.monotonic() < end:
        time.sleep(0.05)
    return not alive(pid)


@posix
def test_the_server_ends_with_its_block_whatever_happens_in_it(tmp_path):
    comfyui = fake_comfyui(tmp_path, ANSWER)
    for accident in (KeyboardInterrupt, SystemExit, ValueError):
        with pytest.raises(accident), dev.server(comfyui, Path(sys.executable)) as running:
            raise accident
        assert running.process.returncode is not None and ends(int((tmp_path / "pid").read_text()))


SERVE = """
import sys
from pathlib import Path
sys.path.append(sys.argv[1])
import dev
folder = Path(sys.argv[2])
dev.DEV, dev.HOME, dev.LOG = folder, folder / "home", folder / "log"
dev.setup = lambda: (folder, Path(sys.executable))
sys.argv[1:] = ["serve"]
sys.exit(dev.main())
"""


@posix
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_the_server_ends_however_we_are_ended(tmp_path, how):
    fake_comfyui(tmp_path, ANSWER)
    process = subprocess.Popen([sys.executable, "-c", SERVE, dev.TOOLS, tmp_path], stdout=subprocess.PIPE, text=True)
    with process:
        assert any("ComfyUI is at" in line for line in process.stdout)
        process.send_signal(how)
        process.wait(20)
    assert ends(int((tmp_path / "pid").read_text()))


def test_the_pack_is_linked_and_linking_again_is_fine():
    dev.link_pack()
    dev.link_pack()
    assert (dev.HOME / "custom_nodes" / "ComfyUI-InST").resolve() == dev.ROOT


@posix
def test_chromium_is_installed_where_we_may_and_hinted_at_elsewhere(monkeypatch, tmp_path, capsys):
    calls = tmp_path / "calls"
    (tmp_path / "apt-get").write_text(f'#!/bin/sh\necho "$@" >> {calls}\n')
    (tmp_path / "apt-get").chmod(0o755)
    monkeypatch.delenv("INST_CHROMIUM", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(dev.os, "geteuid", lambda: 1000)
    dev.install_chromium()
    assert "apt-get install chromium" in capsys.readouterr().out and not calls.exists()
    monkeypatch.setattr(dev.os, "geteuid", lambda: 0)
    dev.install_chromium()
    assert calls.read_text().splitlines() == ["update", "install -y --no-install-recommends chromium"]
    (tmp_path / "apt-get").write_text("#!/bin/sh\necho no such package; exit 100\n")
    dev.install_chromium()
    assert "no such package\nThe browser tests are skipped" in capsys.readouterr().out.replace("\n\n", "\n")
    monkeypatch.setenv("INST_CHROMIUM", "mine")
    dev.install_chromium()
    assert dev.chromium() == "mine" and len(calls.read_text().splitlines()) == 2


def test_without_a_whole_demo_model_the_demo_runs_the_untrained_one_and_says_so(tmp_path, monkeypatch, capsys):
    laboratory = tmp_path / "tools" / "demo_model"
    laboratory.mkdir(parents=True)
    for name in ("checkpoint", "text", "widen"):
        (laboratory / f"{name}.py").touch()
    (laboratory / "__main__.py").write_text("print('the file is cut'); raise SystemExit(1)")
    old = tmp_path / "models" / "checkpoints" / "inst-demo.safetensors"
    old.parent.mkdir(parents=True)
    old.touch()  # of another version: it must not run in place of the one that is broken
    monkeypatch.setattr(dev, "TOOLS", tmp_path / "tools")
    for _ in range(2):  # tried again at the next call
        dev.demo_model(tmp_path / "models", Path(sys.executable))
        said = capsys.readouterr().out
        assert "the file is cut" in said and "small untrained checkpoint" in said
        assert not old.exists()


def test_small_models_stand_in_for_what_templates_name_and_for_nothing_that_is_there(tmp_path):
    for name in ("checkpoints/inst-demo.safetensors", "loras/inst-small-lora.safetensors",
                 "loras/add_detail.safetensors"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    for _ in range(2):
        dev.stand_in(tmp_path)
    assert (tmp_path / "checkpoints/v1-5-pruned-emaonly-fp16.safetensors").read_text().endswith("inst-demo.safetensors")
    assert (tmp_path / "loras/add_detail.safetensors").read_text() == "loras/add_detail.safetensors"
    assert not (tmp_path / "controlnet").exists()
