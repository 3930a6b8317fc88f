"""Results that nobody would call style transfer, to read numbers by."""
from collections.abc import Callable

from torch import Tensor

from ..portable import shrink
from .palette import color_transfer

Maker = Callable[[Tensor, Tensor, Tensor], Tensor]


def resized(picture: Tensor, size: tuple[int, int]) -> Tensor:
    """(B, 3, H, W) to another (height, width), antialiased bilinear."""
    if tuple(picture.shape[2:]) == tuple(size):
        return picture
    return shrink(picture, size).clamp(0, 1)


def covering(picture: Tensor, size: tuple[int, int]) -> Tensor:
    """The middle of a picture, without distortion, in the given (height, width)."""
    height, width = picture.shape[2:]
    scale = max(size[0] / height, size[1] / width)
    picture = resized(picture, (max(size[0], round(height * scale)), max(size[1], round(width * scale))))
    top, left = (picture.shape[2] - size[0]) // 2, (picture.shape[3] - size[1]) // 2
    return picture[:, :, top:top + size[0], left:left + size[1]]


def upside_down(picture: Tensor) -> Tensor:
    """Stands for an unrelated picture where there is none: other layout, the same colours and textures."""
    return picture.flip(2, 3)


# name: (content, style, unrelated picture) -> result, all (1, 3, H, W) in [0, 1], the result in the content's size
TRIVIAL: dict[str, Maker] = {
    "copy of content": lambda content, style, unrelated: content,
    "copy of style": lambda content, style, unrelated: covering(style, tuple(content.shape[2:])),
    "mirrored style": lambda content, style, unrelated: covering(style.flip(3), tuple(content.shape[2:])),
    "colours only": lambda content, style, unrelated: color_transfer(content, style),
    "unrelated picture": lambda content, style, unrelated: covering(unrelated, tuple(content.shape[2:])),
}


def trivial_results(content: Tensor, style: Tensor, unrelated: Tensor | None = None) -> dict[str, Tensor]:
    """{name: result} of each; without an unrelated picture the content upside down stands for it.

    Args:
        content, style, unrelated: (1, 3, H, W) in [0, 1], of any sizes.
    """
    other = upside_down(content) if unrelated is None else unrelated
    return {name: make(content, style, other) for name, make in TRIVIAL.items()}
