"""What lies in the span of content words, and what does not."""
import pytest
import torch
from inst_pack.inst_core.content import RANK, parts_of, span


def directions(n: int, width: int = 64, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, width, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("n, rank", [(1, 1), (4, 4), (30, RANK)])
def test_a_span_is_orthonormal_and_bounded(n, rank):
    basis = span(directions(n) * torch.logspace(-3, 3, n)[:, None])
    torch.testing.assert_close(basis @ basis.T, torch.eye(rank), atol=1e-5, rtol=0)


def test_the_main_directions_of_many_words_are_kept():
    """Words of any length count alike; those that say the same are one direction."""
    common = directions(2)
    words = torch.cat([common.repeat(20, 1) + 0.05 * directions(40, seed=1), 1e3 * directions(1, seed=2)])
    basis = span(words)
    for word in (*common, words[-1]):
        assert (word @ basis.T).norm() > 0.97 * word.norm()
    assert len(span(common[:1].repeat(5, 1))) == 1 and len(span(torch.zeros(2, 64))) == 0


def test_the_parts_of_a_style_are_apart_and_make_it_up():
    words, start = directions(3, seed=3), {"a": directions(1, seed=4), "b": directions(1, 16, seed=5)}
    bases = {"a": span(words), "b": span(directions(1, 16, seed=6))}
    vectors = {"a": start["a"] + directions(4, seed=7), "b": start["b"] + directions(4, 16, seed=8)}
    outside, inside = parts_of(vectors, start, bases)
    for key in vectors:
        torch.testing.assert_close(outside[key] + inside[key], vectors[key])
        assert ((outside[key] - start[key]) @ bases[key].T).abs().max() < 1e-5
        assert inside[key].norm() > 0.1
    torch.testing.assert_close(parts_of(outside, start, bases)[0]["a"], outside["a"])
    content = {"a": start["a"] + torch.randn(4, 3) @ words, "b": start["b"].expand(4, -1)}
    torch.testing.assert_close(parts_of(content, start, bases)[0]["a"], start["a"].expand(4, -1), atol=1e-4, rtol=0)
