"""Whose error is minimised, and when it is done."""
import pytest
import torch
from inst_pack.inst_core.objective import converged, output_error


class Sampling:
    """D = a x + b output with b of the level."""

    def __init__(self, slope):
        self.slope = slope

    def calculate_denoised(self, sigma, output, x):
        return 0.5 * x + self.slope(sigma).view(-1, 1, 1, 1) * output


@pytest.mark.parametrize("slope", [lambda s: -s, lambda s: -s / (s**2 + 1).sqrt(), torch.ones_like])
def test_the_error_is_of_what_the_network_says(slope):
    generator = torch.Generator().manual_seed(0)
    x, said, right = torch.randn(3, 2, 4, 5, 5, generator=generator)
    sigma = torch.tensor([0.03, 14.0])
    sampling = Sampling(slope)
    denoised, clean = (sampling.calculate_denoised(sigma, output, x) for output in (said, right))
    torch.testing.assert_close(output_error(sampling, sigma, denoised, clean), said - right, rtol=1e-3, atol=1e-4)


def test_where_the_output_does_not_reach_the_prediction_there_is_no_error():
    sigma = torch.tensor([0.0, 2.0])
    error = output_error(Sampling(lambda s: s), sigma, torch.ones(2, 4, 8, 8), torch.zeros(2, 4, 8, 8))
    assert (error[0] == 0).all() and (error[1] == 0.5).all()


@pytest.mark.parametrize("losses, over", [
    ([1.0], False),
    ([1.0, 0.9, 0.8, 0.7], False),  # still falling
    ([1.0, 0.5, 0.5, 0.5], False),  # half of it came within the last three
    ([1.0, 0.5, 0.5, 0.49, 0.49], True),  # 0.01 of 0.51
    ([1.0, 0.5, 0.48, 0.47, 0.45], False),  # 0.05 of 0.55
    ([1.0, 1.1, 1.2, 1.1], False),  # nothing was gained, so nothing has converged
    ([1.0, 1.0, 1.0, 1.0], False),
    ([1e-3, 5e-4, 5e-4, 4.9e-4, 4.9e-4], True),  # the scale of the loss does not matter
])
def test_it_is_over_when_the_last_three_checks_brought_next_to_nothing(losses, over):
    assert converged(losses) == over


def test_more_patience_waits_longer():
    losses = [1.0, 0.5, 0.5, 0.5, 0.5]
    assert converged(losses, patience=2) and converged(losses, patience=3) and not converged(losses, patience=4)
