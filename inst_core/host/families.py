"""Which model families the nodes serve. The only place that knows a family's name."""
from pathlib import Path
from typing import NamedTuple


class Family(NamedTuple):
    """Attributes: ``label`` for people; ``learn``: gradients reach its prompt; ``reason`` if not."""

    label: str
    learn: bool = True
    reason: str = ""


# Keyed by the host's model config class (comfy/supported_models.py).
FAMILIES = {
    "SD15": Family("SD 1.x"),
    "SD20": Family("SD 2.x"),
    "SDXL": Family("SDXL"),
    "SSD1B": Family("SSD-1B"),
    "Segmind_Vega": Family("Segmind-Vega"),
    "KOALA_700M": Family("KOALA 700M"),
    "KOALA_1B": Family("KOALA 1B"),
}


def family_of(model) -> str:
    """The family key of a MODEL, also for families that are not in the table."""
    return type(model.model.model_config).__name__


def source_of(model) -> str:
    """File name of the checkpoint a MODEL was loaded from, where its loader tells; otherwise the family."""
    match model.cached_patcher_init:
        case (_, (str() as path, *_), *_):
            return Path(path).name
    return family_of(model)


def _check_still_image(model, node: str) -> None:
    name = family_of(model)
    if model.get_model_object("latent_format").latent_dimensions != 2:
        raise ValueError(f"{node} works on still images; the connected model ({name}) makes video. "
                         "Use an image model such as SD 1.5 or SDXL.")
    if getattr(model.model, "concat_keys", ()):
        raise ValueError(f"{node} does not support inpainting or edit models (the connected {name} takes extra input "
                         "channels). Use the base checkpoint and set a latent noise mask instead.")


def check_learnable(model) -> None:
    """Raises ValueError, in one sentence, unless a style can be learned on this MODEL."""
    _check_still_image(model, "Learn InST Style")
    name = family_of(model)
    if name not in FAMILIES or not FAMILIES[name].learn:
        known = ", ".join(f.label for f in FAMILIES.values() if f.learn)
        raise ValueError(f"Learn InST Style does not support the connected model family ({name}). "
                         f"Supported: {known}.")


def check_invertible(model) -> None:
    """Raises ValueError, in one sentence, unless the MODEL's noising can be inverted."""
    _check_still_image(model, "Stochastic Invert Latent")
