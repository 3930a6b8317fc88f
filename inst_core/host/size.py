"""The size that a model was made for, and how pictures of other sizes come to it: scaled, or in tiles."""
from torch import Tensor

from .. import preprocess, tiles
from ..library import read_metadata
from .families import MAX_SIDE, MIN_SIDE, USUAL_SIDE, family_of, file_of, rows_of

NOT_CUT = ("transformer_options",)  # the model's own notes; a tile changes nothing in them


def native_side(model) -> int:
    """Pixels on a side of the pictures that a MODEL was made for: as its file says (``modelspec.resolution``), else
    what is usual in its family."""
    file = file_of(model)
    said = "" if file is None else read_metadata(file).get("modelspec.resolution", "").partition("x")[0]
    if said.isdecimal() and MIN_SIDE <= int(said) <= MAX_SIDE:
        return int(said)
    return next((family.side for family in rows_of(family_of(model))), USUAL_SIDE)


def fit(model, pictures: Tensor, scale: float) -> Tensor:
    """Pictures (B, H, W, 3) scaled to ``scale`` times the side the model was made for, in area; nothing is cropped."""
    step = 2 * model.get_model_object("latent_format").spacial_downscale_ratio
    height, width = pictures.shape[1:3]
    factor = scale * native_side(model) / (height * width) ** 0.5
    return preprocess.resize(pictures, *(max(step, round(side * factor / step) * step) for side in (height, width)))


def tile_model(model, side: int, overlap: float):
    """A MODEL that looks at large latents in tiles; small ones, and all else about it, stay as they are.

    Args:
        side: of a tile in pixels; 0 = what the model was made for.
        overlap: of neighbouring tiles, as a share of a tile, [0, 1).
    """
    ratio = model.get_model_object("latent_format").spacial_downscale_ratio
    tile = max(1, (side or native_side(model)) // ratio)
    tiled, before = model.clone(), model.model_options.get("model_function_wrapper")
    shared = min(tile - 1, round(tile * overlap))

    def look(apply_model, given: dict) -> Tensor:
        x, conditioning = given["input"], given["c"]

        def compute(part: Tensor, place: tiles.Place) -> Tensor:
            cut = {k: v if k in NOT_CUT else tiles.crop(v, place, *x.shape[-2:]) for k, v in conditioning.items()}
            if before is not None:
                return before(apply_model, {**given, "input": part, "c": cut})
            return apply_model(part, given["timestep"], **cut)

        return tiles.blend(x, tile, shared, compute)

    tiled.set_model_unet_function_wrapper(look)
    return tiled
