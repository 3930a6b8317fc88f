"""How a style is learned: one recipe for each style encoder, all defaults in one place."""
from dataclasses import dataclass, replace

START_WORDS = "painting"


@dataclass(frozen=True)
class Recipe:
    """How to learn.

    Attributes:
        encoder: name of the style encoder, one of ``encoders.ENCODERS``.
        tokens: number of pseudo-words.
        steps: optimiser steps, at the most.
        batch: samples a step.
        rate: learning rate of AdamW.  For pseudo-words it is meant for a vocabulary of CLIP-L's scale and is adapted
            to others (see ``encoders.word_group``); for the weights of a network it is used as it is.
        decay: the rate falls linearly to zero over ``steps``.
        views: crops of the painting that are learned from; 0 = the whole painting and its mirror image.
        strongest: highest training time in (0, 1] that is learned from and judged by: a style used at strength 0.7
            never meets more noise than that.
        bank: number of samples, drawn once and met again and again; 0 = fresh samples in every step.
        patience: the run ends when so many checks of the held-out loss brought next to nothing; None = all steps.
        keep_best: the style with the lowest held-out loss is kept, not the last one.
        start: words that pseudo-words start from; empty = the mean of the vocabulary.
        seed: draws everything that is random.
        seconds: time limit, 0 = none.

    Raises:
        ValueError: a number outside its range.
    """

    encoder: str = "direct"
    tokens: int = 4
    steps: int = 100
    batch: int = 4
    rate: float = 5e-3
    decay: bool = True
    views: int = 16
    strongest: float = 1.0
    bank: int = 64
    patience: int | None = 3
    keep_best: bool = True
    start: str = START_WORDS
    seed: int = 0
    seconds: float = 0.0

    def __post_init__(self):
        if self.steps < 1:
            raise ValueError(f"steps is {self.steps}; at least 1 is needed. A hundred or so learn a style.")
        if self.batch < 1:
            raise ValueError(f"batch_size is {self.batch}; at least 1 is needed.")
        if self.tokens < 1:
            raise ValueError(f"tokens is {self.tokens}; at least 1 is needed.")
        if not self.rate > 0:
            raise ValueError(f"learning_rate is {self.rate}; it must be above 0 (about 1e-4 to 1e-2).")
        if not 0 < self.strongest <= 1:
            raise ValueError(f"strongest is {self.strongest}; it must be above 0 and at most 1.")

    def rate_at(self, step: int) -> float:
        """What is left of the learning rate after ``step`` steps, as a share of it."""
        return 1 - step / self.steps if self.decay else 1.0


# The released recipe (official configs/stable-diffusion/v1-finetune.yaml): single samples of the painting and its
# mirror image, uniform levels, a constant rate, and the last of 6100 updates counts.
PAPER = Recipe("paper", tokens=1, steps=6100, batch=1, rate=1e-4, decay=False, views=0, bank=0, patience=None,
               keep_best=False)
RECIPES = {
    "direct": Recipe("direct"),
    "attention": Recipe("attention", rate=1e-3),
    "paper": PAPER,
    "released": replace(PAPER, encoder="released"),
}
FAITHFUL = "paper", "released"  # encoders that make one token and learn from all levels

AUTO = "auto"  # an encoder: the one of the quality
GOOD = "good"
QUALITIES = {
    "quick": replace(RECIPES["direct"], steps=40, batch=2),
    GOOD: RECIPES["direct"],
    "like the paper": PAPER,
}


def choose_recipe(encoder: str, tokens: int = 0, steps: int = 0, batch: int = 0, rate: float = 0.0,
                  strongest: float = 1.0, quality: str = GOOD, **others) -> Recipe:
    """A recipe with the user's choices in it.

    Args:
        encoder: whose recipe it is, or ``AUTO``: the recipe of ``quality``.
        tokens, steps, batch, rate: 0 = as the recipe says.  ``paper`` and ``released`` keep their one token and all
            levels, whatever is chosen.

    Raises:
        ValueError: an unknown encoder or quality, or a number outside its range.
    """
    if encoder != AUTO and encoder not in RECIPES:
        raise ValueError(f"encoder is {encoder!r}; expected one of {', '.join((*RECIPES, AUTO))}.")
    if quality not in QUALITIES:
        raise ValueError(f"quality is {quality!r}; expected one of {', '.join(QUALITIES)}.")
    recipe = QUALITIES[quality] if encoder == AUTO else RECIPES[encoder]
    chosen = {"steps": steps, "batch": batch, "rate": rate}
    if recipe.encoder not in FAITHFUL:
        chosen |= {"tokens": tokens, "strongest": strongest}
    return replace(recipe, **{name: value for name, value in chosen.items() if value}, **others)
