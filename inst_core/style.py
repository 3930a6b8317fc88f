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
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import safetensors.torch
import torch
from PIL import Image
from torch import Tensor

from .adapter import DOWN, UP
from .stages import MOST, Stage, middle
from .textual_inversion import MAX_TOKENS, MAX_WIDTH, USE_IN_PROMPT, in_words, read_vectors
from .whole import write_whole

FORMAT_VERSION = "1"
MAX_BYTES = 256 * 2**20
KEY, LOSSES = "inst.key", "inst.losses"
# Kept when the user disables metadata: what the file fits, and a hash by which it is found instead of learned again.
STAGES = "inst.stages"  # where the stages of a style begin
FORMAT_METADATA = ("inst.version", "inst.encoder", "inst.family", "inst.layers", STAGES, KEY, LOSSES)
# Which cross-attention layers of the denoiser a style is meant for (see host/style_layers.py).
ALL_LAYERS, LATE_LAYERS, STYLE_BLOCK = "all", "late", "style block"
LAYERS = ALL_LAYERS, LATE_LAYERS, STYLE_BLOCK
THUMBNAIL_PIXELS = 256
_PREFIX = "inst."
_STAGE = f"{_PREFIX}stage."
_ADAPTER = f"{_PREFIX}adapter.diffusion_model."  # what follows "inst.adapter." is what LoRA files call the same tensors


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
        layers: "all"; "late" where only the late decoder blocks of a U-Net are to see it, "style block" where only
            those that are known to set the family's style.
        adapter: low-rank updates of the denoiser's layers, {``layer.lora_up.weight``: (out, rank),
            ``layer.lora_down.weight``: (rank, in)}; empty where the style is pseudo-words alone.
        stages: pseudo-words for parts of the noise schedule, from much noise to little, of which ``vectors`` is the
            middle one (see ``stages``); empty where all noise levels have the same.
    """

    vectors: Mapping[str, Tensor]
    encoder: str = "direct"
    family: str = ""
    encoder_weights: Mapping[str, Tensor] = field(default_factory=dict)
    extra: Mapping[str, Tensor] = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=dict)
    layers: str = ALL_LAYERS
    adapter: Mapping[str, Tensor] = field(default_factory=dict)
    stages: tuple[Stage, ...] = ()

    @property
    def adapter_rank(self) -> int:
        """0 = there is no adapter."""
        return next((tensor.shape[0] for key, tensor in self.adapter.items() if key.endswith(DOWN)), 0)

    @property
    def tokens(self) -> int:
        return next(iter(self.vectors.values())).shape[0]

    @property
    def losses(self) -> list[float]:
        """Held-out losses over the run that learned it, first to last; empty where the file does not say."""
        return [float(loss) for loss in self.metadata.get(LOSSES, "").split()]

    def describe(self) -> str:
        """One line for messages: ``4 tokens for clip_l (768), direct, SD15``."""
        widths = ", ".join(f"{k} ({v.shape[-1]})" for k, v in self.vectors.items())
        stages = f" in {len(self.stages)} stages" if self.stages else ""
        return (f"{self.tokens} token{'s' * (self.tokens != 1)}{stages} for {widths}, {self.encoder}, "
                f"{self.family or 'unknown'}")


def check_vectors(vectors: Mapping[str, Tensor], source: str) -> None:
    """Raises ValueError unless every entry is a finite floating (n, width) matrix, all with one n.

    Which text encoders there are, and how wide, is the connected CLIP's to say (``check_fits``).
    """
    if not vectors:
        raise ValueError(f"{source} holds no style vectors. Learn the style again.")
    for key, value in vectors.items():
        if value.ndim != 2 or not value.is_floating_point() or 0 in value.shape or value.shape[1] > MAX_WIDTH:
            raise ValueError(f"{source}: {key} is {value.dtype} {tuple(value.shape)}; expected floating point "
                             f"(tokens, width of the text encoder). {USE_IN_PROMPT}")
        if value.shape[0] > MAX_TOKENS:
            raise ValueError(f"{source}: {key} has {value.shape[0]} tokens; a style has at most {MAX_TOKENS}, which is "
                             f"what one window of CLIP holds. {USE_IN_PROMPT}")
        if not torch.isfinite(value.float()).all():
            raise ValueError(f"{source}: {key} contains NaN or infinite values. Learn the style again.")
    if len({v.shape[0] for v in vectors.values()}) != 1:
        counts = ", ".join(f"{k}: {v.shape[0]}" for k, v in vectors.items())
        raise ValueError(f"{source}: the text encoders disagree on the number of tokens ({counts}); expected the same "
                         f"for all. {USE_IN_PROMPT}")


def check_adapter(adapter: Mapping[str, Tensor], source: str) -> None:
    """Raises ValueError unless the tensors are pairs of factors, (out, rank) and (rank, in), all of one rank."""
    layers = {key.removesuffix(f".{factor}") for key in adapter for factor in (UP, DOWN) if key.endswith(f".{factor}")}
    ranks = set()
    for layer in sorted(layers):
        up, down = (adapter.get(f"{layer}.{factor}") for factor in (UP, DOWN))
        if up is None or down is None or up.ndim != 2 or down.ndim != 2 or up.shape[1] != down.shape[0]:
            raise ValueError(f"{source}: the adapter of {layer} is not a pair of matrices (out, rank) and (rank, in). "
                             "Copy the file again, or learn the style again.")
        ranks.add(down.shape[0])
    if len(ranks) > 1 or 0 in ranks or len(adapter) != 2 * len(layers):
        raise ValueError(f"{source}: the adapter's tensors do not belong together (ranks {sorted(ranks)}, "
                         f"{len(adapter)} tensors for {len(layers)} layers). Copy the file again, or learn the style "
                         "again.")


def check_stages(style: Style, source: str) -> None:
    """Raises ValueError unless there are none, or a few in order, with vectors like the style's own."""
    starts, stages = [stage.start for stage in style.stages], style.stages
    if not stages:
        return
    ordered = starts[0] == 0 and all(a < b < 1 for a, b in zip(starts, starts[1:], strict=False))
    if not 2 <= len(stages) <= MOST or not ordered:
        raise ValueError(f"{source} has stages that begin at {', '.join(map(str, starts))}; expected 2 to {MOST}, in "
                         "order from 0 up, all below 1. Copy the file again, or learn the style again.")
    for stage in stages:
        check_vectors(stage.vectors, source)
        if {k: v.shape for k, v in stage.vectors.items()} != {k: v.shape for k, v in style.vectors.items()}:
            raise ValueError(f"{source}: the stage from {stage.start} on has other vectors than the style itself; "
                             "expected the same text encoders and number of tokens. Learn the style again.")


