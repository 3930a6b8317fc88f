"""Random graphs against a running ComfyUI: nothing breaks it.

Valid graphs are grown at random from the pack's nodes and some eighty of ComfyUI's, queued over HTTP, cancelled, queued
again, and now and then the server is killed and started anew.  Every prompt has to end; none of the pack's nodes may
fail in another way than by refusing its input; a stock graph gives the same bits before, between and after; memory
stays flat.  The same seed gives the same graphs and the same faults, as far as time allows.  A line of JSON counts what
happened.
"""
import argparse
import contextlib
import io
import json
import random
import sys
import tempfile
import time
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any, NamedTuple

import dev
import numpy as np
import torch
from comfyui.client import Client, PromptError
from comfyui.in_process import MODELS
from PIL import Image
from whole import save_tensors
from workflows.api import is_widget, options_of

PACK = "InST_"
SOURCES = ("CheckpointLoaderSimple", "LoadImage", "CLIPTextEncode", "VAEEncode", "InST_LoadStyle",
           "InST_StyleConditioning")
OURS = ("InST_StyleConditioning", "InST_StochasticInvert", "InST_Sample", "InST_LoadStyle", "InST_MatchColor",
        "InST_CosineScheduler", "InST_ComparisonGrid", "InST_Metrics", "InST_GatysStyleTransfer", "InST_SaveStyle",
        "InST_LearnStyle")
HOSTS = (  # names, with spaces between
    "EmptyLatentImage LatentFromBatch RepeatLatentBatch LatentBatch LatentBatchSeedBehavior RebatchLatents LatentAdd "
    "LatentSubtract LatentMultiply LatentInterpolate LatentBlend LatentFlip LatentRotate LatentCrop LatentUpscale "
    "LatentUpscaleBy LatentComposite SetLatentNoiseMask VAEEncode VAEDecode VAEEncodeForInpaint VAEEncodeTiled "
    "VAEDecodeTiled ImageScale ImageScaleBy ImageScaleToTotalPixels ImageInvert ImageBatch ImageBlur ImageSharpen "
    "ImageQuantize ImageBlend ImageFromBatch RepeatImageBatch ImageCrop ImagePadForOutpaint EmptyImage SolidMask "
    "InvertMask GrowMask FeatherMask MaskComposite ImageToMask MaskToImage CropMask CLIPTextEncode ConditioningCombine "
    "ConditioningConcat ConditioningAverage ConditioningSetArea ConditioningSetMask ConditioningSetTimestepRange "
    "ConditioningZeroOut ControlNetLoader ControlNetApplyAdvanced CLIPSetLastLayer LoraLoader LoraLoaderModelOnly "
    "LoraLoaderBypass ModelSamplingDiscrete RescaleCFG PerturbedAttentionGuidance FreeU_V2 HyperTile TomePatchModel "
    "DifferentialDiffusion ModelMergeSimple ContextWindowsManual KSampler KSamplerAdvanced SamplerCustom "
    "SamplerCustomAdvanced KSamplerSelect BasicScheduler KarrasScheduler SplitSigmas FlipSigmas RandomNoise "
    "DisableNoise CFGGuider BasicGuider DualCFGGuider")

# What keeps a graph small: values for a widget of that name, or of that node and name.
SMALL: dict[str, tuple] = {
    "steps": (1, 2, 3), "width": (64, 72, 96), "height": (64, 80, 96), "megapixels": (0.01,), "batch_size": (1, 2),
    "amount": (1, 2), "length": (1, 2), "scale_by": (0.5, 1.25), "cfg": (1.0, 3.0, 7.5), "size": (64,),
    "resolution": (64,), "strength": (0.0, 0.3, 0.7, 1.0), "denoise": (0.0, 0.5, 1.0), "seed": (0, 1, 2**64 - 1),
    "left": (8,), "right": (0, 8), "top": (0,), "bottom": (8,), "x": (0, 8), "y": (0, 16), "step": (0, 1),
    "tile_size": (64, 128), "overlap": (0, 16), "temporal_size": (64,), "temporal_overlap": (8,), "sigma_max": (10.0,),
    "start_at_step": (0, 1), "end_at_step": (2, 10000), "noise_seed": (0, 5), "high_resolution": (0,),
    "context_length": (2, 16), "context_overlap": (0, 1), "text": ("", "*", "a house, (*:1.2)", "内容 {a|b} [x"),
    "InST_LearnStyle.steps": (2,), "InST_LearnStyle.encoder": ("direct",), "InST_LearnStyle.max_seconds": (5.0,),
    "InST_LearnStyle.prompt": ("*", "a house, *"), "InST_SaveStyle.name": ("torture",),
    "InST_LearnStyle.name": ("torture",),
    "InST_Metrics.vgg19": ("none",), "InST_Metrics.csd": ("none",), "InST_Metrics.art_inception": ("none",),
    "vgg_name": ("vgg16.safetensors",),
    "InST_GatysStyleTransfer.steps": (2,), "InST_Sample.sampler": ("euler", "ddim", "dpmpp_2m", "uni_pc", "lcm"),
    "InST_ComparisonGrid.row_labels": ("",), "InST_ComparisonGrid.column_labels": ("",),
    "sampler_name": ("euler", "dpmpp_2m_sde", "uni_pc"), "LatentUpscale.crop": ("disabled", "center"),
}

