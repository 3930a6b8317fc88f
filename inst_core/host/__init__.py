"""The one place that touches ComfyUI.

``files``: folders and reading. ``progress``: bars, previews, cancel. ``families``: which model can do what. ``text``:
prompts with spliced vectors. ``vision``: CLIP vision and VAE. ``sampling``: noise levels and sampling. ``training``:
models that can be differentiated.
"""
from .families import (
    check_invertible,
    check_learnable,
    family_of,
    source_of,
)
from .files import (
    STYLE_FOLDER,
    TRANSFER_FOLDER,
    embeddings_files,
    embeddings_path,
    file_fingerprint,
    load_weights,
    metadata_enabled,
    model_files,
    model_path,
    register_folders,
    style_files,
    style_folders,
    style_path,
)
from .progress import (
    LatentPreview,
    Progress,
    check_interrupted,
    global_rng_kept,
    show_text,
)
from .sampling import (
    SAMPLERS,
    SCHEDULERS,
    Inverted,
    cosine_sigmas,
    invert,
    released_sigmas,
    sample,
    sampling_sigmas,
)
from .text import (
    PLACEHOLDER,
    style_conditioning,
    text_widths,
    with_placeholder,
    word_vectors,
)
from .training import (
    TrainingSession,
    compute_device,
    free_memory,
    is_out_of_memory,
    make_room,
    training_mode,
    training_session,
)
from .vision import encode_latent, picture_features

__all__ = [
    "PLACEHOLDER",
    "SAMPLERS",
    "SCHEDULERS",
    "STYLE_FOLDER",
    "TRANSFER_FOLDER",
    "Inverted",
    "LatentPreview",
    "Progress",
    "TrainingSession",
    "check_interrupted",
    "check_invertible",
    "check_learnable",
    "compute_device",
    "cosine_sigmas",
    "embeddings_files",
    "embeddings_path",
    "encode_latent",
    "family_of",
    "file_fingerprint",
    "free_memory",
    "global_rng_kept",
    "invert",
    "is_out_of_memory",
    "load_weights",
    "make_room",
    "metadata_enabled",
    "model_files",
    "model_path",
    "picture_features",
    "register_folders",
    "released_sigmas",
    "sample",
    "sampling_sigmas",
    "show_text",
    "source_of",
    "style_conditioning",
    "style_files",
    "style_folders",
    "style_path",
    "text_widths",
    "training_mode",
    "training_session",
    "with_placeholder",
    "word_vectors",
]