def check_fits(style: Style, widths: Mapping[str, int],
               label: Callable[[Iterable[str]], str | None] = lambda encoders: None) -> None:
    """Raises ValueError unless the style has vectors for exactly the text encoders ``widths`` {key: width}.

    Args:
        label: {text encoder keys} -> name of the model family that has them, for the message; None = unknown.
    """
    have = {k: v.shape[-1] for k, v in style.vectors.items()}
    if have == dict(widths):
        return
    wanted = in_words(widths)
    made_for, connected = label(have), label(widths)
    first = f"This style is for {made_for}, the connected CLIP belongs to {connected}. " \
        if made_for and connected and made_for != connected else ""
    raise ValueError(f"{first}The style holds {style.describe()}; the connected CLIP takes {wanted}. Use the style "
                     "with a model of the family it was learned on, or learn it again with this one.")


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
    tensors |= {_ADAPTER + k: v for k, v in style.adapter.items()}
    tensors |= {f"{_STAGE}{i}.{k}": v for i, stage in enumerate(style.stages) for k, v in stage.vectors.items()
                if i != middle(len(style.stages))}
    tensors = {k: v.detach().float().cpu().contiguous() for k, v in tensors.items()}
    metadata = {**style.metadata, "inst.version": FORMAT_VERSION, "inst.encoder": style.encoder,
                "inst.family": style.family, "inst.layers": style.layers}
    if style.stages:
        metadata[STAGES] = " ".join(repr(stage.start) for stage in style.stages)
    if not with_metadata:
        metadata = {k: metadata[k] for k in FORMAT_METADATA if k in metadata}
    return safetensors.torch.save(tensors, metadata)


def save_style(style: Style, path: Path, with_metadata: bool = True, overwrite: bool = True) -> None:
    """Writes the file; it is whole or not there (see ``whole``).

    Args:
        overwrite: False never touches a file that is there already, also when it appeared a moment ago.

    Raises:
        ValueError: the style itself is unusable.
        FileExistsError: without ``overwrite``, the name is taken.
        OSError: the folder cannot be written.
    """
    check_vectors(style.vectors, "the style")
    check_adapter(style.adapter, "the style")
    check_stages(style, "the style")
    write_whole(path, to_bytes(style, with_metadata), overwrite)


def _read_bytes(path: Path) -> bytes:
    """The file's bytes, once it is known to be a safetensors file of sensible size.

    Read, not mapped: a style in use does not change with its file, and folders that cannot be mapped work.
    """
    try:
        with path.open("rb") as file:
            size, start = os.fstat(file.fileno()).st_size, file.read(9)
            _check_start(path.name, size, start)
            file.seek(0)
            return file.read()
    except FileNotFoundError as error:
        raise ValueError(f"The style file {path.name} is not there. Press R to refresh the list, or learn a "
                         "style.") from error
    except OSError as error:
        raise ValueError(f"{path.name} cannot be read ({error.strerror or error}). Check the file's permissions, or "
                         "copy it again.") from error