# A custom node of the server that says what it holds: bytes of tensors that live, and of memory once the C library has
# given back what nobody uses (where it can: glibc).
WITNESS = """
import ctypes, gc, os
import psutil, torch
from aiohttp import web
from server import PromptServer

NODE_CLASS_MAPPINGS = {}

def alive():
    storages = {}
    for thing in gc.get_objects():
        try:
            if isinstance(thing, torch.Tensor):
                storage = thing.untyped_storage()
                storages[storage.data_ptr()] = storage.nbytes()
        except Exception:
            pass
    return sum(storages.values())

@PromptServer.instance.routes.get("/torture/memory")
async def memory(request):
    gc.collect()
    kept = psutil.Process().memory_info().rss
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if os.name == "posix" else None
    if trim is not None:
        trim(0)
    return web.json_response({"tensors": alive(), "kept": kept, "used": psutil.Process().memory_info().rss})
"""


class Graphs:
    """Valid prompts, drawn one after the other."""

    def __init__(self, object_info: dict, seed: int):
        self._info, self._draw = object_info, random.Random(seed)
        self._names = [name for name in (*OURS, *HOSTS.split()) if name in object_info]

    def next(self) -> dict:
        """Sources, some random nodes on top of each other, and an end for every kind of picture."""
        self._prompt: dict[str, dict] = {}
        self._made: dict[str, list[list]] = defaultdict(list)  # type -> [node, output]
        for name in SOURCES:
            self._add(name)
        for _ in range(self._draw.randint(4, 14)):
            ours = self._draw.random() < 0.4
            possible = [n for n in self._names if n.startswith(PACK) == ours and self._fits(n)]
            self._add(self._draw.choice(possible))
        if self._made["LATENT"]:
            self._add("VAEDecode")
        self._add("PreviewImage")
        return self._prompt

    def _inputs(self, name: str, group: str) -> dict[str, list]:
        return self._info[name]["input"].get(group, {})

    def _fits(self, name: str) -> bool:
        sockets = [spec[0] for spec in self._inputs(name, "required").values() if not is_widget(spec)]
        return all(kind in self._made or kind == "COMFY_AUTOGROW_V3" for kind in sockets)

    def _add(self, name: str) -> None:
        inputs = {}
        for group in ("required", "optional"):
            for socket, spec in self._inputs(name, group).items():
                if is_widget(spec):
                    inputs[socket] = self._value(name, socket, spec)
                elif spec[0] == "COMFY_AUTOGROW_V3":
                    inputs |= {f"{socket}.image{i}": self._link("IMAGE") for i in range(self._draw.randint(1, 3))}
                elif self._made.get(spec[0]) and (group == "required" or self._draw.random() < 0.3):
                    inputs[socket] = self._link(spec[0])
        node = str(len(self._prompt) + 1)
        self._prompt[node] = {"class_type": name, "inputs": inputs}
        for i, kind in enumerate(self._info[name]["output"]):
            self._made[kind if isinstance(kind, str) else "COMBO"].append([node, i])

    def _link(self, kind: str) -> list:
        """Mostly one of the last ones made, so that graphs grow long."""
        return self._draw.choice(self._made[kind][-3:] if self._draw.random() < 0.7 else self._made[kind])

    def _value(self, node: str, name: str, spec: list) -> Any:
        options = options_of(spec)
        small = SMALL.get(f"{node}.{name}") or SMALL.get(name)
        choices = spec[0] if isinstance(spec[0], list) else options.get("options")
        if choices and not (small and set(small) <= set(choices)):
            return self._draw.choice(choices)
        if small:
            value = self._draw.choice(small)
            if isinstance(value, str):
                return value
            return min(max(value, options.get("min", value)), options.get("max", value))
        return options.get("default", "")


