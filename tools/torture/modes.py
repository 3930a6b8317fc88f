"""The demo's graph in every way in which people run ComfyUI: memory modes, precisions, quantised and compiled models.

For each a server of its own learns a style on the demo checkpoint and repaints a photograph: Learn -> Apply -> Sample
-> VAE Decode.  It has to learn and paint as the server without options does, as far as its precision allows, or to
refuse in one sentence before work begins.  Memory modes do nothing on a CPU, so they run on a pretend device
(tests/device, needs g++): what they move there stays or goes as on a GPU.
"""
import io
import json
import re
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import dev
import numpy as np
import torch
from comfyui.client import Client, PromptError, saved_pictures
from comfyui.in_process import MODELS, ROOT, use_comfyui
from PIL import Image
from whole import read_tensors, save_tensors
from workflows.api import to_api

sys.path.append(str(ROOT))

from inst_core.style import load_style

WORKFLOW, CHECKPOINT = "04_everything_in_one_graph.json", "inst-demo.safetensors"
DENOISER = "model.diffusion_model."
WIDGETS = {
    "InST_FitToModel": {"scale": 0.25},
    "InST_LearnStyle": {"encoder": "direct", "steps": 8, "batch_size": 2, "learning_rate": 0.001, "resolution": 64,
                        "learn_again": True},
    "InST_Sample": {"steps": 4, "cfg": 3.0, "strength": 0.6},
}
# Makes a server compute on the pretend device; it lies among the custom nodes of its home.
DEVICE_NODE = """
import sys
from pathlib import Path
sys.path.append({tests!r})
import pretend
from comfy.cli_args import args
for name in {memory!r}:
    setattr(args, name, True)
pretend.use(Path({built!r}))
NODE_CLASS_MAPPINGS = {{}}
"""


class Mode(NamedTuple):
    """One way to run ComfyUI.

    Attributes:
        options: of ComfyUI's main.py.
        gpu: on the pretend device.
        weights: how the denoiser's weights lie in the checkpoint (see ``requantised``).
        compiled: Torch Compile Model stands behind the loader.
        levels: by how many of 255 levels the picture may differ from that without options, in the mean.
    """

    options: tuple[str, ...] = ()
    gpu: bool = False
    weights: str = ""
    compiled: bool = False
    levels: float = 0.5

    @property
    def server(self) -> tuple:
        """Equal for modes that one server runs one after the other."""
        return self.options, self.gpu

    @property
    def checkpoint(self) -> str:
        return f"{self.weights.replace(' ', '-')}.safetensors" if self.weights else CHECKPOINT

    @property
    def name(self) -> str:
        parts = [*self.options, self.weights and f"weights in {self.weights}", self.compiled and "Torch Compile Model"]
        return " ".join(filter(None, parts)) or "no options"


# ComfyUI's --cpu, which a machine without a GPU needs, excludes its memory modes: the pretend device's node sets them.
MEMORY = {"--lowvram": "LOW_VRAM", "--novram": "NO_VRAM", "--highvram": "HIGH_VRAM", "--gpu-only": "HIGH_VRAM"}
MODES = (  # the first on each device is what the others are compared with
    Mode(gpu=True), Mode(("--lowvram",), True, levels=2), Mode(("--novram",), True, levels=2),
    Mode(("--gpu-only",), True), Mode(("--cpu-vae",), True, levels=2),
    Mode(("--gpu-only", "--fp16-vae"), True, levels=4),
    Mode(("--gpu-only", "--fp16-intermediates"), True, levels=4), Mode(("--bf16-vae",), True, levels=4),
    Mode(), Mode(weights="float8_e4m3fn", levels=16), Mode(weights="scaled float8_e4m3fn", levels=16),
    Mode(weights="int8_tensorwise", levels=8), Mode(weights="mxfp8", levels=16), Mode(compiled=True, levels=2),
    Mode(("--fp64-unet",)), Mode(("--bf16-unet",), levels=4), Mode(("--fp16-unet",), levels=4),
    Mode(("--force-fp16",), levels=4), Mode(("--fp8_e4m3fn-unet",), levels=16), Mode(("--fp8_e5m2-unet",), levels=16),
    Mode(("--bf16-text-enc",), levels=4), Mode(("--fp16-text-enc",), levels=4),
    Mode(("--fp8_e4m3fn-text-enc",), levels=16),
)


class Outcome(NamedTuple):
    """What a mode did: the held-out loss before and after, the picture (height, width, 3), or what was said instead."""

    losses: list[float]
    picture: np.ndarray | None
    said: str = ""


def requantised(source: Path, target: Path, format_name: str) -> None:
    """A checkpoint whose denoiser's matrices are stored in fewer bits, in a format that ComfyUI's own loaders read.

    Args:
        format_name: a torch type ("float8_e4m3fn": plain numbers of that type), or one of the host's QUANT_ALGOS
            ("scaled float8_e4m3fn" for that one).
    """
    from comfy.quant_ops import QUANT_ALGOS, QuantizedTensor

    weights, metadata = read_tensors(source)
    algorithm = format_name.removeprefix("scaled ")
    plain = format_name == algorithm and hasattr(torch, algorithm)
    for key in [k for k, v in weights.items() if k.startswith(DENOISER) and k.endswith(".weight") and v.ndim == 2]:
        if plain:
            weights[key] = weights[key].to(getattr(torch, algorithm))
            continue
        layout = QUANT_ALGOS[algorithm]["comfy_tensor_layout"]
        try:
            packed = QuantizedTensor.from_float(weights[key].to(torch.bfloat16), layout)
        except (RuntimeError, ValueError, NotImplementedError):  # of a shape that the format cannot hold
            weights[key] = weights[key].float()
            continue
        del weights[key]
        weights |= packed.state_dict(key)
        name = key.removesuffix("weight") + "comfy_quant"
        weights[name] = torch.tensor(list(json.dumps({"format": algorithm}).encode()), dtype=torch.uint8)
    save_tensors(target, weights, metadata)


