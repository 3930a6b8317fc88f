"""Stochastic inversion in every parametrisation, and the NOISE it hands on."""
import random
import re

import pytest
import torch
from inst_pack.inst_core.inversion import (
    InversionNoise,
    fingerprints,
    fresh_noise,
    noise_between,
    released_start,
    released_timesteps,
    stochastic_inversion,
)


class Eps:
    """x = z + sigma n; the host scales by sqrt(1 + sigma^2) at its highest level."""

    def noise_scaling(self, sigma, noise, latent_image, max_denoise=False):
        return latent_image + noise * ((1 + sigma**2).sqrt() if max_denoise else sigma)


class Flow:
    """x = sigma n + (1 - sigma) z."""

    def noise_scaling(self, sigma, noise, latent_image, max_denoise=False):
        return sigma * noise + (1 - sigma) * latent_image


SIZE = (2, 4, 6, 5)


def draw(seed: int) -> torch.Tensor:
    return torch.randn(SIZE, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("sampling", [Eps(), Flow()])
@pytest.mark.parametrize("max_denoise", [False, True])
def test_noise_between_undoes_noise_scaling(sampling, max_denoise):
    sigma, z, n = torch.tensor(0.6), draw(0), draw(1)
    x = sampling.noise_scaling(sigma, n, z, max_denoise)
    torch.testing.assert_close(noise_between(sampling, sigma, x, z, max_denoise), n, atol=1e-5, rtol=1e-5)


def linear(x: torch.Tensor) -> torch.Tensor:
    """A network whose output is known in closed form."""
    return 0.3 * x + 0.1


def eps_prediction(x, sigma):
    """(denoised, noise) of a network that sees x / sqrt(sigma^2 + 1) and predicts the noise (Ho et al. 2020)."""
    noise = linear(x / (sigma**2 + 1).sqrt())
    return x - sigma * noise, noise


def v_prediction(x, sigma):
    """The same for v = alpha n - s z with x / sqrt(sigma^2 + 1) = alpha z + s n (Salimans & Ho 2022)."""
    alpha, s = 1 / (sigma**2 + 1).sqrt(), sigma / (sigma**2 + 1).sqrt()
    v = linear(alpha * x)
    return alpha * (alpha * x) - s * v, s * (alpha * x) + alpha * v


def flow_prediction(x, sigma):
    """The same for the velocity n - z on x = (1 - sigma) z + sigma n (Liu et al. 2022)."""
    velocity = linear(x)
    return x - sigma * velocity, x + (1 - sigma) * velocity


@pytest.mark.parametrize("level", [0.05, 0.7, 1.0])
@pytest.mark.parametrize("sampling, prediction", [(Eps(), eps_prediction), (Eps(), v_prediction),
                                                  (Flow(), flow_prediction)])
def test_inversion_is_exact_for_a_linear_denoiser(sampling, prediction, level):
    """What is found is the noise that the network itself means, in its own parametrisation."""
    sigma, z, n = torch.tensor(level), draw(0), draw(1)
    expected = prediction(sampling.noise_scaling(sigma, n, z), sigma)[1]
    found = stochastic_inversion(sampling, lambda x, s: prediction(x, s)[0], z, n, sigma)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_fresh_noise_is_the_same_for_a_split_batch():
    before = torch.random.get_rng_state()
    whole = fresh_noise((4, 4, 3, 3), seed=5)
    parts = torch.cat([fresh_noise((2, 4, 3, 3), 5, [0, 1]), fresh_noise((2, 4, 3, 3), 5, [2, 3])])
    assert torch.equal(whole, parts) and not torch.equal(whole[0], whole[1])
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize("strength", [0.0, 1.0, -0.2, 1.5, 0.01])
def test_released_levels_outside_their_range_are_refused(strength):
    with pytest.raises(ValueError, match=f"strength is {strength}.*timing 'matched'"):
        released_timesteps(strength, 50)


@pytest.mark.parametrize("steps", [2, 3, 7, 49, 50, 999, 1000])
def test_the_strength_that_a_refusal_names_works(steps):
    with pytest.raises(ValueError) as refusal:
        released_timesteps(0.0, steps)
    least = float(re.search(r"and ([\d.]+) <= strength < 1", str(refusal.value))[1])
    assert len(released_timesteps(least, steps)[1]) == 1


# ---- whose noise it is ----

def pictures(*which: int) -> torch.Tensor:
    """Latents that differ by the number they are filled with."""
    return torch.tensor(which, dtype=torch.float32).view(-1, 1, 1, 1).expand(-1, *SIZE[1:])


def made_for(which, batch_index=None) -> InversionNoise:
    """A NOISE whose row for picture k is filled with 10 k, plus its place for repeated pictures."""
    rows = pictures(*(10 * k + list(which)[:place].count(k) for place, k in enumerate(which)))
    index = None if batch_index is None else tuple(batch_index)
    return InversionNoise(0, rows, 1.0, index, fingerprints(pictures(*which)))


def given(noise: InversionNoise, which, batch_index=None) -> list[int]:
    latent = {"samples": pictures(*which)} | ({} if batch_index is None else {"batch_index": list(batch_index)})
    return noise.generate_noise(latent)[:, 0, 0, 0].int().tolist()


@pytest.mark.parametrize("inverted, known, which, index, expected", [
    ((1, 2), (1, 2), (1, 2), (1, 2), [10, 20]),  # Latent From Batch 1, 2 of four
    ((0, 1, 2, 3), None, (3, 1), (3, 1), [30, 10]),  # Latent Batch of items 3 and 1
    ((0, 1, 2, 3), None, (2, 2, 2), (2, 3, 4), [20, 20, 20]),  # Repeat Latent Batch of item 2
    ((5, 6), (0, 0), (5, 6), (0, 0), [50, 60]),  # Latent Batch of two photographs
    ((0, 1, 2, 3), None, (0, 1, 2, 3), (0, 0, 0, 0), [0, 10, 20, 30]),  # seed behaviour: fixed
    ((0, 1), None, (1, 0, 1), None, [10, 0, 10]),  # reordered pictures
    ((7,), None, (7, 7, 7), None, [70, 70, 70]),
    ((7, 7, 7), None, (7, 7), None, [70, 71]),  # a repeated still: in order
    ((7, 7, 7), None, (7, 7), (1, 2), [71, 72]),  # its frames 1 and 2
    ((7, 7, 7), None, (7, 7, 7), (0, 0, 0), [70, 71, 72]),
    # Changed since, as by Match Latent Color between the inversion and the sampler: known by their place.
    ((0, 1), None, (100, 101, 102, 103), None, [0, 10, 0, 10]),  # order, repeated
    ((0, 1), (3, 1), (100, 101, 102), (1, 3, 1), [10, 0, 10]),
    ((0, 1), (3, 1), (100,), (1,), [10]),
    ((0, 1), (0, 0), (100, 101), (0, 0), [0, 10]),
    ((0, 1), None, (100, 101), (0, 0), [0, 10]),
    ((0, 1, 2), None, (100, 100, 100), (1, 2, 3), [10, 10, 10]),  # Latent From Batch 1, repeated: indices count on
    ((7, 7, 7), None, (100, 100), (1, 2), [71, 72]),  # frames of a still are told apart by the same
])
def test_each_latent_gets_its_own_noise(inverted, known, which, index, expected):
    assert given(made_for(inverted, known), which, index) == expected


@pytest.mark.parametrize("which, index", [
    ((100,), None), ((100, 101), None), ((100, 101, 102, 103), None), ((100, 101), (1, 1)),  # seed behaviour: fixed
])
def test_a_part_of_a_changed_batch_that_does_not_say_which_is_an_error(which, index):
    with pytest.raises(ValueError, match=f"inverted from 3 latents; the sampler got {len(which)}, .*leave noise"):
        given(made_for((0, 1, 2)), which, index)


@pytest.mark.parametrize("inverted, known, which, index", [
    ((1, 2), (1, 2), (0,), (0,)),
    ((0, 1), None, (2,), (2,)),
    ((0, 1), (0, 0), (100,), (0,)),  # two photographs of index 0, changed since
    ((7, 7), (0, 1), (7,), (5,)),  # another frame of the still
])
def test_a_latent_without_noise_is_an_error(inverted, known, which, index):
    with pytest.raises(ValueError, match=rf"asks for latent {index[0]}, which is .* of them.*leave noise"):
        given(made_for(inverted, known), which, index)


def test_any_list_of_any_batch_gets_its_own_noise():
    """Whatever nodes stand between: pictures tell whose noise it is, with indices that are right, fixed or missing."""
    for seed in range(200):
        draw = random.Random(seed)
        inverted = draw.sample(range(1000), draw.randint(1, 9))
        known = draw.choice([None, draw.sample(range(50), len(inverted)), [draw.randrange(9)] * len(inverted)])
        places = [draw.randrange(len(inverted)) for _ in range(draw.randint(1, 12))]
        index = draw.choice([None, [(known or range(99))[p] for p in places], [draw.randrange(9)] * len(places)])
        which = [inverted[p] for p in places]
        assert given(made_for(inverted, known), which, index) == [10 * k for k in which], seed


def test_any_frames_of_a_still_get_their_own_noise():
    for seed in range(200):
        draw = random.Random(seed)
        known = draw.sample(range(40), draw.randint(1, 9))
        index = draw.sample(known, draw.randint(1, len(known)))
        expected = [70 + known.index(i) for i in index]
        assert given(made_for([7] * len(known), known), [7] * len(index), index) == expected, seed


def test_precision_and_memory_layout_do_not_hide_whose_it_is():
    which = torch.randn(3, *SIZE[1:], generator=torch.Generator().manual_seed(0)).half()
    noise = InversionNoise(0, draw(1)[[0, 1, 0]], 1.0, None, fingerprints(which))
    turned = which.float()[[2]].to(memory_format=torch.channels_last)
    assert torch.equal(noise.generate_noise({"samples": turned}), noise.noise[2:])


@pytest.mark.parametrize("index", [[0], [0, 1, 2], [0, -1]])
def test_indices_that_do_not_fit_the_batch_are_refused(index):
    with pytest.raises(ValueError, match="latent holds 2 pictures, its batch_index is.*Seed Behavior"):
        given(made_for((0, 1)), (0, 1), index)


def test_noise_of_another_size_is_refused_with_both_sizes():
    with pytest.raises(ValueError, match=r"\(4, 6, 5\).*\(4, 8, 8\)"):
        InversionNoise(0, draw(0), 1.0).generate_noise({"samples": torch.zeros(1, 4, 8, 8)})


def test_between_the_released_levels_what_a_variance_preserving_model_sees_stays_the_same():
    x, noised, start = torch.full((1, 4, 2, 2), 3.0), torch.tensor(2.0), torch.tensor(1.5)
    moved = released_start(None, x, noised, start)
    torch.testing.assert_close(moved / (start**2 + 1).sqrt(), x / (noised**2 + 1).sqrt())
