"""The styles that ship for the demo model, learned from paintings in ``samples``, as the demo learns."""
import argparse

from whole import copy_whole

from .quality import BASE, ROOT, Picture, Studio
from .training import say

PAINTINGS = {"van_gogh": "inst_painting.jpg", "hokusai": "inst_painting_2.jpg", "poppies": "inst_painting_3.jpg"}
FOLDER = ROOT / "styles" / "inst-demo"


def make(options: argparse.Namespace) -> None:
    """The stage: learns them anew, unless the same was learned in ``options.work`` before."""
    import evaluate

    studio = Studio(options, options.work / "examples")
    for name, painting in PAINTINGS.items():
        path = studio.learn(Picture(name, evaluate.open_picture(ROOT / "samples" / painting)), BASE)
        copy_whole(path, FOLDER / f"{name}.safetensors")
        say("examples", f"{FOLDER / f'{name}.safetensors'}")
