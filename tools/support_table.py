"""Writes the table of supported model families into the README.

    python tools/support_table.py
"""
import importlib.util
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BEGIN, END = "<!-- support table -->\n", "<!-- end -->"
YES = "works"
HEAD = ("model", "predicts", "learns tokens of", "Learn: `direct`, `attention`", "Learn: `paper`, `released`",
        "Apply InST Style", "Invert, Sample, Cosine Scheduler")


def families():
    """The module with the table, which needs no ComfyUI."""
    spec = importlib.util.spec_from_file_location("families", ROOT / "inst_core" / "host" / "families.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def rows() -> list[tuple[str, ...]]:
    """One row for every family, then those that have none."""
    module = families()
    paper = module.FAMILIES[module.PAPER_FAMILY].text
    known = [(f.label, f.prediction, ", ".join(f"`{key}`" for key in f.text), YES, YES if f.text == paper else "no (1)",
              YES, YES) for f in module.FAMILIES.values()]
    return [*known,
            ("other image models", "", "", "not yet (2)", "no (1)", "where prompts take `embedding:`", "untested (2)"),
            ("inpainting and edit models with extra input channels", "", "", *["not yet (3)"] * 4),
            ("video models", "", "", *["not yet (4)"] * 4)]


NOTES = """
1. The paper's encoder makes one vector of CLIP-L's width, so it fits prompts that only CLIP-L reads.
2. Nothing in the code knows these families; inversion and sampling ask the model for its own noise levels, but no
   small checkpoint tests them, and learning is refused by name.
3. They want a masked or second picture beside the noisy latent. Use the base checkpoint with *Set Latent Noise Mask*.
4. Their latents have a time axis. Frames as a batch of pictures work with image models.

Text encoders that are not loaded (SD 3 without T5) are left out. A style fits every model with the same text encoders.
"""


def render() -> str:
    lines = ["| " + " | ".join(row) + " |" for row in (HEAD, ["---"] * len(HEAD), *rows())]
    return "\n".join(lines) + "\n" + NOTES


def in_readme() -> str:
    """What stands between the marks."""
    text = (ROOT / "README.md").read_text()
    return text.partition(BEGIN)[2].partition(END)[0]


def main() -> None:
    path = ROOT / "README.md"
    path.write_text(re.sub(f"{BEGIN}.*?{END}", lambda _: BEGIN + render() + END, path.read_text(), flags=re.S))


if __name__ == "__main__":
    main()
