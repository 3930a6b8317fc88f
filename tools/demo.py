"""The main job, once: a painting and a photograph go in, one picture (content | style | result) comes out.

Called by ``tools/dev.py demo`` with a running server.  It runs the shipped workflow itself, with other files and
numbers in its widgets.  Without --checkpoint the demo model of this repository does it (``docs/demo_model.md``), and
there is a fourth picture: what Gatys' method makes of the same two with the real weights of VGG-16.
"""
import argparse
import json
import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import dev
from comfyui.client import Client, PromptError, saved_pictures
from demo_model.settings import DEMO, GUESSER, SIDE, Settings
from PIL import Image
from safetensors import SafetensorError, safe_open
from whole import write_whole
from workflows.api import to_api
from workflows.thumbnail import strip

WORKFLOWS = Path(__file__).resolve().parents[1] / "workflows"
INST, GATYS = WORKFLOWS / "04_everything_in_one_graph.json", WORKFLOWS / "19_gatys.json"
DEMO_CHECKPOINT, UNTRAINED_CHECKPOINT = "inst-demo.safetensors", "inst-small.safetensors"
# Without meaning in the weights few steps show all there is to see; more guidance drowns the photograph.
UNTRAINED = Settings(guess=False, learning_steps=24, batch=1, learning_rate=0.0, strength=0.7, cfg=3.0, steps=35)
GATYS_STEPS = 60  # enough to see the style
SD1_SIDE, SDXL_SIDE = 512, 1024  # px; what checkpoints were trained on that do not say it themselves
SAMPLES = Path(__file__).resolve().parents[1] / "samples"
CONTENT, STYLE = SAMPLES / "inst_photograph.jpg", SAMPLES / "inst_painting.jpg"


def place(path: Path, folder: Path, how: Callable[[Path, Path], object] = dev.link) -> str:
    """Makes a file visible in a folder of ComfyUI; returns its name there."""
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / path.name
    if not (target.exists() and target.samefile(path)):
        how(target, path)
    return path.name


def copy(target: Path, picture: Path) -> None:
    """The host reads no pictures through links."""
    target.unlink(missing_ok=True)
    shutil.copyfile(picture, target)


Widgets = dict[str, dict[str, object]]  # {class of node: {input: value}}


class Plan(NamedTuple):
    """What runs.

    Attributes:
        checkpoint: its name in ComfyUI; ``side``: px it was made for.
        vision: name of the CLIP vision model, or None for an encoder that needs none.
        guesser: name of the encoder that guesses what learning goes on from, or None.
        widgets: other values than the workflow's.
    """

    checkpoint: str
    side: int
    vision: str | None
    guesser: str | None
    widgets: Widgets


def native_side(checkpoint: Path) -> int:
    """Side in pixels that a checkpoint was made for: as its metadata say, else by what it is."""
    try:
        with safe_open(checkpoint, "pt") as file:
            said, names = (file.metadata() or {}).get("modelspec.resolution", ""), file.keys()
    except SafetensorError:
        return SD1_SIDE  # the loader will say what is wrong with it, or knows the format
    side = said.partition("x")[0]
    if side.isdecimal() and int(side) >= 64:
        return int(side)
    return SDXL_SIDE if any(name.startswith("conditioner.embedders.") for name in names) else SD1_SIDE


def chosen(settings: Settings) -> Widgets:
    """Settings as the widgets of the workflow."""
    learn = {"encoder": settings.encoder, "tokens": settings.tokens, "steps": settings.learning_steps,
             "batch_size": settings.batch, "learning_rate": settings.learning_rate, "strongest": settings.strongest}
    sample = {"steps": settings.steps, "cfg": settings.cfg, "sampler": settings.sampler,
              "scheduler": settings.scheduler, "strength": settings.strength}
    return {"InST_LearnStyle": learn, "InST_Sample": sample, "InST_StochasticInvert": {"strength": settings.strength},
            "InST_MatchColor": {"method": settings.color, "amount": settings.color_amount}}


