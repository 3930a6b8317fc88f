"""How good the demo model is, and what each part of InST brings to it.

Every style is learned and every photograph repainted through the pack's own nodes in the real host, in this process;
beside that stand the teacher, Gatys' method and trivial results.  Each of ``ABLATIONS`` changes one thing, on a few of
the photographs.  Every result is kept in a file of its own, named by all that it depends on: an interrupted run goes
on, and a new checkpoint computes anew only what it changes.
"""
import argparse
import hashlib
import json
import shlex
import sys
import time
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache, cached_property
from pathlib import Path

import torch
from torch import Tensor
from whole import write_whole

from . import checkpoint, teacher
from .networks import host
from .prompts import StyleSpace
from .settings import DEMO, GUESSER, SIDE, Settings
from .sheets import save_sheet
from .training import say

ROOT = Path(__file__).resolve().parents[2]
INST, TOLD, TEACHER, GATYS = "InST", "told by the teacher", "teacher", "Gatys"
CONTENT_COPY, STYLE_COPY, COLOURS, UNRELATED = "copy of content", "copy of style", "colours only", "unrelated picture"
GATYS_STEPS = 40
FEW_CONTENTS = 2  # photographs for the ablations
CLOSER_WANTED, CLOSER_AIM, NEAREST_WANTED = 1.5, 2.0, 0.8
CLEARLY = 0.9  # times another number
NEAR_TOLD = 1.1
LEARNING_SECONDS = 60.0
ALARM = 0.5  # of the leakage that a copy of the painting has


@dataclass(frozen=True)
class Variant(Settings):
    """One way to run InST.

    Attributes:
        style: "own", the style of the pair; "wrong", that of the next painting; "none", an empty prompt; "guessed",
            what Guess InST Style makes of the painting; "told", words from what the teacher measures in it. The last
            two without learning.
        invert: stochastic inversion; else the start is the photograph plus plain noise (SDEdit).
        reuse: the style comes as ``embedding:name`` in a stock prompt.
        guesser: name of the encoder that guesses.
    """

    style: str = "own"
    guesser: str = GUESSER
    invert: bool = True
    reuse: bool = False
    seed: int = 0


