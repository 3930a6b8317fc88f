"""What a painting shows, told apart from how it is painted: the part of a style that lies in the span of some words.

CSD-VAR (2025) projects a style embedding away from the span of words for what the picture shows, found by SVD; here the
same is done to pseudo-words.  A pseudo-word is the word that learning started from plus what was learned; of that, what
lies in the span of the content words' own vectors is content, and the rest is style.
"""
from collections.abc import Mapping

import torch
from torch import Tensor

RANK = 10  # dimensions that content takes at the most; of hundreds, even for the smallest text encoder
LEAST = 1e-3  # of the largest singular value; less is rounding

PARTS = "style", "content"  # of a style: without what the content words name, or nothing else

Vectors = Mapping[str, Tensor]


def span(directions: Tensor, rank: int = RANK) -> Tensor:
    """An orthonormal basis (r, width) of where words lie, r at most ``rank``: the main directions where there are more.

    Args:
        directions: (n, width), one for each word, of any length.
    """
    unit = directions.double() / directions.double().norm(dim=-1, keepdim=True).clamp_min(1e-12)
    _, values, directions = torch.linalg.svd(unit, full_matrices=False)
    return directions[:rank][values[:rank] > LEAST * values[0]].float()


def parts_of(vectors: Vectors, start: Vectors, bases: Vectors) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Pseudo-words without what lies in the span of the content words, and what that is; their sum is the pseudo-words.

    Args:
        vectors: pseudo-words {text encoder key: (n, width)}.
        start: the word that learning started from, {key: (1, width)}; it is left whole.
        bases: {key: (r, width)} of ``span``.
    """
    style, content = {}, {}
    for key, vector in vectors.items():
        basis = bases[key].to(vector)
        content[key] = (vector - start[key].to(vector)) @ basis.T @ basis
        style[key] = vector - content[key]
    return style, content
