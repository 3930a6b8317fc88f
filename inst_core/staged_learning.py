"""A style of several stages learned: one after the other, each on its own noise levels (see ``stages``)."""
from collections.abc import Callable, Sequence
from dataclasses import replace
from statistics import fmean

from .encoders import StyleEncoder
from .learning import STOPPED, Learned, Step
from .recipes import Recipe
from .stages import Stage, middle, times


def learn_stages(learn: Callable[..., Learned], encoders: Sequence[StyleEncoder], recipe: Recipe,
                 report: Callable[[Step], object], tell: Callable[[str], object],
                 rescue: Callable[[Learned], object]) -> Learned:
    """All stages of one style, one after the other.

    Args:
        learn: ``learning.learn_style`` with session and painting filled in: (encoder, recipe, report, tell, rescue,
            weakest, must_gain) -> Learned.
        encoders: one for each stage, from much noise to little.
        recipe: of every stage.
        report, tell, rescue: as for ``learning.learn_style``.

    Raises:
        ValueError: no stage learned anything.
    """
    count, found, partly = len(encoders), [], []
    spans = times(count, recipe.strongest)

    def note(step: Step, done: int) -> None:
        left = step.seconds_left * (1 + (count - 1 - done) * step.steps / max(1, step.steps - step.done))
        report(step._replace(done=done * recipe.steps + step.done, steps=count * recipe.steps, seconds_left=left))

    try:
        for i, (encoder, (lowest, highest)) in enumerate(zip(encoders, spans, strict=True)):
            part = replace(recipe, strongest=highest, seconds=recipe.seconds / count)
            found.append(learn(encoder, part, report=lambda step, done=i: note(step, done),
                               tell=lambda text, i=i: tell(f"stage {i + 1} of {count}: {text}"), rescue=partly.append,
                               weakest=lowest, must_gain=False))
    except BaseException:
        if so_far := [*found, *partly]:
            rescue(together([*so_far, *so_far[-1:] * (count - len(so_far))], spans, STOPPED))
        raise
    if not any(learned.kept < learned.checks[0].loss for learned in found):
        raise ValueError(f"nothing was learned in any of the {count} stages. Use more steps (now {recipe.steps}) or "
                         f"another learning_rate (now {recipe.rate:g}), or set stages to 1.")
    return together(found, spans, max(found, key=lambda learned: len(learned.losses)).ended)


def together(found: Sequence[Learned], spans: Sequence[tuple[float, float]], ended: str) -> Learned:
    """One ``Learned`` of the stages': the middle one, with all of them and means of their held-out losses."""
    chief, starts = found[middle(len(found))], [0.0, *(1 - highest for _, highest in spans[1:])]
    first, kept = (fmean(losses) for losses in zip(*((one.checks[0].loss, one.kept) for one in found), strict=True))
    last = chief.checks[0]._replace(samples=sum(one.checks[-1].samples for one in found),
                                    seconds=sum(one.checks[-1].seconds for one in found), loss=kept)
    return replace(
        chief, losses=[loss for one in found for loss in one.losses], kept=kept, ended=ended,
        checks=[chief.checks[0]._replace(loss=first), last],
        verdict=f"{len(found)} stages, the middle one {chief.verdict}",
        stages=tuple(Stage(start, one.vectors) for start, one in zip(starts, found, strict=True)))
