"""The one place that touches ComfyUI.

``files``: folders and reading. ``progress``: bars, previews, cancel. ``families``: which model can do what. ``parts``:
whether what is connected belongs together. ``text``: prompts with vectors in them. ``vision``: CLIP vision and VAE.
``sampling``: noise levels and sampling. ``size``: the size a model was made for. ``training``: models that can be
differentiated. ``learning``: a style learned on them. ``adapter``: a style's low-rank updates of the denoiser.
``structure``: a layout held while sampling. ``routes``: what the editor asks for. ``styleshot``: StyleShot's networks
and attention patches.
"""
from .adapter import adapted, with_adapter
from .families import (
    PAPER_FAMILY,
    family_of,
    label_of_encoders,
    source_of,
)
from .features import check_features, denoiser_features
from .files import (
    TRANSFER_FOLDER,
    embeddings_files,
    embeddings_path,
    file_fingerprint,
    guesser_files,
    guesser_path,
    library_folders,
    metadata_enabled,
    model_files,
    model_path,
    offer_samples,
    register_folders,
    searched_folders,
    style_files,
    style_folders,
    style_path,
)
from .identity import identify
from .learning import learn, look_at, make_encoder, make_encoders, side_to_learn_at
from .parts import check_invertible, check_learnable
from .patches import check_copyable
from .progress import (
    LatentPreview,
    LearningView,
    Progress,
    show_text,
)
from .routes import add_routes
from .sampling import (
    SAMPLERS,
    SCHEDULERS,
    changes_nothing,
    cosine_sigmas,
    invert,
    noise_mask,
    released_sigmas,
    sample,
    sampling_sigmas,
    shows_nothing,
)
from .size import fit, native_side, tile_model
from .structure import COARSE, WAYS, check_structure
from .styleshot import (
    StyleShot,
    check_styleshot,
    controlled,
    styled_model,
)
from .text import (
    content_bases,
    part_of_style,
    style_conditioning,
    text_widths,
    with_placeholder,
    word_vectors,
)
from .training import (
    check_layers,
    make_room,
    training_mode,
    training_session,
)
from .vision import check_vision, encode_latent, picture_features

__all__ = [
    "COARSE",
    "PAPER_FAMILY",
    "SAMPLERS",
    "SCHEDULERS",
    "TRANSFER_FOLDER",
    "WAYS",
    "LatentPreview",
    "LearningView",
    "Progress",
    "StyleShot",
    "adapted",
    "add_routes",
    "changes_nothing",
    "check_copyable",
    "check_features",
    "check_invertible",
    "check_layers",
    "check_learnable",
    "check_structure",
    "check_vision",
    "check_styleshot",
    "content_bases",
    "controlled",
    "cosine_sigmas",
    "denoiser_features",
    "embeddings_files",
    "embeddings_path",
    "encode_latent",
    "family_of",
    "file_fingerprint",
    "fit",
    "guesser_files",
    "guesser_path",
    "identify",
    "invert",
    "label_of_encoders",
    "learn",
    "library_folders",
    "look_at",
    "make_encoder",
    "make_encoders",
    "make_room",
    "metadata_enabled",
    "model_files",
    "model_path",
    "native_side",
    "noise_mask",
    "offer_samples",
    "part_of_style",
    "picture_features",
    "register_folders",
    "released_sigmas",
    "sample",
    "sampling_sigmas",
    "searched_folders",
    "show_text",
    "shows_nothing",
    "side_to_learn_at",
    "source_of",
    "style_conditioning",
    "style_files",
    "style_folders",
    "style_path",
    "styled_model",
    "text_widths",
    "tile_model",
    "training_mode",
    "training_session",
    "with_adapter",
    "with_placeholder",
    "word_vectors",
]