def _check_start(name: str, size: int, start: bytes) -> None:
    if size > MAX_BYTES:
        raise ValueError(f"{name} has {size / 2**20:.0f} MB; a style file has at most {MAX_BYTES // 2**20} MB. "
                         "This looks like a model checkpoint.")
    length = struct.unpack("<Q", start[:8])[0] if len(start) == 9 else 0
    if 0 < length <= size - 8 and start[8:] == b"{":
        return  # whatever two bytes its length begins with
    if start[:2] in (b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"):
        raise ValueError(f"{name} is a pickle (a torch .pt file under another name). Pickles can run code and are not "
                         "opened here. Give it its ending .pt again and put it into models/embeddings: a textual "
                         "inversion of another tool works in any prompt, written embedding: and its name, and official "
                         "InST files go through Import InST embeddings.pt.")
    raise ValueError(f"{name} is not a safetensors file ({size} bytes). It may be cut off; copy it again.")


def load_style(path: Path) -> Style:
    """Reads and checks a style file, or a textual inversion of another tool in safetensors format.

    Raises:
        ValueError: what the file is and what was expected.
    """
    data = _read_bytes(path)
    try:
        tensors = dict(sorted(safetensors.torch.load(data).items()))
        header = json.loads(data[8:8 + struct.unpack("<Q", data[:8])[0]])
    except Exception as error:  # what the library raises depends on the kind of damage
        raise ValueError(f"{path.name} is damaged: {error}. Copy it again or learn the style again.") from error
    del data
    metadata = header.get("__metadata__") or {}
    version = metadata.get("inst.version", FORMAT_VERSION)
    if version != FORMAT_VERSION:
        raise ValueError(f"{path.name} has style format {version}; this version of the pack reads {FORMAT_VERSION}. "
                         "Update ComfyUI-InST.")
    if metadata.get("inst.layers", ALL_LAYERS) not in LAYERS:
        raise ValueError(f"{path.name} is for the layers {metadata['inst.layers']!r}; this version of the pack knows "
                         f"{', '.join(LAYERS)}. Update ComfyUI-InST.")
    inner = {k: v for k, v in tensors.items() if k.startswith(_PREFIX)}
    outer = {k: v for k, v in tensors.items() if k not in inner}
    vectors = outer if "inst.version" in metadata else read_vectors(outer, path.name)
    check_vectors(vectors, path.name)
    bad = [k for k, v in inner.items() if v.is_floating_point() and not torch.isfinite(v.float()).all()]
    if bad:
        raise ValueError(f"{path.name}: {bad[0]} contains NaN or infinite values. Learn the style again.")
    weights = f"{_PREFIX}encoder."
    adapter = {k[len(_ADAPTER):]: v.float() for k, v in inner.items() if k.startswith(_ADAPTER)}
    check_adapter(adapter, path.name)
    style = Style(
        vectors={k: v.float() for k, v in vectors.items()},
        encoder=metadata.get("inst.encoder", "direct"),
        family=metadata.get("inst.family", ""),
        layers=metadata.get("inst.layers", ALL_LAYERS),
        encoder_weights={k[len(weights):]: v for k, v in inner.items() if k.startswith(weights)},
        extra={k[len(_PREFIX):]: v for k, v in inner.items() if not k.startswith((weights, _ADAPTER, _STAGE))},
        metadata=metadata,
        adapter=adapter,
    )
    style = replace(style, stages=_read_stages(style, inner, path.name))
    check_stages(style, path.name)
    return style


def _read_stages(style: Style, tensors: Mapping[str, Tensor], source: str) -> tuple[Stage, ...]:
    """The stages of a style file; the middle one is the style's own vectors."""
    try:
        starts = [float(start) for start in style.metadata.get(STAGES, "").split()]
    except ValueError as error:
        raise ValueError(f"{source} says that its stages begin at {style.metadata[STAGES]!r}; expected numbers from 0 "
                         "to 1. Copy the file again, or learn the style again.") from error

    def vectors(i: int) -> dict[str, Tensor]:
        start = f"{_STAGE}{i}."
        return {k.removeprefix(start): v.float() for k, v in tensors.items() if k.startswith(start)}

    return tuple(Stage(start, style.vectors if i == middle(len(starts)) else vectors(i))
                 for i, start in enumerate(starts))


def style_metadata(family: str, source: str, settings, learned, prompt: str, pictures: Tensor) -> dict[str, str]:
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
        "modelspec.usage_hint": "Apply InST Style, or embedding:<file name> in any prompt",
        "modelspec.thumbnail": thumbnail(pictures[0]),
        "inst.base_model": source,
        "inst.steps": str(len(learned.losses)),
        "inst.loss": f"{learned.kept:.6f}",
        LOSSES: " ".join(f"{check.loss:.6g}" for check in learned.checks),
        "inst.seed": str(settings.seed),
        "inst.text": prompt,
        "inst.style_sha256": digest,
    }