def make_home(folder: Path, modes: list[Mode]) -> None:
    """A ComfyUI home with the demo checkpoint as the modes want it, and the pretend device where they do."""
    checkpoints, demo = folder / "models" / "checkpoints", MODELS / "checkpoints" / CHECKPOINT
    checkpoints.mkdir(parents=True)
    for mode in modes:
        if mode.weights:
            requantised(demo, checkpoints / mode.checkpoint, mode.weights)
        else:
            dev.link(checkpoints / CHECKPOINT, demo)
    if modes[0].gpu:
        memory = [option.strip("-").replace("-", "_") for option in modes[0].options if option in MEMORY]
        node = folder / "custom_nodes" / "a_pretend_device"
        node.mkdir(parents=True)
        (node / "__init__.py").write_text(DEVICE_NODE.format(
            tests=str(ROOT / "tests" / "device"), memory=memory, built=str(MODELS.parent)))


@contextmanager
def serving(modes: list[Mode]) -> Iterator[Client]:
    """A client of a server that runs these modes, which differ in the model only."""
    with tempfile.TemporaryDirectory(prefix="modes-", ignore_cleanup_errors=True) as home:
        make_home(Path(home), modes)
        dev.use_home(Path(home))
        options = [option for option in modes[0].options if option not in MEMORY]
        state = next((MEMORY[option] for option in modes[0].options if option in MEMORY), "NORMAL_VRAM")
        with dev.server(dev.host(), Path(sys.executable), options=options, INST_VRAM=state) as running:
            yield Client(running.url)


def prompt_of(mode: Mode, object_info: dict) -> dict:
    workflow = json.loads((ROOT / "workflows" / WORKFLOW).read_text(encoding="utf-8"))
    prompt = to_api(workflow, object_info)
    loader = next(name for name, node in prompt.items() if node["class_type"] == "CheckpointLoaderSimple")
    prompt[loader]["inputs"]["ckpt_name"] = mode.checkpoint
    for node in prompt.values():
        node["inputs"] |= WIDGETS.get(node["class_type"], {})
        if mode.compiled:
            node["inputs"] |= {k: ["compiled", 0] for k, v in node["inputs"].items() if v == [loader, 0]}
    if mode.compiled:
        prompt["compiled"] = {"class_type": "TorchCompileModel",
                              "inputs": {"model": [loader, 0], "backend": "inductor"}}
    return prompt


def run(mode: Mode, client: Client) -> Outcome:
    """Learns and paints once on a server in this mode."""
    try:
        entry = client.wait(client.queue(prompt_of(mode, client.object_info())), 1800)
    except PromptError as error:
        return Outcome([], None, str(error))
    picture = np.asarray(Image.open(io.BytesIO(client.get("/view", **saved_pictures(entry)[0]))), dtype=float)
    styles = (dev.HOME / "models" / "inst_styles").glob("*.safetensors")
    newest = max(styles, key=lambda path: path.stat().st_mtime_ns)
    return Outcome(load_style(newest).losses, picture)


def problem_of(mode: Mode, outcome: Outcome, usual: Outcome) -> str:
    """What is wrong with an outcome, or nothing."""
    if outcome.picture is None:
        return "" if re.match(r"InST_\w+: .*", outcome.said) and "Error" not in outcome.said else outcome.said
    if not min(outcome.losses) < outcome.losses[0]:
        return f"the held-out loss does not fall: {outcome.losses}"
    if outcome.picture.std() < 5:
        return "the picture shows nothing"
    apart = np.abs(outcome.picture - usual.picture).mean()
    return f"the picture differs by {apart:.1f} levels in the mean" if apart > mode.levels else ""


def row(mode: Mode, outcome: Outcome, usual: Outcome, wrong: str) -> str:
    device = "pretend GPU" if mode.gpu else "CPU"
    if outcome.picture is None:
        return f"| {mode.name} | {device} | refused: {outcome.said} | | | {wrong and 'wrong'} |"
    apart = np.abs(outcome.picture - usual.picture).mean()
    return (f"| {mode.name} | {device} | {outcome.losses[0]:.4f} | {min(outcome.losses):.4f} | {apart:.2f} | "
            f"{wrong or 'as without options'} |")


def main() -> list[str]:
    """What was found; prints the table."""
    use_comfyui(on_cpu=True)
    print("| options | device | held-out loss before | after | picture differs by | |\n|---|---|---|---|---|---|")
    usual: dict[bool, Outcome] = {}
    found = []
    for _, group in groupby(MODES, key=lambda mode: mode.server):
        modes = list(group)
        with serving(modes) as client:
            for mode in modes:
                outcome = run(mode, client)
                before = usual.setdefault(mode.gpu, outcome)
                wrong = problem_of(mode, outcome, before)
                found += [f"{mode.name}: {wrong}"] if wrong else []
                print(row(mode, outcome, before, wrong), flush=True)
    return found
