"""Makes the pictures that the pack shows of itself: thumbnails of the templates and the strip on the help pages.

Every picture is what a shipped workflow makes on the demo checkpoint, with the demo's settings.  Workflows whose
weights are not there, or stood in for, show the photograph and the painting that they would start from.
"""
import argparse
import json
from pathlib import Path

from comfyui.client import Client, PromptError
from demo import chosen, connect_guess, result_of
from demo_model.settings import DEMO, GUESSER
from PIL import Image

from workflows.api import WorkflowError, to_api
from workflows.thumbnail import halves, strip, thumbnail

ROOT = Path(__file__).resolve().parents[2]
WORKFLOWS, SAMPLES = ROOT / "workflows", ROOT / "samples"
STRIP = ROOT / "web" / "docs" / "photograph_painting_result.jpg"
WHOLE = "04_everything_in_one_graph"
OF_PAINTING = {"02_learn_a_style"}  # nothing is repainted there
STANDS_IN = {"07_with_controlnet", "08_with_lora", "09_on_sdxl", "10_in_few_steps"}  # their models are not real here
LIKE_WHOLE = {"01_start_here": WHOLE}  # a box, whose inside is another workflow
SETTINGS = {**chosen(DEMO), "KSampler": {"steps": DEMO.steps, "cfg": DEMO.cfg},
            "CFGGuider": {"cfg": DEMO.cfg}, "EmptyLatentImage": {"width": 256, "height": 256},
            "InST_GatysStyleTransfer": {"size": 256, "steps": 60}, "ImageScaleToTotalPixels": {"megapixels": 0.0625}}
OF_THE_DEMO = "cfg", "sampler"  # what a checkpoint needs; how far a workflow repaints is the workflow's own


def sample(name: str) -> Image.Image:
    return Image.open(SAMPLES / name)


def filled(prompt: dict) -> dict:
    """With the demo's settings; InST Sample keeps the strength and the steps that the workflow shows off."""
    connect_guess(prompt, GUESSER)
    for node in prompt.values():
        values = SETTINGS.get(node["class_type"], {})
        if node["class_type"] == "InST_Sample":
            values = {k: v for k, v in values.items() if k in OF_THE_DEMO and node["inputs"]["cfg"] != 1.0}
        node["inputs"] |= {k: v for k, v in values.items() if not isinstance(node["inputs"].get(k), list)}
    return prompt


def result(client: Client, info: dict, home: Path, name: str) -> Image.Image | None:
    """What the workflow makes, or None where it cannot run here."""
    workflow = json.loads((WORKFLOWS / f"{name}.json").read_text(encoding="utf-8"))
    try:
        entry = client.wait(client.queue(filled(to_api(workflow, info)), workflow))
    except (PromptError, WorkflowError) as error:
        print(f"[pictures] {name}: {str(error).splitlines()[0]}")
        return None
    if not any("images" in output for output in entry["outputs"].values()):
        print(f"[pictures] {name}: the part of it that can run here saves no picture")
        return None
    return Image.open(result_of(entry, home)[0])


def title_of(name: str) -> tuple[str, str]:
    """(number, title) of a workflow, as its note says."""
    workflow = json.loads((WORKFLOWS / f"{name}.json").read_text(encoding="utf-8"))
    return name.partition("_")[0], next(n["title"] for n in workflow["nodes"] if n["type"] == "MarkdownNote")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("url", help="of a running server")
    parser.add_argument("home", type=Path, help="its folder with input and output, .dev/home")
    parser.add_argument("names", nargs="*", help="templates (default all)")


def main(args: argparse.Namespace) -> None:
    client, home = Client(args.url), args.home
    names = args.names or sorted(p.stem for p in WORKFLOWS.glob("*.json"))
    info, start = client.object_info(), halves(sample("inst_photograph.jpg"), sample("inst_painting.jpg"))
    for name in names:
        if name in OF_PAINTING:
            shown = sample("inst_painting.jpg")
        else:
            shown = None if name in STANDS_IN else result(client, info, home, LIKE_WHOLE.get(name, name))
        if name in LIKE_WHOLE and shown is not None:
            shown = halves(sample("inst_photograph.jpg"), shown)
        thumbnail(shown or start, *title_of(name)).save(WORKFLOWS / f"{name}.jpg", quality=85)
        if name == WHOLE and shown is not None:
            strip([sample("inst_photograph.jpg"), sample("inst_painting.jpg"), shown]).save(STRIP, quality=88)
        print(f"[pictures] {name}: done", flush=True)
