"""The one place that touches ComfyUI.

``files``: folders and reading. ``progress``: bars, previews, cancel. ``families``: which model can do what. ``parts``:
whether what is connected belongs together. ``identity``: which models these are. ``text``: prompts with vectors in
them. ``vision``: CLIP vision and VAE. ``sampling``: noise levels and sampling. ``size``: the size a model was made for.
``training``: models that can be differentiated. ``learning``: a style learned on them. ``adapter``: a style's low-rank
updates of the denoiser. ``patches``: what others put on a model. ``features``: what the denoiser sees in a picture.
``structure``: a layout held while sampling. ``routes``: what the editor asks for. ``styleshot``: StyleShot's networks
and attention patches.
"""
from . import (
    adapter,
    families,
    features,
    files,
    identity,
    learning,
    parts,
    patches,
    progress,
    routes,
    sampling,
    size,
    structure,
    styleshot,
    text,
    training,
    vision,
)

__all__ = ["adapter", "families", "features", "files", "identity", "learning", "parts", "patches", "progress", "routes",
           "sampling", "size", "structure", "styleshot", "text", "training", "vision"]
