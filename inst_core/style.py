"""The Style: a learned style in memory, and its file.

The file is a safetensors file that stock ``embedding:name`` prompts read too: its top level holds the vectors under
the text encoders' own keys (``clip_l``, ``clip_g``, ...).  Everything else lives under ``inst.``.
"""
import base64
import hashlib
import io
import json
import os
import struct
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

FORMAT_VERSION = "1"
MAX_BYTES = 256 * 2**20
MAX_TOKENS = 75
# Widths of the text encoders a style can be written for.
KNOWN_WIDTHS = {"clip_l": 768, "clip_g": 1280, "clip_h": 1024, "t5xxl": 4096}
# Kept when the user disables metadata: without them the file cannot say what it fits.
FORMAT_METADATA = ("inst.version", "inst.encoder", "inst.family", "inst.layers")
# Which cross-attention layers of the denoiser a style is meant for (see host/style_layers.py).
ALL_LAYERS, LATE_LAYERS = "all", "late"
LAYERS = ALL_LAYERS, LATE_LAYERS
THUMBNAIL_PIXELS = 256
_PREFIX = "inst."


class StyleError(ValueError):
    """A style that cannot be used; the message says what it is and what was expected."""


@dataclass(frozen=True)
class Style:
    """A learned style.

    Attributes:
        vectors: {text encoder key: (n, width) float32 CPU}: the pseudo-words, all with the same n.
        encoder: name of the style encoder that made them.
        family: model family it was learned on, such as "SD15".
        encoder_weights: the encoder's state dict, official key names.
        extra: further tensors, such as ``image_embed``.
        metadata: string -> string, the file's header.
        layers: "all", or "late" where only the late decoder blocks of a U-Net are to see it.
    """

    vectors: Mapping[str, Tensor]
    encoder: str = "direct"
    family: str = ""
    encoder_weights: Mapping[str, Tensor] = field(default_factory=dict)
    extra: Mapping[str, Tensor] = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=dict)
    layers: str = ALL_LAYERS

    @property
    def tokens(self) -> int:
        return next(iter(self.vectors.values())).shape[0]

    def describe(self) -> str:
        """One line for messages: ``4 tokens for clip_l (768), direct, SD15``."""
        widths = ", ".join(f"{k} ({v.shape[-1]})" for k, v in self.vectors.items())
        return f"{self.tokens} token{'s' * (self.tokens != 1)} for {widths}, {self.encoder}, {self.family or 'unknown'}"


def check_vectors(vectors: Mapping[str, Tensor], source: str) -> None:
    """Raises StyleError unless every entry is a finite (n, width) matrix of a known text encoder, all with one n."""
    if not vectors:
        raise StyleError(f"{source} holds no style vectors. Expected one of the keys {', '.join(KNOWN_WIDTHS)}.")
    for key, value in vectors.items():
        if value.ndim != 2 or not value.is_floating_point() or not 1 <= value.shape[0] <= MAX_TOKENS:
            raise StyleError(f"{source}: {key} is {value.dtype} {tuple(value.shape)}; expected floating point "
                             f"(1..{MAX_TOKENS}, {KNOWN_WIDTHS.get(key, 'width')}).")
        if key in KNOWN_WIDTHS and value.shape[1] != KNOWN_WIDTHS[key]:
            raise StyleError(f"{source}: {key} has width {value.shape[1]}, that text encoder takes "
                             f"{KNOWN_WIDTHS[key]}. The file is damaged or mislabelled.")
        if not torch.isfinite(value).all():
            raise StyleError(f"{source}: {key} contains NaN or infinite values. Learn the style again.")
    if len({v.shape[0] for v in vectors.values()}) != 1:
        counts = ", ".join(f"{k}: {v.shape[0]}" for k, v in vectors.items())
        raise StyleError(f"{source}: the text encoders disagree on the number of tokens ({counts}). "
                         "Learn the style again.")


def check_fits(style: Style, widths: Mapping[str, int]) -> None:
    """Raises StyleError unless the style has vectors for exactly the text encoders ``widths`` {key: width}."""
    have = {k: v.shape[-1] for k, v in style.vectors.items()}
    if have == dict(widths):
        return
    wanted = ", ".join(f"{k} ({w})" for k, w in widths.items())
    raise StyleError(f"This style holds {style.describe()}; the connected CLIP takes {wanted}. Use the style with a "
                     "model of the family it was learned on, or learn it again with this one.")


def thumbnail(image: Tensor) -> str:
    """A JPEG data URI of an (H, W, 3) picture in [0, 1], at most 256 px."""
    picture = Image.fromarray((image.clamp(0, 1) * 255).round().byte().cpu().numpy())
    picture.thumbnail((THUMBNAIL_PIXELS, THUMBNAIL_PIXELS))
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def to_bytes(style: Style, with_metadata: bool = True) -> bytes:
    """The style file. ``with_metadata=False`` keeps only what says which model the file fits."""
    tensors = dict(style.vectors)
    tensors |= {f"{_PREFIX}encoder.{k}": v for k, v in style.encoder_weights.items()}
    tensors |= {_PREFIX + k: v for k, v in style.extra.items()}
    tensors = {k: v.detach().float().cpu().contiguous() for k, v in tensors.items()}
    metadata = {**style.metadata, "inst.version": FORMAT_VERSION, "inst.encoder": style.encoder,
                "inst.family": style.family, "inst.layers": style.layers}
    if not with_metadata:
        metadata = {k: metadata[k] for k in FORMAT_METADATA}
    return save(tensors, metadata)


