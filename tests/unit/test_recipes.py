"""One recipe for each encoder."""
from dataclasses import replace

import pytest
from inst_pack.inst_core.encoders import ENCODERS
from inst_pack.inst_core.recipes import AUTO, RECIPES, Recipe, choose_recipe


def test_every_encoder_has_a_recipe():
    assert list(RECIPES) == list(ENCODERS) and all(recipe.encoder == name for name, recipe in RECIPES.items())


@pytest.mark.parametrize("encoder", ["paper", "released"])
def test_the_papers_encoders_run_the_released_recipe(encoder):
    recipe = choose_recipe(encoder, tokens=4, strongest=0.5)
    assert (recipe.steps, recipe.batch, recipe.rate, recipe.tokens) == (6100, 1, 1e-4, 1)
    assert not (recipe.views or recipe.bank or recipe.decay or recipe.keep_best) and recipe.patience is None
    assert recipe.strongest == 1.0


def test_zero_is_what_suits_the_encoder_and_other_numbers_count():
    assert choose_recipe("direct") == RECIPES["direct"]
    chosen = choose_recipe("direct", 2, 30, 8, 0.002, 0.5, seed=7, seconds=3.0)
    assert chosen == Recipe("direct", 2, 30, 8, 0.002, strongest=0.5, seed=7, seconds=3.0)
    assert choose_recipe("paper", steps=30, rate=1e-3).steps == 30


def test_the_rate_falls_evenly():
    assert [Recipe(steps=4).rate_at(step) for step in range(5)] == [1, 0.75, 0.5, 0.25, 0]
    assert RECIPES["paper"].rate_at(6000) == 1


@pytest.mark.parametrize("wrong, says", [
    ({"encoder": "magic"}, "'magic'; expected one of direct, attention, paper, released"),
    ({"encoder": AUTO, "quality": "best"}, "quality is 'best'; expected one of quick, good, like the paper")])
def test_unknown_encoders_and_qualities_are_named(wrong, says):
    with pytest.raises(ValueError, match=says):
        choose_recipe(**wrong)


@pytest.mark.parametrize("wrong, name", [({"steps": 0}, "steps"), ({"batch": 0}, "batch_size"),
                                         ({"tokens": 0}, "tokens"),
                                         ({"rate": -1.0}, "learning_rate"), ({"strongest": 0.0}, "strongest"),
                                         ({"strongest": 1.5}, "strongest")])
def test_numbers_outside_their_range_are_named(wrong, name):
    with pytest.raises(ValueError, match=name):
        Recipe(**wrong)


def test_a_quality_decides_unless_an_encoder_is_chosen():
    assert choose_recipe(AUTO) == choose_recipe(AUTO, quality="good") == RECIPES["direct"]
    quick = choose_recipe(AUTO, quality="quick")
    assert quick.steps * quick.batch < RECIPES["direct"].steps * RECIPES["direct"].batch / 4
    assert choose_recipe(AUTO, quality="like the paper") == RECIPES["paper"]
    assert choose_recipe("attention", quality="quick") == RECIPES["attention"]  # as saved workflows have it
    assert choose_recipe(AUTO, steps=7, rate=0.01, quality="quick") == replace(quick, steps=7, rate=0.01)