def plan(arguments: argparse.Namespace) -> Plan:
    """The checkpoint that was given; else the demo model; else, where that could not be made, the untrained one."""
    models = arguments.home / "models"
    vision = arguments.clip_vision and place(arguments.clip_vision, models / "clip_vision")
    guesser = None
    if arguments.checkpoint is not None:
        widgets = {"InST_LearnStyle": {"quality": "like the paper"}} if vision else {}
        name, side = place(arguments.checkpoint, models / "checkpoints"), native_side(arguments.checkpoint)
    elif (models / "checkpoints" / DEMO_CHECKPOINT).is_file():
        name, side, widgets = DEMO_CHECKPOINT, SIDE, chosen(DEMO)
        guesser = GUESSER if DEMO.guess else None
    else:
        name, side, widgets = UNTRAINED_CHECKPOINT, SIDE, chosen(UNTRAINED)
    return Plan(name, side, vision, guesser, widgets)


def fill_in(prompt: dict, arguments: argparse.Namespace, chosen_plan: Plan) -> None:
    """Puts the chosen files and numbers into the workflow's widgets."""
    pictures = {"Photograph": place(arguments.content, arguments.home / "input", copy),
                "Painting": place(arguments.style, arguments.home / "input", copy)}
    side = chosen_plan.side
    values: Widgets = {"CheckpointLoaderSimple": {"ckpt_name": chosen_plan.checkpoint},
                       "ImageScaleToTotalPixels": {"megapixels": side**2 / 2**20},
                       "InST_LearnStyle": {"resolution": side},
                       "InST_GatysStyleTransfer": {"size": side, "steps": GATYS_STEPS}}
    for kind, more in chosen_plan.widgets.items():
        values[kind] = values.get(kind, {}) | more
    if arguments.steps:
        values["InST_LearnStyle"]["steps"] = arguments.steps
    for node in prompt.values():
        node["inputs"] |= values.get(node["class_type"], {})
        if node["class_type"] == "LoadImage":
            node["inputs"]["image"] = pictures[node["_meta"]["title"]]
    if chosen_plan.vision is not None:
        prompt["vision"] = {"class_type": "CLIPVisionLoader", "inputs": {"clip_name": chosen_plan.vision},
                            "_meta": {"title": "Load CLIP Vision"}}
        for learner in learners_of(prompt):
            learner["clip_vision"] = ["vision", 0]
    if chosen_plan.guesser is not None:
        connect_guess(prompt, chosen_plan.guesser)


def learners_of(prompt: dict) -> list[dict]:
    """Inputs of the nodes that learn a style."""
    return [node["inputs"] for node in prompt.values() if node["class_type"] == "InST_LearnStyle"]


def connect_guess(prompt: dict, guesser: str) -> None:
    """Lets the nodes that learn go on from a guess."""
    for number, learner in enumerate(learners_of(prompt)):
        prompt[f"guess{number}"] = {"class_type": "InST_GuessStyle", "_meta": {"title": "Guess InST Style"},
                                    "inputs": {"image": learner["image"], "encoder_name": guesser}}
        learner["continue_from"] = [f"guess{number}", 0]


class Display:
    """One line that says which node works, and the seconds that each took."""

    def __init__(self, prompt: dict):
        self.titles = {k: v["_meta"]["title"] for k, v in prompt.items()}
        self.seconds: Counter = Counter()
        self.running, self.since = None, time.monotonic()

    def __call__(self, message: dict) -> None:
        data = message["data"]
        if message["type"] == "executing":
            now = time.monotonic()
            if self.running:
                self.seconds[self.running] += now - self.since
            self.running, self.since = self.titles.get(data["node"]), now
            self._line("")
        elif message["type"] == "progress":
            self._line(f"{data['value']} of {data['max']}")

    def _line(self, text: str) -> None:
        print(f"\r\033[K[demo] {self.running or 'done'} {text}", end="", flush=True)


