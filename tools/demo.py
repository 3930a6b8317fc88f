"""The main job, once: a painting and a photograph go in, one picture (content | style | result) comes out.

Called by ``tools/dev.py demo`` with a running server.  It runs the shipped workflow itself, with other files and
numbers in its widgets.  Without a checkpoint there is a fourth picture: what Gatys' method makes of the same two with
the real weights of VGG-16.
"""
import argparse
import contextlib
import json
import os
import shutil
import sys
import time
from importlib.util import find_spec
from pathlib import Path

from client import Client, PromptError
from PIL import Image
from workflow_api import to_api

WORKFLOWS = Path(__file__).resolve().parents[1] / "workflows"
INST, GATYS = WORKFLOWS / "3_content_and_style.json", WORKFLOWS / "compare_gatys.json"
SMALL = {"checkpoint": "inst-small.safetensors", "clip_vision": "inst-small-vit-l.safetensors"}
# The embedded models are small and their weights mean nothing: few steps show all there is to see.
SMALL_STEPS, SMALL_SIDE = 24, 256
SMALL_CFG = 3.0  # more drowns the photograph in the random part of the network
GATYS_STEPS = 60  # enough to see the style
# Pictures that ship with ComfyUI's own packages: a house, and a painted garden party.
CONTENT = ("comfyui_workflow_templates_media_api", "templates/api_bria_image_edit-2.webp")
STYLE = ("comfyui_workflow_templates_media_api", "templates/api_openai_dall_e_2_t2i-1.webp")


def packaged_picture(package: str, name: str, option: str) -> Path:
    spec = find_spec(package)
    path = Path(next(iter(spec.submodule_search_locations)), name) if spec else Path(name)
    if not path.is_file():
        sys.exit(f"The picture {name} of the package {package} is gone. Give one with {option}.")
    return path


def place(path: Path, folder: Path, link: bool = True) -> str:
    """Makes a file visible in a folder of ComfyUI; returns its name there.

    Models are linked where the system allows it; pictures are copied, since the host reads none through links.
    """
    if not path.is_file():
        sys.exit(f"There is no file {path}.")
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / path.name
    if target.exists() and target.samefile(path):
        return target.name
    target.unlink(missing_ok=True)
    if link:
        with contextlib.suppress(OSError):
            target.symlink_to(path.resolve())
            return target.name
    shutil.copyfile(path, target)
    return target.name


def fill_in(prompt: dict, arguments: argparse.Namespace) -> None:
    """Puts the chosen files and numbers into the workflow's widgets."""
    home, small = arguments.home, arguments.checkpoint is None
    pictures = {"Photograph": place(arguments.content, home / "input", link=False),
                "Painting": place(arguments.style, home / "input", link=False)}
    models = home / "models"
    checkpoint = SMALL["checkpoint"] if small else place(arguments.checkpoint, models / "checkpoints")
    vision = arguments.clip_vision and place(arguments.clip_vision, models / "clip_vision")
    for node_id, node in list(prompt.items()):
        inputs = node["inputs"]
        if node["class_type"] == "LoadImage":
            inputs["image"] = pictures[node["_meta"]["title"]]
        elif node["class_type"] == "CheckpointLoaderSimple":
            inputs["ckpt_name"] = checkpoint
        elif node["class_type"] == "CLIPVisionLoader":
            inputs["clip_name"] = vision or SMALL["clip_vision"]
            if not vision and not small:
                del prompt[node_id]
        elif node["class_type"] == "InST_LearnStyle":
            if not vision and not small:
                inputs.pop("clip_vision")
                inputs |= {"encoder": "direct", "tokens": 4, "learning_rate": 0.0, "steps": 100, "batch_size": 4}
            if small:
                inputs |= {"steps": SMALL_STEPS, "resolution": SMALL_SIDE}
            if arguments.steps:
                inputs["steps"] = arguments.steps
        elif node["class_type"] == "InST_GatysStyleTransfer":
            inputs |= {"size": SMALL_SIDE, "steps": GATYS_STEPS}
        elif node["class_type"] == "InST_Sample" and small:
            inputs["cfg"] = SMALL_CFG
        elif node["class_type"] == "ImageScaleToTotalPixels" and small:
            inputs["megapixels"] = SMALL_SIDE**2 / 2**20


