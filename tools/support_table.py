"""Writes the table of supported model families into docs/models.md.

    python tools/support_table.py
"""
import importlib.util
from pathlib import Path

from pages import write_between

ROOT = Path(__file__).resolve().parents[1]
PAGE, MARKS = ROOT / "docs" / "models.md", ("<!-- support table -->", "<!-- end -->")
YES = "works"
HEAD = ("model", "predicts", "learns tokens of", "Learn: `direct`, `attention`", "Learn: `paper`, `released`",
        "Apply InST Style", "Invert, Sample, Cosine Scheduler", "stock `embedding:name`", "measured on real weights")
STOCK = {"the same": "the same, bit for bit", "line breaks lost": "nearly (2)", "no": "no (3)"}


def families():
    """The module with the table, which needs no ComfyUI."""
    spec = importlib.util.spec_from_file_location("families", ROOT / "inst_core" / "host" / "families.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def rows() -> list[tuple[str, ...]]:
    """One row for every family, then those that have none."""
    module = families()
    (paper,) = module.rows_of(module.PAPER_FAMILY)
    known = [(f.label, f.prediction, ", ".join(f"`{key}`" for key in f.text), YES,
              YES if f.text == paper.text else "no (1)", YES, YES, STOCK[f.stock], "") for f in module.FAMILIES]
    return [*known,
            ("Anima, Cosmos-Predict2, JoyImage, Ernie-Image", "flow", "", "no (4)", "no (1)", "not tried", "not tried",
             "", ""),
            ("other image models", "", "", "no (5)", "no (1)", "not tried", "not tried", "", ""),
            ("inpainting and edit models with extra input channels", "", "", *["no (6)"] * 4, "", ""),
            ("video models", "", "", *["no (7)"] * 4, "", "")]


NOTES = """
1. The paper's encoder makes one vector of CLIP-L's width, so it fits prompts that only CLIP-L reads.
2. ComfyUI's reader turns the line breaks behind the style, in the text that the family writes around its prompts, into
   spaces. Apply InST Style leaves that text as it is.
3. ComfyUI's tokenizer of the family reads no embeddings, or breaks on them. Apply InST Style works.
4. A part of their attention has no backward pass in ComfyUI: what would open them stands below.
5. Refused by name with the reason, which stands below.
6. They want a masked or second picture beside the noisy latent. Use the base checkpoint with *Set Latent Noise Mask*.
7. Frames as a batch of pictures work with image models.

"Works" means: tested on small random checkpoints, from learning to sampling. The last column stays empty until someone
has measured a family on its real weights. Text encoders that are not loaded (SD 3 without T5) are left out. A style
fits every model with the same text encoders of the same widths.
"""


def render() -> str:
    lines = ["| " + " | ".join(row) + " |" for row in (HEAD, ["---"] * len(HEAD), *rows())]
    return "\n".join(lines) + "\n" + NOTES.rstrip()


def main() -> None:
    write_between(PAGE, render(), MARKS)


if __name__ == "__main__":
    main()