def result_of(entry: dict, home: Path) -> tuple[Path, str]:
    """(result picture, what the learn node said)."""
    saved = saved_pictures(entry)[-1]
    said = [t for o in entry["outputs"].values() for t in o.get("text", ())]
    return home / "output" / saved["subfolder"] / saved["filename"], "\n".join(said)


def side_by_side(paths: list[Path], output: Path) -> None:
    """Content | style | result ... at the height of the result, written whole or not at all."""
    pictures = [Image.open(path) for path in paths]
    sheet = strip(pictures, pictures[2].height)
    write_whole(output, lambda partial: sheet.save(partial, "PNG"))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--server", required=True)
    parser.add_argument("--home", type=Path, required=True)
    dev.demo_options(parser)
    arguments = parser.parse_args()
    arguments.content = arguments.content or CONTENT
    arguments.style = arguments.style or STYLE
    arguments.output = arguments.output or arguments.home.parent / "demo.png"
    return arguments


def run(client: Client, info: dict, path: Path, arguments: argparse.Namespace,
        chosen_plan: Plan) -> tuple[Path, Mapping[str, float]]:
    """Runs a shipped workflow with the chosen files and says what happened; (its picture, seconds of each node)."""
    workflow = json.loads(path.read_text(encoding="utf-8"))
    prompt = to_api(workflow, info)
    fill_in(prompt, arguments, chosen_plan)
    display = Display(prompt)
    result, said = result_of(client.follow(display, lambda: client.queue(prompt, workflow)), arguments.home)
    print("\r\033[K", end="")
    speak("seconds: " + ", ".join(f"{k} {v:.1f}" for k, v in display.seconds.items() if v >= 0.05))
    speak(said)
    return result, display.seconds


def before(arguments: argparse.Namespace, chosen_plan: Plan) -> str:
    """What is going to happen, in plain words."""
    job = f"learns the style of {arguments.style.name} and repaints {arguments.content.name} in it"
    at = f"at {chosen_plan.side} px"
    if arguments.checkpoint is None and chosen_plan.checkpoint == DEMO_CHECKPOINT:
        return (f"The demo model {job}, {at}.\nIt is small enough for this repository and has seen neither picture "
                "before: palette and brushwork are what it can do. --checkpoint takes a real SD 1.x model.")
    if arguments.checkpoint is None:
        return ("The demo model is not there, so a small UNTRAINED checkpoint runs: its picture only proves that "
                "everything is wired up.\nGive --checkpoint (and --clip-vision) for style transfer by InST.")
    without = "" if chosen_plan.vision else "\nWithout --clip-vision the encoder is 'direct' instead of 'paper'."
    return f"{chosen_plan.checkpoint} {job}, {at}.{without}"


def speak(text: str) -> None:
    for line in text.splitlines():
        print(f"[demo] {line}", flush=True)


def main() -> int:
    arguments = parse()
    client = Client(arguments.server)
    info, chosen_plan = client.object_info(), plan(arguments)
    compared = arguments.checkpoint is None
    speak(before(arguments, chosen_plan))
    if compared:
        speak("The last picture is by the method of Gatys et al., for comparison.")
    try:
        inst, seconds = run(client, info, INST, arguments, chosen_plan)
        others = [run(client, info, GATYS, arguments, chosen_plan)[0]] if compared else []
    except PromptError as error:
        print(f"\n[demo] {error}", file=sys.stderr)
        return 1
    learning = seconds["Learn InST Style"]
    speak(f"Learned the painting from that one picture in {learning:.0f} s, repainted the photograph in "
          f"{sum(seconds.values()) - learning:.0f} s. The style is a file now: it works with these nodes, and as "
          "embedding:NAME in any prompt.")
    side_by_side([arguments.content, arguments.style, inst, *others], arguments.output)
    shown = "InST | Gatys" if compared else "result"
    speak(f"content | style | {shown}: {arguments.output.resolve()}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
