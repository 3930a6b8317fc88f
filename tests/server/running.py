"""What the server and the browser tier share: a ComfyUI home with stand-ins for the models that workflows name."""
import contextlib
import importlib
import math
import os
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
COMFYUI, MODELS = os.environ.get("INST_COMFYUI"), os.environ.get("INST_MODELS")
FRONT_END = os.environ.get("INST_FRONT_END")  # a folder with another web front end than the installed one
WORKFLOWS = sorted((ROOT / "workflows").glob("*.json"))

# In tests the models that shipped workflows name are small ones with random weights.
SMALL_ONES = {"inst-demo.safetensors": "inst-small.safetensors",
              "inst-small-demo-controlnet.safetensors": "inst-small-controlnet.safetensors"}

# Widgets that decide how long a workflow takes.
SMALL = {
    "InST_LearnStyle": {"steps": 4, "resolution": 64},
    "InST_Sample": {"steps": 3},
    "ImageScaleToTotalPixels": {"megapixels": 0.01},
    "InST_FitToModel": {"scale": 0.25},
    "KSampler": {"steps": 2},
    "EmptyLatentImage": {"width": 64, "height": 64},
    "InST_CosineScheduler": {"steps": 3},
    "InST_GatysStyleTransfer": {"steps": 3, "size": 64},
    "InST_ComparisonGrid": {"height": 64},
    "InST_Metrics": {"size": 64},
}


def make_home(folder: Path) -> Path:
    """A ComfyUI home of its own: models are linked in, everything written stays there."""
    models = Path(MODELS)
    dev = importlib.import_module("dev")
    dev.link_models(models, folder)
    for name, stand_in in dev.STAND_INS.items():
        small = models / stand_in
        (folder / "models" / name).unlink(missing_ok=True)
        (folder / "models" / name).symlink_to(small.with_name(SMALL_ONES.get(small.name, small.name)))
    write_transfer_weights(folder / "models" / "style_transfer")
    write_styleshot(folder / "models" / "style_transfer")
    return folder


def write_transfer_weights(folder: Path) -> None:
    """Files of the feed-forward methods, with official names, keys and shapes and random numbers in them."""
    import torch
    from inst_pack.inst_core.methods import RECIPES, hed

    def filled(key: str, shape: tuple[int, ...]):
        if len(shape) == 1 and "norm" in key and key.endswith("weight"):
            return torch.ones(shape)
        generator = torch.Generator().manual_seed(zlib.crc32(key.encode()))
        return torch.randn(shape, generator=generator) * (0.1 if len(shape) == 1 else math.prod(shape[1:]) ** -0.5)

    folder.mkdir(parents=True, exist_ok=True)
    for part in (hed.PART, *(part for recipe in RECIPES for part in recipe.parts)):
        if not ((folder / part.file).exists() or "/" in part.file):  # a folder: the video model, in no workflow
            torch.save({k: filled(k, s) for k, s in part.shapes().items()}, folder / part.file)


def write_styleshot(folder: Path) -> None:
    """The small StyleShot under the released names, in the released format."""
    import torch
    from safetensors.torch import load_file

    for released in ("style_aware_encoder", "ip"):
        torch.save(load_file(folder / f"inst-small-{released}.safetensors"), folder / f"{released}.bin")


def write_style(home: Path, name: str) -> None:
    """A style file with random vectors."""
    import torch
    from safetensors.torch import save_file

    folder = home / "models" / "inst_styles"
    folder.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    save_file({"clip_l": torch.randn(4, 768, generator=generator) * 0.02}, folder / f"{name}.safetensors",
              metadata={"made by": "a test"})  # ComfyUI's /view_metadata answers 404 for a file without


@contextlib.contextmanager
def serving(home: Path) -> Iterator[str]:
    """The address of a running server that has the pack; it ends with the block."""
    dev = importlib.import_module("dev")
    dev.use_home(home)
    options = ["--front-end-root", FRONT_END] if FRONT_END else []
    with dev.server(Path(COMFYUI), Path(sys.executable), options=options) as running:
        yield running.url