FREE = {"unload_models": True, "free_memory": True}
STOCK = {
    "1": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "inst-small.safetensors"}},
    "2": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["1", 1], "text": "a house"}},
    "3": {"class_type": "EmptyLatentImage", "inputs": {"width": 64, "height": 64, "batch_size": 2}},
    "4": {"class_type": "KSampler", "inputs": {
        "model": ["1", 0], "positive": ["2", 0], "negative": ["2", 0], "latent_image": ["3", 0], "seed": 0, "steps": 2,
        "cfg": 3.0, "sampler_name": "euler", "scheduler": "normal", "denoise": 1.0}},
    "5": {"class_type": "VAEDecode", "inputs": {"samples": ["4", 0], "vae": ["1", 2]}},
    "6": {"class_type": "PreviewImage", "inputs": {"images": ["5", 0]}},
}


class Report(NamedTuple):
    """The outcome. ``problems`` is empty when all is well.

    Attributes:
        said: what nodes refused, and errors of the host's own.
        used: MiB of memory of the server after each round, all models unloaded; ``kept``: with what the C library
            keeps for later; ``tensors``: of tensors in it.
    """

    counts: Counter
    said: Counter
    problems: list[str]
    used: list[int]
    kept: list[int]
    tensors: list[int]

    def problem(self, text: str) -> None:
        self.problems.append(text)
        print(text, flush=True)


class Torture:
    """Queues graphs on a server, disturbs it, and looks at what is left."""

    def __init__(self, object_info: dict, seed: int, patience: float = 600):
        self.report, self._patience = Report(Counter(), Counter(), [], [], [], []), patience
        self._graphs, self._draw = Graphs(object_info, seed), random.Random(~seed)
        self._stock: np.ndarray | None = None

    def check_stock(self, client: Client) -> None:
        """The stock graph gives what it gave the first time, computed anew."""
        client.post("/free", FREE)
        entry = client.wait(client.queue(STOCK), self._patience)
        pictures = [Image.open(io.BytesIO(client.get("/view", **image))) for image in entry["outputs"]["6"]["images"]]
        found = np.stack([np.asarray(picture, dtype=int) for picture in pictures])
        if self._stock is None:
            self._stock = found
        elif (apart := abs(found - self._stock)).any():
            self.report.problem(f"the stock graph gives other pictures than before: {np.count_nonzero(apart)} of "
                                f"{apart.size} values differ, by {apart.max()} at the most")
        self.report.counts["stock graphs compared"] += 1

    def round(self, client: Client) -> None:
        """A few graphs at once, some of them disturbed, until the queue is empty."""
        ids: dict[str, dict] = {}
        dropped = False
        for _ in range(self._draw.randint(1, 3)):
            prompt = self._graphs.next()
            for _ in range(2 if self._draw.random() < 0.15 else 1):
                try:
                    ids[client.queue(prompt)] = prompt
                except PromptError as error:  # by validation
                    self.report.counts["refused on queueing"] += 1
                    types = sorted({prompt[node]["class_type"] for node in error.node_errors})
                    self.report.said[f"{', '.join(types)}: {error}"[:200]] += 1
        self.report.counts["queued"] += len(ids)
        if self._draw.random() < 0.3:
            time.sleep(self._draw.random() * 2)
            client.post("/interrupt")
            self.report.counts["interrupts"] += 1
        if self._draw.random() < 0.1:
            client.post("/queue", {"clear": True})
            self.report.counts["queues cleared"] += 1
            dropped = True
        if not self._drained(client):
            self.report.problem(f"the queue is stuck for {self._patience:.0f} s: {json.dumps(prompt)}")
            return
        for prompt_id, prompt in ids.items():
            entry = client.get(f"/history/{prompt_id}").get(prompt_id)
            if entry is None and not dropped:
                self.report.problem(f"a prompt that ran is not in the history: {json.dumps(prompt)}")
            elif entry is not None:
                self._look_at(entry, prompt)

    def _drained(self, client: Client) -> bool:
        end = time.monotonic() + self._patience
        while time.monotonic() < end:
            queue = client.get("/queue")
            if not queue["queue_running"] and not queue["queue_pending"]:
                return True
            time.sleep(0.1)
        return False

    def _look_at(self, entry: dict, prompt: dict) -> None:
        """A node of the pack may refuse its input in words; any other error of it is a problem."""
        said, counts = dict(entry["status"]["messages"]), self.report.counts
        if entry["status"]["completed"]:
            counts["completed"] += 1
        elif "execution_interrupted" in said:
            counts["interrupted"] += 1
        elif error := said.get("execution_error"):
            line = f"{error['node_type']}: {error['exception_type']}: {error['exception_message'].strip()}"[:200]
            of_host = not error["node_type"].startswith(PACK)
            if of_host or error["exception_type"].rpartition(".")[2] == "ValueError":
                counts["failed in a node of the host" if of_host else "refused"] += 1
                self.report.said[line] += 1
            else:
                self.report.problem(f"{line}\n{''.join(error['traceback'][-4:])}\n{json.dumps(prompt)}")
        else:
            self.report.problem(f"a history entry without an end: {json.dumps(entry['status'])}")

    def look_at_memory(self, client: Client) -> None:
        client.post("/free", FREE)
        time.sleep(1)
        for name, size in client.get("/torture/memory").items():
            getattr(self.report, name).append(size >> 20)


