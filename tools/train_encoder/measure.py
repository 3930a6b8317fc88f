"""What a guess is worth: held-out losses on paintings, beside learning with 20 and 100 steps.

Everything runs in the pack's own learning loop on the host's text encoder and sampling; only the demo model's denoiser
stands there as narrow as it was trained, and its text layers, which add nothing, are left out: the same numbers
(``tests/host/test_demo_checkpoint.py``) in a fraction of the time.  Every number is kept, so the stage goes on after
any end.
"""
import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from demo_model import checkpoint, networks
from kept import Kept
from torch import Tensor, nn

STEPS, FEW = 100, 20


def held_out(session, vectors: dict[str, Tensor], whole: Tensor) -> float:
    """The loss that Learn InST Style reports, of given pseudo-words."""
    from inst_core.bank import held_out_bank
    from inst_core.batch_plan import BatchPlan
    from inst_core.encoders import DirectEncoder
    from inst_core.learning import held_out_loss

    encoder = DirectEncoder(vectors, len(next(iter(vectors.values()))))
    return held_out_loss(session, encoder, None, held_out_bank(whole), BatchPlan(4))


class Bench:
    """The demo checkpoint in the host, ready to be learned on."""

    def __init__(self, file: Path, comfyui: Path | None):
        networks.host(True, comfyui)
        import comfy.sd

        self.model, self.clip, self.vae = comfy.sd.load_checkpoint_guess_config(str(file))[:3]
        with torch.inference_mode(False):
            self._narrow = networks.build_unet()
            self._narrow.load_state_dict(checkpoint.open_shipped().unet)
            self._narrow.requires_grad_(False)

    @torch.no_grad()
    def word(self) -> dict[str, Tensor]:
        """What learning starts from."""
        from inst_core import host

        return {k: v.expand(4, -1).clone() for k, v in host.text.word_vectors(self.clip, "painting").items()}

    @torch.no_grad()
    def painting(self, pixels: Tensor, recipe):
        """Of (1, H, W, 3)."""
        from inst_core import host

        return host.learning.look_at(pixels, recipe, self.model, self.vae, None, pixels.shape[1]).clone()

    def run(self, work: Callable):
        """``work(session)`` with models that can be differentiated."""
        from inst_core import host

        with host.training.training_mode(), host.training.training_session(self.model, self.clip, "*", 4) as session:
            session.denoiser.network = self._narrow
            session.text._clip.cond_stage_model.clip_l.transformer.text_model.encoder.layers = nn.ModuleList()
            return work(session)


