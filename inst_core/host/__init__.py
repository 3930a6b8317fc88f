"""The one place that touches ComfyUI.

``files``: folders and reading. ``progress``: bars, previews, cancel. ``families``: which model can do what. ``text``:
prompts with spliced vectors. ``vision``: CLIP vision and VAE. ``sampling``: noise levels and sampling. ``training``:
models that can be differentiated. ``styleshot``: StyleShot's networks and attention patches.
"""
from .families import (
    PAPER_FAMILY,
    check_invertible,
    check_learnable,
    family_of,
    label_of_encoders,
    source_of,
)
from .files import (
    TRANSFER_FOLDER,
    embeddings_files,
    embeddings_path,
    file_fingerprint,
    library_folders,
    metadata_enabled,
    model_files,
    model_path,
    register_folders,
    searched_folders,
    style_files,
    style_folders,
    style_path,
)
from .identity import identify
from .progress import (
    LatentPreview,
    Progress,
    show_text,
)
from .sampling import (
    SAMPLERS,
    SCHEDULERS,
    cosine_sigmas,
    invert,
    released_sigmas,
    sample,
    sampling_sigmas,
)
from .styleshot import (
    StyleShot,
    check_styleshot,
    controlled,
    styled_model,
)
from .text import (
    style_conditioning,
    text_widths,
    with_placeholder,
    word_vectors,
)
from .training import (
    make_room,
    training_mode,
    training_session,
)
from .vision import encode_latent, picture_features

__all__ = [
    "PAPER_FAMILY",
    "SAMPLERS",
    "SCHEDULERS",
    "TRANSFER_FOLDER",
    "LatentPreview",
    "Progress",
    "StyleShot",
    "check_invertible",
    "check_learnable",
    "check_styleshot",
    "controlled",
    "cosine_sigmas",
    "embeddings_files",
    "embeddings_path",
    "encode_latent",
    "family_of",
    "file_fingerprint",
    "identify",
    "invert",
    "label_of_encoders",
    "library_folders",
    "make_room",
    "metadata_enabled",
    "model_files",
    "model_path",
    "picture_features",
    "register_folders",
    "released_sigmas",
    "sample",
    "sampling_sigmas",
    "searched_folders",
    "show_text",
    "source_of",
    "style_conditioning",
    "style_files",
    "style_folders",
    "style_path",
    "styled_model",
    "text_widths",
    "training_mode",
    "training_session",
    "with_placeholder",
    "word_vectors",
]