def save_style(style: Style, path: Path, with_metadata: bool = True) -> None:
    """Writes the file under a temporary name beside ``path``, then renames it: it is whole or not there.

    Raises:
        StyleError: the style itself is unusable.
        OSError: the folder cannot be written.
    """
    check_vectors(style.vectors, "the style")
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=".partial")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(to_bytes(style, with_metadata))
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _check_header(path: Path) -> None:
    """Refuses what is not a safetensors file of sensible size, before any tensor is made."""
    size = path.stat().st_size
    if size > MAX_BYTES:
        raise StyleError(f"{path.name} has {size / 2**20:.0f} MB; a style file has at most {MAX_BYTES // 2**20} MB. "
                         "This looks like a model checkpoint.")
    with path.open("rb") as file:
        start = file.read(8)
    if start[:2] in (b"PK", b"\x80\x02", b"\x80\x04"):
        raise StyleError(f"{path.name} is a pickle (a torch .pt file under another name). Pickles can run code and are "
                         "not opened. Official InST files go through Import InST embeddings.pt.")
    if len(start) < 8 or not 0 < struct.unpack("<Q", start)[0] <= size - 8:
        raise StyleError(f"{path.name} is not a safetensors file ({size} bytes). It may be cut off; copy it again.")


def load_style(path: Path) -> Style:
    """Reads and checks a style file; plain textual-inversion files in safetensors format are accepted too.

    Raises:
        StyleError: what the file is and what was expected.
    """
    if not path.is_file():
        raise StyleError(f"The style file {path.name} is not there. Press R to refresh the list, or learn a style.")
    _check_header(path)
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118 (no dictionary)
    except (SafetensorError, json.JSONDecodeError, KeyError) as error:
        raise StyleError(f"{path.name} is damaged: {error}. Copy it again or learn the style again.") from error
    version = metadata.get("inst.version", FORMAT_VERSION)
    if version != FORMAT_VERSION:
        raise StyleError(f"{path.name} has style format {version}; this version of the pack reads {FORMAT_VERSION}. "
                         "Update ComfyUI-InST.")
    if metadata.get("inst.layers", ALL_LAYERS) not in LAYERS:
        raise StyleError(f"{path.name} is for the layers {metadata['inst.layers']!r}; this version of the pack knows "
                         f"{', '.join(LAYERS)}. Update ComfyUI-InST.")
    vectors = {k: v for k, v in tensors.items() if k in KNOWN_WIDTHS}
    if not vectors:
        found = ", ".join(list(tensors)[:4]) or "nothing"
        raise StyleError(f"{path.name} is not a style: it holds {found}. Expected one of {', '.join(KNOWN_WIDTHS)}.")
    check_vectors(vectors, path.name)
    weights = f"{_PREFIX}encoder."
    inner = {k: v for k, v in tensors.items() if k.startswith(_PREFIX)}
    bad = [k for k, v in inner.items() if v.is_floating_point() and not torch.isfinite(v).all()]
    if bad:
        raise StyleError(f"{path.name}: {bad[0]} contains NaN or infinite values. Learn the style again.")
    return Style(
        vectors={k: v.float() for k, v in vectors.items()},
        encoder=metadata.get("inst.encoder", "direct"),
        family=metadata.get("inst.family", ""),
        layers=metadata.get("inst.layers", ALL_LAYERS),
        encoder_weights={k[len(weights):]: v for k, v in inner.items() if k.startswith(weights)},
        extra={k[len(_PREFIX):]: v for k, v in inner.items() if not k.startswith(weights)},
        metadata=metadata,
    )


def style_metadata(title: str, family: str, source: str, settings, learned, prompt: str,
                   pictures: Tensor) -> dict[str, str]:
    """Header of a learned style: ModelSpec keys for other tools, ``inst.*`` for ours.

    Args:
        source: file name of the checkpoint it was learned on.
        settings, learned: of the run (see ``learning``).
        pictures: (P, H, W, 3) style pictures in [0, 1].
    """
    digest = hashlib.sha256((pictures * 255).round().byte().cpu().numpy().tobytes()).hexdigest()
    return {
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": f"{family}/textual-inversion",
        "modelspec.implementation": "ComfyUI-InST",
        "modelspec.title": title,
        "modelspec.usage_hint": "Apply InST Style, or embedding:<file name> in any prompt",
        "modelspec.thumbnail": thumbnail(pictures[0]),
        "inst.base_model": source,
        "inst.steps": str(len(learned.losses)),
        "inst.loss": f"{learned.kept:.6f}",
        "inst.seed": str(settings.seed),
        "inst.text": prompt,
        "inst.style_sha256": digest,
    }