def measure(options: argparse.Namespace) -> None:
    """The stage: a table of held-out gains, in percent of what STEPS steps from the word gain."""
    bench = Bench(options.checkpoint, options.comfyui)
    from demo_model.quality import pictures_in

    from inst_core import guessing, host
    from inst_core.encoders import DirectEncoder
    from inst_core.learning import learn_style
    from inst_core.recipes import choose_recipe

    from .look import looking

    look, guesser, teller = looking(options), guessing.load(options.encoder), Teller()

    def learned(session, painting, start: dict[str, Tensor], steps: int) -> list[tuple[int, float]]:
        recipe = choose_recipe("direct", 4, steps)
        encoder = DirectEncoder({k: v.clone() for k, v in start.items()}, 4)
        found = learn_style(session, encoder, painting, recipe)
        return [(check.samples // recipe.batch, check.loss) for check in found.checks]

    known, curves = {}, {}
    from_word, from_guess = (Kept(options.folder / f"{name}.jsonl") for name in ("word", options.encoder.stem))
    for picture in pictures_in(options.paintings, None):
        pixels = picture.pixels.permute(0, 2, 3, 1)
        painting, word = bench.painting(pixels, choose_recipe("direct", 4)), bench.word()
        features = look(pixels)
        began = time.perf_counter()
        guess = guessing.guess(guesser, look(pixels))
        seconds = time.perf_counter() - began
        vectors = {"told": teller(picture.pixels), "guess": guess}
        if options.context:
            vectors["context"] = guessing.guess(guesser, features, host.text.word_vectors(bench.clip, options.context))

        def losses(session, vectors=vectors, painting=painting) -> dict[str, float]:
            return {name: held_out(session, words, painting.whole) for name, words in vectors.items()}

        one = from_word.get((picture.name,), lambda: {
            "checks": bench.run(lambda session: learned(session, painting, word, STEPS))})  # noqa: B023 (called at once)
        two = from_guess.get((picture.name,), lambda: {
            **bench.run(losses), "seconds": seconds,  # noqa: B023
            "checks": bench.run(lambda session: learned(session, painting, guess, FEW))})  # noqa: B023
        known[picture.name] = Row(one["checks"][0][1], best(one["checks"]), two["told"], two["guess"],
                                  best(two["checks"]), two.get("context"), two["seconds"])
        curves[picture.name] = one["checks"], two["checks"]
        print(f"[measure] {picture.name}: {known[picture.name]}", flush=True)
    table(known)
    if options.curve:
        plot(curves, options.curve)


class Teller:
    """The yardstick: the 100 numbers of the demo model's teacher (Ghiasi et al. 2017), as a linear map makes words of
    them, the very words that the demo model was trained to read."""

    def __init__(self):
        from demo_model.prompts import StyleSpace
        from demo_model.teacher import Teacher

        self._teacher = Teacher()
        self._space = StyleSpace.read(checkpoint.open_shipped().space)

    def __call__(self, pictures: Tensor) -> dict[str, Tensor]:
        """Of (1, 3, H, W) in [0, 1]."""
        return {"clip_l": self._space.told(self._teacher.measured(pictures))}


def best(checks: list) -> float:
    return min(loss for _, loss in checks)


class Row(NamedTuple):
    """Held-out losses of one painting, and the seconds that a guess with its features took."""

    word: float
    learned: float
    told: float
    guess: float
    few: float
    context: float | None
    seconds: float

    def shares(self) -> list[float]:
        """Gains of told, guess, guess and FEW steps, and guess from context, in shares of the gain of learning."""
        return [(self.word - loss) / (self.word - self.learned)
                for loss in (self.told, self.guess, self.few, self.context) if loss is not None]


def table(rows: dict[str, Row]) -> None:
    from inst_core.metrics.tables import markdown

    head = ("painting", "word", f"{STEPS} steps from it", "told by 100 numbers", "guess", f"guess + {FEW} steps",
            "told, share of the gain", "guess, share", f"guess + {FEW} steps, share", "from context words, share",
            "seconds")
    lines = [cells(name, [row.word, row.learned, row.told, row.guess, row.few], row.shares(), f"{row.seconds:.2f}")
             for name, row in rows.items()]
    lines.append(cells("mean of shares", [], torch.tensor([row.shares() for row in rows.values()]).mean(0).tolist()))
    sums = [sum(column) if None not in column else None for column in zip(*rows.values(), strict=True)]
    lines.append(cells("all losses together", [], Row(*sums).shares()))
    print(markdown(head, lines))


def plot(curves: dict[str, tuple[list, list]], output: Path) -> None:
    """Held-out loss against steps, from the word and from the guess, one small plot for each painting."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(curves), figsize=(2.4 * len(curves), 2.6), sharex=True, squeeze=False)
    for axis, (name, lines) in zip(axes[0], curves.items(), strict=True):
        for checks, label in zip(lines, ("from the word", "from the guess"), strict=True):
            axis.plot(*zip(*checks, strict=True), marker=".", label=label)
        axis.set(title=name[:16], xlabel="steps")
    axes[0, 0].set_ylabel("held-out loss")
    axes[0, 0].legend()
    figure.tight_layout()
    figure.savefig(output, dpi=80)
    print(f"curve: {output}")


def cells(name: str, losses: list[float], shares: list[float], seconds: str = "") -> list[str]:
    """A line of the table."""
    return [name, *([f"{loss:.4f}" for loss in losses] or [""] * 5),
            *(f"{share:.0%}" for share in shares), *[""] * (4 - len(shares)), seconds]