BASE = Variant(**asdict(DEMO))
WITHOUT_GUESS = {"guess": False, "learning_steps": 30, "learning_rate": 0.005}
ALONE = replace(BASE, **WITHOUT_GUESS)  # learned from the word *painting*
ABLATIONS: dict[str, dict[str, object]] = {
    "embedding:": {"reuse": True},
    "only guessed": {"style": "guessed"},
    "only guessed, by loss": {"style": "guessed", "guesser": "inst-demo-guesser-by-loss.safetensors"},
    "learned without a guess": WITHOUT_GUESS,
    "no style": {"style": "none"},
    "wrong style": {"style": "wrong"},
    "no inversion": {"invert": False},
    "told, no inversion": {"style": "told", "invert": False},
    "no colour matching": {"color_amount": 0.0},
    "colour matching mk": {"color": "mk"},
    "strength 0.4": {"strength": 0.4},
    "strength 0.5": {"strength": 0.5},
    "strength 0.7": {"strength": 0.7},
    "strength 0.8": {"strength": 0.8},
    "no guidance": {"cfg": 1.0},
    "guidance 1.5": {"cfg": 1.5},
    "guidance 5": {"cfg": 5.0},
    "6 sampling steps": {"steps": 6},
    "30 sampling steps": {"steps": 30},
    "half the learning": {"learning_steps": max(1, BASE.learning_steps // 2)},
    "twice the learning": {"learning_steps": 2 * BASE.learning_steps},
    "1 token, without a guess": {"tokens": 1, **WITHOUT_GUESS},
    "encoder attention": {"encoder": "attention", **WITHOUT_GUESS, "learning_rate": 0.0},
    "encoder paper": {"encoder": "paper", "tokens": 1, **WITHOUT_GUESS, "learning_rate": 0.0},
}
LEARNED = "own", "wrong"
LEARNING = "guess", "encoder", "tokens", "learning_steps", "batch", "learning_rate", "strongest"
NEED_VISION = "attention", "paper", "released"


@cache
def guesser_digest(name: str) -> str:
    import evaluate

    return evaluate.sha256(ROOT / "inst_encoders" / name)


# ---- pictures ----

@dataclass(frozen=True)
class Picture:
    """The middle square of a picture file, (1, 3, SIDE, SIDE) in [0, 1]; ``digest`` of its pixels."""

    name: str
    pixels: Tensor

    @cached_property
    def digest(self) -> str:
        return hashlib.sha256(self.pixels.contiguous().numpy().tobytes()).hexdigest()


def pictures_in(folder: Path) -> list[Picture]:
    import evaluate

    return [Picture(name, middle_square(path)) for name, path in evaluate.pictures_in(folder).items()]


def middle_square(path: Path) -> Tensor:
    """(1, 3, SIDE, SIDE) in [0, 1] of a picture file."""
    import evaluate

    whole = evaluate.open_picture(path, SIDE)
    top, left = ((side - SIDE) // 2 for side in whole.shape[2:])
    return whole[..., top:top + SIDE, left:left + SIDE].contiguous()


# ---- the nodes ----

def pack() -> None:
    """Makes the pack importable under a name of its own: its ``nodes`` is also the name of a module of the host."""
    module = sys.modules.setdefault("inst_pack", types.ModuleType("inst_pack"))
    module.__path__ = [str(ROOT)]


class Studio:
    """The loaded checkpoint and the pack's nodes; what is learned is kept in ``folder``."""

    def __init__(self, options: argparse.Namespace, folder: Path):
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        host(options.device.type == "cpu", options.comfyui)
        pack()
        import comfy.clip_vision
        import comfy.sd
        import folder_paths
        from inst_pack.inst_core import host as inst_host

        folder_paths.output_directory = folder_paths.models_dir = str(folder / "comfyui")
        inst_host.files.register_folders()
        alexnet = inst_host.files.TRANSFER_FOLDER, str(options.models)  # for guessing
        folder_paths.add_model_folder_path(*alexnet)
        with torch.inference_mode():
            self.model, self.clip, self.vae = comfy.sd.load_checkpoint_guess_config(
                str(options.checkpoint), embedding_directory=[str(folder)])[:3]
            self.vision = comfy.clip_vision.load(str(options.clip_vision)) if options.clip_vision else None

    @cached_property
    def teacher(self) -> teacher.Teacher:
        return teacher.Teacher()

    @cached_property
    def space(self) -> StyleSpace:
        return StyleSpace.read(checkpoint.open_shipped().space)

    def guessed(self, painting: Picture, variant: Variant):
        """The style that Guess InST Style makes of a painting."""
        from inst_pack.nodes.guess import InSTGuessStyle

        return InSTGuessStyle.execute(painting.pixels.permute(0, 2, 3, 1), variant.guesser).result[0]

    def learned_path(self, painting: Picture, variant: Variant) -> Path:
        """Of the style of a painting, learned once for the same settings."""
        kept = {k: getattr(variant, k) for k in ("encoder", "tokens", "learning_steps", "batch", "learning_rate",
                                                 "strongest", "seed")}
        if variant.guess:
            kept["guesser"] = guesser_digest(variant.guesser)
        return self.folder / f"{digest(painting.digest, kept)}.safetensors"

    def learn(self, painting: Picture, variant: Variant) -> Path:
        import evaluate
        from inst_pack.inst_core.style import save_style
        from inst_pack.nodes.learn import InSTLearnStyle

        path = self.learned_path(painting, variant)
        if not path.exists():
            start = time.perf_counter()
            with torch.inference_mode():
                style = InSTLearnStyle.execute(
                    self.model, self.clip, self.vae, painting.pixels.permute(0, 2, 3, 1), variant.encoder,
                    variant.tokens, variant.learning_steps, variant.learning_rate, variant.batch, variant.seed,
                    clip_vision=self.vision, resolution=SIDE, strongest=variant.strongest, learn_again=True,
                    continue_from=self.guessed(painting, variant) if variant.guess else None).result[0]
            seconds = time.perf_counter() - start
            evaluate.write_json(path.with_suffix(".json"), {"seconds": seconds})
            save_style(style, path)
            say("quality", f"learned {painting.name} in {seconds:.0f} s")
        return path

    def told(self, painting: Picture, variant: Variant):
        """The style that the teacher's numbers tell."""
        from inst_pack.inst_core.style import Style

        return Style({"clip_l": self.space.told(self.teacher.measured(painting.pixels))}, family="SD15")

    def positive(self, variant: Variant, painting: Picture):
        """The conditioning of a style."""
        from inst_pack.inst_core.style import load_style
        from inst_pack.nodes.style import InSTStyleConditioning

        from nodes import CLIPTextEncode

        if variant.style == "none":
            return CLIPTextEncode().encode(self.clip, "")[0]
        if variant.reuse:
            return CLIPTextEncode().encode(self.clip, f"embedding:{self.learn(painting, variant).stem}")[0]
        without_learning = {"told": self.told, "guessed": self.guessed}.get(variant.style)
        style = without_learning(painting, variant) if without_learning else load_style(self.learn(painting, variant))
        return InSTStyleConditioning.execute(self.clip, style, "*", 1.0).result[0]

    @torch.inference_mode()
    def paint(self, variant: Variant, content: Picture, painting: Picture, styled, negative=None) -> Tensor:
        """(1, 3, SIDE, SIDE) in [0, 1]: the photograph under the conditioning ``styled``; ``negative`` is that of an
        empty prompt unless it is given."""
        from comfy_extras.nodes_custom_sampler import Noise_RandomNoise
        from inst_pack.nodes.color import InSTMatchColor
        from inst_pack.nodes.inversion import InSTSample

        from nodes import CLIPTextEncode

        negative = negative or CLIPTextEncode().encode(self.clip, "")[0]
        latent, other = ({"samples": self.vae.encode(p.pixels.permute(0, 2, 3, 1))} for p in (content, painting))
        latent = InSTMatchColor.execute(latent, other, variant.color, variant.color_amount).result[0]
        noise = None if variant.invert else Noise_RandomNoise(variant.seed)
        made = InSTSample.execute(self.model, styled, negative, latent, variant.steps, variant.cfg, variant.sampler,
                                  variant.scheduler, variant.strength, variant.seed, "matched", noise=noise).result[0]
        return self.vae.decode(made["samples"]).permute(0, 3, 1, 2).clamp(0, 1).clone()


# ---- methods ----

Paint = Callable[[Picture, Picture], Tensor]


@dataclass(frozen=True)
class Method:
    """What repaints (content, style); ``settings`` is all that its results depend on beside these."""

    name: str
    settings: Mapping[str, object]
    paint: Paint


def digest(*of: object) -> str:
    return hashlib.sha256(json.dumps(of, sort_keys=True, default=str).encode()).hexdigest()[:16]


def following(pictures: Sequence[Picture], one: Picture) -> Picture:
    """The next picture, in a circle."""
    return pictures[([p.digest for p in pictures].index(one.digest) + 1) % len(pictures)]


def of_inst(name: str, variant: Variant, studio: Studio, styles: Sequence[Picture], checkpoint_digest: str) -> Method:
    def paint(content: Picture, style: Picture) -> Tensor:
        source = following(styles, style) if variant.style == "wrong" else style
        styled = studio.positive(variant, source)
        return studio.paint(variant, content, source, styled)

    settings = {k: v for k, v in asdict(variant).items() if k not in LEARNING or variant.style in LEARNED}
    del settings["guesser"]
    if settings.get("guess") or variant.style == "guessed":
        settings["guesser"] = guesser_digest(variant.guesser)
    return Method(name, {"checkpoint": checkpoint_digest, "of": [s.digest for s in styles] * (variant.style == "wrong"),
                         **settings}, paint)


def of_trivial(name: str, make: Callable, contents: Sequence[Picture]) -> Method:
    def paint(content: Picture, style: Picture) -> Tensor:
        other = following(contents, content)
        return make(content.pixels, style.pixels, other.pixels if other is not content else content.pixels.flip(2, 3))

    return Method(name, {"trivial": name, "of": [c.digest for c in contents] * (name == UNRELATED)}, paint)


def of_teacher(studio: Studio) -> Method:
    def paint(content: Picture, style: Picture) -> Tensor:
        vector = studio.teacher.measured(style.pixels)
        return teacher.resized(studio.teacher.painted(content.pixels, vector), SIDE)

    return Method(TEACHER, {"teacher": teacher.PACKAGE}, paint)


def of_gatys(weights: Path) -> Method:
    from evaluate import Gatys, read_weights

    painter = Gatys(read_weights(weights), GATYS_STEPS, 1.0, torch.device("cpu"))
    return Method(GATYS, {"gatys": GATYS_STEPS, "weights": weights.name},
                  lambda content, style: painter(content.pixels, style.pixels, None))


def methods(options: argparse.Namespace, studio: Studio, checkpoint_digest: str, contents: Sequence[Picture],
            styles: Sequence[Picture]) -> tuple[list[Method], list[Method]]:
    """(for all photographs, for a few), as far as they can run here and were asked for."""
    from inst_core.metrics import TRIVIAL

    taught = teacher.models() is not None

    def inst(name: str, **changes: object) -> Method:
        return of_inst(name, replace(BASE, **changes), studio, styles, checkpoint_digest)

    whole = [of_trivial(name, make, contents) for name, make in TRIVIAL.items()]
    whole += [of_teacher(studio)] if taught else []
    whole += [inst(TOLD, style="told")] if taught else []
    whole += [inst(INST)]
    few = [inst(name, **changes) for name, changes in ABLATIONS.items()
           if (changes.get("encoder") not in NEED_VISION or options.clip_vision)
           and (changes.get("style") != "told" or taught)]
    few.insert(0, of_gatys(options.models / "vgg16.safetensors"))
    if options.only:
        names = [m.name for m in (*whole, *few)]
        if missing := [n for n in options.only if n not in names]:
            raise ValueError(f"{', '.join(missing)}: not here. There are: {', '.join(names)}.")
    always = [*TRIVIAL, INST]
    return tuple([m for m in part if not options.only or m.name in (*always, *options.only)] for part in (whole, few))


# ---- results ----

@dataclass(frozen=True)
class Result:
    """
    Attributes:
        measures: of ``inst_core.metrics``; grams: distance to each style; seconds: of repainting.
    """

    picture: Path
    measures: Mapping[str, float]
    grams: Mapping[str, float]
    seconds: float


class Results:
    """Makes what is not kept yet."""

    def __init__(self, folder: Path, judge, styles: Sequence[Picture]):
        self.folder, self.judge, self.styles = folder, judge, styles
        self._seen = {s.digest: judge.networks.alexnet(s.pixels) for s in styles}

    def one(self, method: Method, content: Picture, style: Picture) -> Result:
        import evaluate

        name = f"{content.name}__{style.name}-{digest(method.settings, content.digest, style.digest)}"
        picture = self.folder / evaluate.Method(method.name, {}, None).folder / f"{name}.png"
        record = picture.with_suffix(".json")
        if not (known := evaluate.read_json(record)) or not picture.exists():
            start = time.perf_counter()
            with torch.no_grad():
                made = method.paint(content, style)
            known = {"seconds": time.perf_counter() - start}
            evaluate.write_bytes(picture, evaluate.as_png(made))
            seen = evaluate.open_picture(picture)  # the 8-bit picture that others can measure too
            known["measures"] = self.judge.pair(content.pixels, style.pixels).measure(seen)
            known["grams"] = self._grams(seen)
            evaluate.write_json(record, known)
        grams = known["grams"]
        if missing := [s for s in self.styles if s.digest not in grams]:
            grams = grams | self._grams(evaluate.open_picture(picture), missing)
        return Result(picture, known["measures"], {s.name: grams[s.digest] for s in self.styles}, known["seconds"])

    @torch.no_grad()
    def _grams(self, picture: Tensor, styles: Sequence[Picture] | None = None) -> dict[str, float]:
        from inst_core.metrics.gram import gram_distance

        seen = self.judge.networks.alexnet(picture)
        return {s.digest: gram_distance(seen, self._seen[s.digest]).item() for s in styles or self.styles}

    def table(self, chosen: Sequence[Method], contents: Sequence[Picture]) -> dict[str, list[Result]]:
        """{method: results of all pairs, all photographs of a style together}."""
        found = {}
        for i, method in enumerate(chosen):
            start = time.perf_counter()
            found[method.name] = [self.one(method, c, s) for s in self.styles for c in contents]
            say("quality", f"{i + 1} of {len(chosen)}: {method.name}, {time.perf_counter() - start:.0f} s")
        return found


# ---- what the numbers say ----

@dataclass(frozen=True)
class Summary:
    """Means over pairs; ``nearest``: share of results whose own style is the nearest of all."""

    measures: Mapping[str, float]
    nearest: float
    alarms: float
    seconds: float


def summary(results: Sequence[Result], own: Sequence[str], copies: Sequence[Result]) -> Summary:
    """
    Args:
        own: name of each result's style.
        copies: "copy of style" of the same pairs.
    """
    from evaluate import tables

    count = len(results)
    nearest = sum(min(r.grams, key=r.grams.get) == name for r, name in zip(results, own, strict=True)) / count
    alarms = sum(r.measures["leakage"] > ALARM * c.measures["leakage"]
                 for r, c in zip(results, copies, strict=True)) / count
    measures = tables.means([r.measures for r in results])
    return Summary(measures, nearest, alarms, sum(r.seconds for r in results) / count)


def promise(text: str, value: float, bound: float, below: bool = True) -> str:
    """A line that says whether ``value`` is below (or above) the bound, and if not, by how much."""
    holds = value <= bound if below else value >= bound
    return f"- {'holds' if holds else f'falls short by {abs(value - bound):.3f}'}: {text}"


def promises(whole: Mapping[str, Summary], few: Mapping[str, Summary], learning: float) -> list[str]:
    """What is asked of the model, as far as it was run."""
    own, content, colours, unrelated = (whole[k] for k in (INST, CONTENT_COPY, COLOURS, UNRELATED))
    gram, closer = own.measures["gram"], content.measures["gram"] / max(own.measures["gram"], 1e-9)
    lines = [
        promise(f"Gram distance to the style {closer:.2f} times closer than the photograph's (at least "
                f"{CLOSER_WANTED}, aim {CLOSER_AIM})", closer, CLOSER_WANTED, below=False),
        promise(f"Gram distance {gram:.3f} below colour transfer's {colours.measures['gram']:.3f}", gram,
                colours.measures["gram"]),
        promise(f"LPIPS to the photograph {own.measures['lpips']:.3f} below {CLEARLY} of an unrelated picture's "
                f"{unrelated.measures['lpips']:.3f}", own.measures["lpips"], CLEARLY * unrelated.measures["lpips"]),
        promise(f"the right style is nearest for {100 * own.nearest:.0f} % (at least {100 * NEAREST_WANTED:.0f} %)",
                own.nearest, NEAREST_WANTED, below=False),
        promise(f"leakage alarms: {100 * own.alarms:.0f} % of results", own.alarms, 0.0)]
    if TOLD in whole:
        told = whole[TOLD].measures["gram"]
        lines.append(promise(f"Gram distance {gram:.3f} within 10 % of that with words told by the teacher, "
                             f"{told:.3f}", gram, NEAR_TOLD * told))
    if learning:
        lines.append(promise(f"learning a style takes {learning:.0f} s, threads: {torch.get_num_threads()}", learning,
                             LEARNING_SECONDS))
    for name in ("no style", "wrong style"):
        if name in few:
            other = few[name].measures["gram"]
            lines.append(promise(f"Gram distance {few[INST].measures['gram']:.3f} below {CLEARLY} of that with {name}, "
                                 f"{other:.3f}", few[INST].measures["gram"], CLEARLY * other))
    if "embedding:" in few:
        apart = max(abs(a - few["embedding:"].measures[k]) for k, a in few[INST].measures.items())
        lines.append(promise(f"embedding:NAME in a stock prompt differs by {apart:.1e} in the measures", apart, 0.0))
    if "no inversion" in few:
        with_it, without = (few[n].measures["edge_correlation"] for n in (INST, "no inversion"))
        lines.append(promise(f"edges follow the photograph more with inversion, {with_it:.3f}, than without, "
                             f"{without:.3f}", with_it, without, below=False))
    return lines


COLUMNS = (("Gram to style", "gram"), ("palette, Lab", "palette_lab"), ("LPIPS to content", "lpips"),
           ("LPIPS, grey", "lpips_grey"), ("edge correlation", "edge_correlation"),
           ("self-similarity", "self_similarity"), ("leakage", "leakage"))


def markdown(rows: Mapping[str, Summary]) -> str:
    from evaluate import tables

    head = ["", *(title for title, _ in COLUMNS), "right style nearest", "alarms", "seconds"]
    return tables.markdown(head, [
        [name, *(f"{row.measures[key]:.3f}" for _, key in COLUMNS), f"{100 * row.nearest:.0f} %",
         f"{100 * row.alarms:.0f} %", f"{row.seconds:.1f}"] for name, row in rows.items()])


PAGE = """# How good the demo model is

Written by `{command}{options}`. {contents} photographs × {styles} paintings,
{side} px, none of them trained on; every style learned and every photograph repainted through the pack's own nodes:
{settings}.

## What was promised

{promises}

## Beside other methods

All {pairs} pairs. Gram distance (0 to 1, of AlexNet's features) and palette say how much style came, LPIPS, edges and
self-similarity how much of the photograph stayed; an alarm is a result that shows half as much of the painting's
layout as a copy of it. *{told}* is the same model with words made of the teacher's numbers instead of learned ones;
*{teacher}* made the pictures that the model was trained on, and is what it can hope for.{missing}

{whole}

## One thing changed at a time

On {few_contents} of the photographs with all paintings, {few_pairs} pairs. One line alone: `{command} --only NAME`.

{few}
"""


def page(options: argparse.Namespace, whole: Mapping[str, Summary], few: Mapping[str, Summary], learning: float,
         contents: int, few_contents: int, styles: int) -> str:
    missing = "" if teacher.models() else " (The teacher was not installed: dependency group `train`.)"
    settings = ", ".join(f"{k.replace('_', ' ')} {v}" for k, v in asdict(DEMO).items())
    command = "python tools/demo_model quality --contents FOLDER --styles FOLDER"
    given = f" --threads {options.threads}" if options.threads else ""
    given += f" --only {shlex.join(options.only)}" if options.only else ""
    return PAGE.format(command=command, options=given, contents=contents, styles=styles, side=SIDE, settings=settings,
                       promises="\n".join(promises(whole, few, learning)), pairs=contents * styles,
                       told=TOLD, teacher=TEACHER, missing=missing, whole=markdown(whole),
                       few_contents=few_contents, few_pairs=few_contents * styles, few=markdown(few))


def sheet(path: Path, results: Mapping[str, list[Result]], contents: Sequence[Picture],
          styles: Sequence[Picture]) -> None:
    """Paintings on top, photographs at the left, InST's results between; below, one photograph by every method."""
    import evaluate

    half = slice(None, None, 2)
    corner = torch.ones_like(styles[0].pixels)

    def row(first: Tensor, found: Sequence[Path]) -> Tensor:
        return torch.cat([first, *(evaluate.open_picture(p) for p in found)])[..., half, half]

    rows = [torch.cat([corner, *(s.pixels for s in styles)])[..., half, half]]
    many = len(contents)
    rows += [row(c.pixels, [results[INST][j * many + i].picture for j in range(len(styles))])
             for i, c in enumerate(contents)]
    rows += [row(corner, [results[name][j * many].picture for j in range(len(styles))])
             for name in (TOLD, TEACHER, GATYS, COLOURS) if name in results]
    save_sheet(path, rows)


# ---- the run ----

def run(options: argparse.Namespace) -> None:
    """The stage.

    Raises:
        ValueError: folders without pictures, or an unknown name in --only.
    """
    import evaluate

    host(options.device.type == "cpu", options.comfyui)
    try:
        contents, styles = (pictures_in(folder) for folder in (options.contents, options.styles))
    except evaluate.EvaluationError as error:
        raise ValueError(str(error)) from error
    from inst_core import metrics

    checkpoint_digest = hashlib.sha256(options.checkpoint.read_bytes()).hexdigest()
    studio = Studio(options, options.work / "styles" / checkpoint_digest[:16])
    whole, few = methods(options, studio, checkpoint_digest, contents, styles)
    networks = metrics.load_networks(evaluate.read_weights(options.models / "lpips-alex.safetensors"))
    results = Results(options.work / "results", metrics.Judge(networks, SIDE), styles)
    few_contents = contents[:FEW_CONTENTS]
    for_all = results.table(whole, contents)
    for_few = results.table([m for m in whole if m.name == INST] + few, few_contents)
    copies = results.table([m for m in whole if m.name == STYLE_COPY], few_contents)[STYLE_COPY]

    def summaries(found: Mapping[str, list[Result]], of: Sequence[Picture], copied: Sequence[Result]):
        own = [s.name for s in styles for _ in of]
        return {name: summary(rows, own, copied) for name, rows in found.items()}

    seconds = [evaluate.read_json(studio.learned_path(s, BASE).with_suffix(".json"))["seconds"] for s in styles]
    to_look_at = options.work / "sheet.jpg"
    sheet(to_look_at, for_all, contents, styles)
    text = page(options, summaries(for_all, contents, for_all[STYLE_COPY]), summaries(for_few, few_contents, copies),
                sum(seconds) / len(seconds), len(contents), len(few_contents), len(styles))
    write_whole(options.output, lambda partial: partial.write_text(text, encoding="utf-8"))
    print(text)
    say("quality", f"{options.output}, to look at: {to_look_at}")
