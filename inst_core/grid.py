"""The comparison figure: pictures in rows and columns with labels, evenly spaced."""
import logging
from collections.abc import Sequence

import torch
from einops import rearrange
from torch import Tensor

from .lettering import Lettering
from .portable import shrink

MAX_ASPECT = 3.0  # wider pictures are made smaller instead of making their column wider
MAX_PIXELS = 2**27
TEXT_SHARE = 1 / 14  # of the cell's height
MINIMUM_TEXT = 12  # px

Cells = Sequence[Sequence[Tensor | None]]


def scaled_size(picture: Tensor, height: int) -> tuple[int, int]:
    """(height, width) of (3, H, W) in a row of that height, without distortion."""
    aspect = picture.shape[2] / picture.shape[1]
    if aspect > MAX_ASPECT:
        return max(1, round(height * MAX_ASPECT / aspect)), round(height * MAX_ASPECT)
    return height, max(1, round(height * aspect))


def cropped(picture: Tensor, aspect: float) -> Tensor:
    """The middle of (3, H, W) with the given width / height."""
    _, height, width = picture.shape
    h, w = max(1, min(height, round(width / aspect))), max(1, min(width, round(height * aspect)))
    top, left = (height - h) // 2, (width - w) // 2
    return picture[:, top:top + h, left:left + w]


def _resized(picture: Tensor, size: tuple[int, int]) -> Tensor:
    if picture.shape[1:] == size:
        return picture
    return shrink(picture[None], size, "bicubic")[0].clamp(0, 1)


def arranged(batches: Sequence[Tensor], as_rows: bool = False, crop: bool = False) -> Cells:
    """Rows of pictures from batches, each of which is a column, or with ``as_rows`` a row.

    Batches of one picture are repeated; shorter ones leave places empty.

    Args:
        batches: (B, 3, H, W) each.
        crop: give every picture the aspect of the first one.
    """
    count = max(map(len, batches), default=0)
    aspect = batches[0].shape[3] / batches[0].shape[2] if batches else 1.0

    def cell(batch: Tensor, i: int) -> Tensor | None:
        if i >= len(batch) > 1:
            return None
        picture = batch[i % len(batch)]
        return cropped(picture, aspect) if crop else picture

    lines = [[cell(batch, i) for i in range(count)] for batch in batches]
    return lines if as_rows else [list(row) for row in zip(*lines, strict=True)]


def _check(cells: Cells, rows: Sequence[str], columns: Sequence[str]) -> None:
    if not cells or not cells[0] or not any(cell is not None for row in cells for cell in row):
        raise ValueError("The grid has no picture. Connect at least one.")
    for name, labels, count in (("row", rows, len(cells)), ("column", columns, len(cells[0]))):
        if labels and len(labels) != count:
            raise ValueError(f"{name}_labels has {len(labels)} lines, the grid has {count} {name}s. Write one line for "
                             "each, empty ones included, or leave it empty.")


def grid(cells: Cells, rows: Sequence[str] = (), columns: Sequence[str] = (), height: int = 512,
         gap: int = 8) -> Tensor:
    """One picture of all.

    Every row has the given height, every column the width of its widest picture; pictures are scaled without
    distortion and centred, and the same gap lies between all of them.  Columns are labelled above, rows at the left.

    Args:
        cells: rows of pictures (3, H, W) in [0, 1]; None leaves a place empty. All rows have the same length.
        rows, columns: labels, or empty for none.
        height: of a row, in pixels.
        gap: in pixels, also around the figure.

    Returns:
        (1, height, width, 3) in [0, 1].

    Raises:
        ValueError: no picture, labels that do not fit, a height or gap below its least, or a figure beyond MAX_PIXELS.
    """
    _check(cells, rows, columns)
    if height < 1 or gap < 0:
        raise ValueError(f"height is {height} and gap is {gap}; expected at least 1 and 0 pixels.")
    text = Lettering(max(MINIMUM_TEXT, round(height * TEXT_SHARE)))
    sizes = [[scaled_size(cell, height) if cell is not None else (0, 0) for cell in row] for row in cells]
    widths = [max(1, *(size[1] for size in column)) for column in zip(*sizes, strict=True)]
    margin_left = gap + (min(max(map(text.width, rows)), 2 * height) + gap if any(rows) else 0)
    margin_top = gap + (text.height + gap if any(columns) else 0)
    total = margin_top + len(cells) * (height + gap), margin_left + sum(w + gap for w in widths)
    if total[0] * total[1] > MAX_PIXELS:
        raise ValueError(f"The grid would be {total[1]} x {total[0]} px. Choose a smaller height than {height}, or "
                         "fewer pictures.")
    lefts = [margin_left + sum(w + gap for w in widths[:i]) for i in range(len(widths))]
    tops = [margin_top + i * (height + gap) for i in range(len(cells))]
    sheet = torch.ones(3, *total)

    def place(picture: Tensor, top: int, left: int, box: tuple[int, int]) -> None:
        h, w = picture.shape[1:]
        y, x = top + (box[0] - h) // 2, left + (box[1] - w) // 2
        sheet[:, y:y + h, x:x + w] = picture

    for label, left, width in zip(columns, lefts, widths, strict=False):
        place(text.draw(label, width), gap, left, (text.height, width))
    for label, top in zip(rows, tops, strict=False):
        width = margin_left - 2 * gap
        if width > 0:
            place(text.draw(label, width), top, gap, (height, width))
    for row, row_sizes, top in zip(cells, sizes, tops, strict=True):
        for cell, size, left, width in zip(row, row_sizes, lefts, widths, strict=True):
            if cell is not None:
                place(_resized(cell.to(sheet), size), top, left, (height, width))
    if text.replaced:
        logging.getLogger(__name__).warning(
            "Comparison Grid: no font of this system has the letters %s of the labels; they were replaced. Install a "
            "font that has them, such as Noto Sans of that script.", "".join(sorted(text.replaced)))
    return rearrange(sheet, "c h w -> 1 h w c").contiguous()