class Display:
    """One line that says which node works, and the seconds that each took."""

    def __init__(self, prompt: dict):
        self.titles = {k: v["_meta"]["title"] for k, v in prompt.items()}
        self.seconds: dict[str, float] = {}
        self.running, self.since, self.note = None, time.monotonic(), ""

    def __call__(self, message: dict) -> None:
        data = message["data"]
        if message["type"] == "executing":
            now = time.monotonic()
            if self.running:
                self.seconds[self.running] = self.seconds.get(self.running, 0.0) + now - self.since
            self.running, self.since, self.note = self.titles.get(data["node"]), now, ""
            self._line("")
        elif message["type"] == "progress":
            self._line(f"{data['value']} of {data['max']}")

    def _line(self, text: str) -> None:
        print(f"\r\033[K[demo] {self.running or 'done'} {text}", end="", flush=True)


def result_of(entry: dict, home: Path) -> tuple[Path, str]:
    """(result picture, what the learn node said)."""
    pictures = [i for o in entry["outputs"].values() for i in o.get("images", ()) if i["type"] == "output"]
    said = [t for o in entry["outputs"].values() for t in o.get("text", ())]
    return home / "output" / pictures[-1]["subfolder"] / pictures[-1]["filename"], "\n".join(said)


def side_by_side(paths: list[Path], output: Path) -> None:
    """Content | style | result ... at one height, written whole or not at all."""
    pictures = [Image.open(p).convert("RGB") for p in paths]
    height = pictures[2].height
    pictures = [p.resize((round(p.width * height / p.height), height), Image.LANCZOS) for p in pictures]
    gap = 8
    sheet = Image.new("RGB", (sum(p.width + gap for p in pictures) - gap, height), "white")
    left = 0
    for picture in pictures:
        sheet.paste(picture, (left, 0))
        left += picture.width + gap
    output.parent.mkdir(parents=True, exist_ok=True)
    partial = output.with_name(output.name + ".partial")
    sheet.save(partial, "PNG")
    os.replace(partial, output)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="dev.py demo", description=__doc__.splitlines()[0])
    parser.add_argument("--server", required=True, help=argparse.SUPPRESS)
    parser.add_argument("--home", type=Path, required=True, help=argparse.SUPPRESS)
    parser.add_argument("--checkpoint", type=Path, help="an SD 1.x checkpoint; without it a small untrained one runs")
    parser.add_argument("--clip-vision", type=Path, help="clip-vit-large-patch14.safetensors, for encoder 'paper'")
    parser.add_argument("--content", type=Path, help="the photograph")
    parser.add_argument("--style", type=Path, help="the painting")
    parser.add_argument("--output", type=Path, help="where the picture goes (default .dev/demo.png)")
    parser.add_argument("--steps", type=int, help="learning steps")
    arguments = parser.parse_args()
    arguments.content = arguments.content or packaged_picture(*CONTENT, "--content")
    arguments.style = arguments.style or packaged_picture(*STYLE, "--style")
    arguments.output = arguments.output or arguments.home.parent / "demo.png"
    return arguments


def run(client: Client, info: dict, path: Path, arguments: argparse.Namespace) -> Path:
    """Runs a shipped workflow with the chosen files; returns its picture and says what happened."""
    workflow = json.loads(path.read_text(encoding="utf-8"))
    prompt = to_api(workflow, info)
    fill_in(prompt, arguments)
    display = Display(prompt)
    result, said = result_of(client.follow(display, lambda: client.queue(prompt, workflow)), arguments.home)
    print("\r\033[K[demo] seconds: " + ", ".join(f"{k} {v:.1f}" for k, v in display.seconds.items() if v >= 0.05))
    for line in said.splitlines():
        print(f"[demo] {line}")
    return result


def main() -> int:
    arguments = parse()
    client = Client(arguments.server)
    info = client.object_info()
    workflows, shown = [INST], "result"
    if arguments.checkpoint is None:
        print("[demo] The embedded checkpoint is small and UNTRAINED: its picture only proves that everything is wired "
              "up.\n[demo] Give --checkpoint (and --clip-vision) for style transfer by InST. The last picture is by "
              "the method of Gatys et al., whose network is here.")
        workflows, shown = [INST, GATYS], "untrained InST | Gatys"
    elif arguments.clip_vision is None:
        print("[demo] Without --clip-vision the encoder is 'direct' instead of 'paper'.")
    try:
        results = [run(client, info, path, arguments) for path in workflows]
    except PromptError as error:
        print(f"\n[demo] {error}", file=sys.stderr)
        return 1
    side_by_side([arguments.content, arguments.style, *results], arguments.output)
    print(f"[demo] content | style | {shown}: {arguments.output.resolve()}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