def make_home(folder: Path) -> None:
    """A ComfyUI home with the small models, a style and a picture."""
    dev.link_models(MODELS, folder)
    vectors = torch.randn(2, 768, generator=torch.Generator().manual_seed(0)) * 0.02
    save_tensors(folder / "models" / "inst_styles" / "example.safetensors", {"clip_l": vectors})
    (folder / "input").mkdir()
    witness = folder / "custom_nodes" / "a_witness"
    witness.mkdir(parents=True)
    (witness / "__init__.py").write_text(WITNESS)
    Image.linear_gradient("L").resize((96, 80)).convert("RGB").save(folder / "input" / "example.png")


def growth_of(memory: list[int]) -> int:
    """MiB by which the least of the last third of the measurements lies above that of the middle one: in the first,
    libraries warm up, and now and then the C library gives back later."""
    third = len(memory) // 3
    return min(memory[-third:]) - min(memory[third:-third]) if third > 1 else 0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--graphs", type=int, default=100, help="how many prompts are queued at least (default 100)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=3600, help="no new round after this long (default an hour)")
    parser.add_argument("--kills", type=int, default=2, help="how often the server is killed (default 2)")


def main(args: argparse.Namespace) -> list[str]:
    """The problems; prints a line of JSON."""
    comfyui = dev.host()
    began, torture = time.monotonic(), None
    with tempfile.TemporaryDirectory(prefix="torture-") as home:
        make_home(Path(home))
        dev.use_home(Path(home))
        for life in range(args.kills + 1):
            until = args.graphs * (life + 1) // (args.kills + 1)
            with dev.server(comfyui, Path(sys.executable)) as running:
                client = Client(running.url)
                torture = torture or Torture(client.object_info(), args.seed)
                report = torture.report
                torture.check_stock(client)
                measured = len(report.used)
                while report.counts["queued"] < until and time.monotonic() - began < args.seconds:
                    torture.round(client)
                    torture.look_at_memory(client)
                    print(f"{report.counts['queued']} of {args.graphs} queued, {len(report.problems)} problems, "
                          f"{report.used[-1]} MiB ({report.kept[-1]} with what the C library keeps, "
                          f"{report.tensors[-1]} in tensors)", flush=True)
                if (growth := growth_of(report.used[measured:])) > 200:
                    report.problem(f"memory grew by {growth} MiB while one server ran")
                torture.check_stock(client)
                if life < args.kills:  # in the middle of a graph
                    with contextlib.suppress(PromptError):
                        client.queue(torture._graphs.next())
                    time.sleep(1)
                    running.process.kill()
                    report.counts["kills"] += 1
    print(json.dumps({"seed": args.seed, "seconds": round(time.monotonic() - began), **report._asdict()},
                     ensure_ascii=False))
    return report.problems
