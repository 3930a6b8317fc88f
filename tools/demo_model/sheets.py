"""Pictures to look at."""
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torchvision.utils import make_grid
from whole import write_whole


def save_sheet(path: Path, rows: list[Tensor]) -> None:
    """Rows (n, 3, H, W) of pictures in [0, 1], or bytes, one below the other; the file's type is that of its name."""
    levels = [(row if row.dtype == torch.uint8 else (row.float().clamp(0, 1) * 255).round().byte()).cpu()
              for row in rows]
    sheet = make_grid(torch.cat(levels), nrow=len(rows[0]), padding=0)
    picture = Image.fromarray(sheet.permute(1, 2, 0).contiguous().numpy())
    kind = {"jpg": "JPEG"}.get(path.suffix[1:], path.suffix[1:].upper())
    write_whole(path, lambda partial: picture.save(partial, kind, quality=88))
