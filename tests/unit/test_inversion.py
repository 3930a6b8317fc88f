"""Stochastic inversion in every parametrisation, and the NOISE it hands on."""
import pytest
import torch
from inst_pack.inst_core.inversion import (
    InversionNoise,
    fresh_noise,
    noise_between,
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


def test_a_perfect_denoiser_finds_the_noise_that_was_added():
    z, n = draw(0), draw(1)
    found = stochastic_inversion(Eps(), lambda x, s: z, z, n, torch.tensor(3.0))
    torch.testing.assert_close(found, n, atol=1e-5, rtol=1e-5)


def test_fresh_noise_is_the_same_for_a_split_batch():
    whole = fresh_noise((4, 4, 3, 3), seed=5)
    parts = torch.cat([fresh_noise((2, 4, 3, 3), 5, [0, 1]), fresh_noise((2, 4, 3, 3), 5, [2, 3])])
    assert torch.equal(whole, parts)
    assert not torch.equal(whole[0], whole[1])


def test_fresh_noise_leaves_the_global_generator_alone():
    before = torch.random.get_rng_state()
    fresh_noise(SIZE, 1)
    assert torch.equal(before, torch.random.get_rng_state())


def test_released_levels_differ_as_in_the_official_code():
    t_noise, ddim = released_timesteps(0.7, 50)
    assert (t_noise, ddim[0], ddim[-1], len(ddim)) == (700, 681, 1, 35)


@pytest.mark.parametrize("strength", [0.0, 1.0, -0.2, 1.5, 0.01])
def test_released_levels_outside_their_range_are_refused(strength):
    with pytest.raises(ValueError, match=f"strength is {strength}.*timing 'matched'"):
        released_timesteps(strength, 50)


def test_noise_repeats_over_batches_and_honours_batch_index():
    noise = InversionNoise(0, draw(0), 1.0)
    repeated = noise.generate_noise({"samples": torch.zeros(5, *SIZE[1:])})
    assert torch.equal(repeated, draw(0)[[0, 1, 0, 1, 0]])
    picked = noise.generate_noise({"samples": torch.zeros(1, *SIZE[1:]), "batch_index": [1]})
    assert torch.equal(picked, draw(0)[1:])


def test_noise_of_another_size_is_refused_with_both_sizes():
    with pytest.raises(ValueError, match=r"\(4, 6, 5\).*\(4, 8, 8\)"):
        InversionNoise(0, draw(0), 1.0).generate_noise({"samples": torch.zeros(1, 4, 8, 8)})
