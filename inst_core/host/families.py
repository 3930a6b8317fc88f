"""Which model families the nodes serve. The only place that knows a family's name."""
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

USUAL_SIDE = 1024  # px
MIN_SIDE, MAX_SIDE = 64, 4096  # px that a file can plausibly say it was made for

# What a stock prompt makes of ``embedding:name``: the same tokens as Apply InST Style; the style, but with the line
# breaks after it in the family's own text turned into spaces; nothing.
THE_SAME, LINES_JOINED, NOT_READ = "the same", "line breaks lost", "no"


class Family(NamedTuple):
    """A row of the support table: models that a style can be learned on.

    Attributes:
        label: for people.
        configs: the host's model config classes (comfy/supported_models.py). Some of them serve several families.
        text: the text encoders whose tokens are learned, of those that are loaded.
        prediction: what the denoiser predicts; the host's ``model_sampling`` knows it, this is for the table only.
        context: width of the conditioning that the denoiser takes.
        stock: what a stock prompt makes of a style file.
        side: pixels on a side of the square pictures it was trained on.
        style_blocks: decoder blocks of its U-Net that are known to set the style, by the host's numbers; empty =
            nobody knows of any.
    """

    label: str
    configs: tuple[str, ...]
    text: tuple[str, ...]
    prediction: str
    context: int
    stock: str = THE_SAME
    side: int = USUAL_SIDE
    style_blocks: tuple[int, ...] = ()


FAMILIES = (
    Family("SD 1.x", ("SD15",), ("clip_l",), "noise", 768, side=512),
    Family("SD 2.x", ("SD20",), ("clip_h",), "velocity or noise", 1024, side=768),
    # InstantStyle (Wang et al. 2024) finds style in what diffusers calls up_blocks.0.attentions.1.
    Family("SDXL", ("SDXL",), ("clip_l", "clip_g"), "noise or velocity", 2048, style_blocks=(1,)),
    Family("SSD-1B", ("SSD1B",), ("clip_l", "clip_g"), "noise", 2048),
    Family("Segmind-Vega", ("Segmind_Vega",), ("clip_l", "clip_g"), "noise", 2048),
    Family("KOALA 700M", ("KOALA_700M",), ("clip_l", "clip_g"), "noise", 2048),
    Family("KOALA 1B", ("KOALA_1B",), ("clip_l", "clip_g"), "noise", 2048),
    Family("SD 3, SD 3.5", ("SD3",), ("clip_l", "clip_g", "t5xxl"), "flow", 4096),
    Family("Flux.1 dev", ("Flux",), ("clip_l", "t5xxl"), "flow", 4096),
    Family("Flux.1 schnell", ("FluxSchnell",), ("clip_l", "t5xxl"), "flow", 4096),
    Family("Z-Image, Z-Image-Turbo", ("ZImage",), ("qwen3_4b",), "flow", 2560, LINES_JOINED),
    Family("Flux.2 Klein 4B", ("Flux2",), ("qwen3_4b",), "flow", 7680, LINES_JOINED),
    Family("Flux.2 Klein 9B", ("Flux2",), ("qwen3_8b",), "flow", 12288, LINES_JOINED),
    Family("Flux.2 dev", ("Flux2",), ("mistral3_24b",), "flow", 15360),
    Family("Krea 2", ("Krea2",), ("qwen3vl_4b",), "flow", 30720, LINES_JOINED),
    Family("Qwen-Image", ("QwenImage",), ("qwen25_7b",), "flow", 3584, NOT_READ),
    Family("Chroma", ("Chroma",), ("t5xxl",), "flow", 4096),
    Family("Chroma Radiance", ("ChromaRadiance",), ("t5xxl",), "flow", 4096),
    Family("PixArt alpha, sigma", ("PixArtAlpha", "PixArtSigma"), ("t5xxl",), "noise", 4096),
    Family("Lumina 2", ("Lumina2",), ("gemma2_2b",), "flow", 2304, NOT_READ),
    Family("AuraFlow", ("AuraFlow",), ("pile_t5xl",), "flow", 2048, NOT_READ),
    Family("Mage-Flow", ("MageFlow",), ("qwen3vl_4b",), "flow", 2560, LINES_JOINED),
    Family("Ovis-Image", ("Flux", "FluxSchnell"), ("qwen3_2b",), "flow", 2048, NOT_READ),
    Family("LongCat-Image", ("LongCatImage",), ("qwen25_7b",), "flow", 3584, NOT_READ),
    Family("OmniGen 2", ("Omnigen2",), ("qwen25_3b",), "flow", 2048, NOT_READ),
    Family("HiDream-I1", ("HiDream",), ("clip_l", "clip_g", "t5xxl", "llama"), "flow", 4096),
    Family("HunyuanImage 2.1", ("HunyuanImage21",), ("qwen25_7b",), "flow", 3584, NOT_READ, side=2048),
    Family("Kandinsky 5 image", ("Kandinsky5Image",), ("qwen25_7b", "clip_l"), "flow", 3584, NOT_READ),
    Family("HunyuanDiT", ("HunyuanDiT", "HunyuanDiT1"), ("chinese_roberta", "mt5xl"), "velocity", 1024, NOT_READ),
)

# What the paper's released weights were trained for.
PAPER_FAMILY = "SD15"

# Families that a style cannot be learned on, and why. (docs/models.md says what would open them.)
_NO_BACKWARD = "a part of its attention has no backward pass in ComfyUI, so nothing can be learned through it"
_NO_CONDITIONING = "its prompt is read inside the denoiser itself, so there is no text encoder to put a style into"
NOT_LEARNABLE = {
    "Anima": _NO_BACKWARD,
    "CosmosT2IPredict2": _NO_BACKWARD,
    "ErnieImage": _NO_BACKWARD,
    "JoyImage": _NO_BACKWARD,
    "HiDreamO1": _NO_CONDITIONING,
    "Lens": "its text encoder takes whole numbers only, so vectors cannot stand in its prompts",
    "PixelDiTT2I": "its prompt is cut to its first 300 tokens behind long instructions, which can lose the style",
    "Stable_Cascade_C": "its noise levels are its own, and nothing here knows them",
    "Stable_Cascade_B": "its noise levels are its own, and nothing here knows them",
}

# Still-image families whose latents have a time axis, of one frame.
ONE_FRAME = ("QwenImage", "Krea2", "Anima", "CosmosT2IPredict2", "JoyImage")
# How the names of the host's classes for video begin.
VIDEO = ("SVD_", "SV3D_", "GenmoMochi", "LTX", "MiniMaxH3", "HunyuanVideo", "Cosmos", "WAN2", "Kandinsky5", "CogVideoX",
         "SeedVR2")

# Where model configs keep the width of the conditioning.
_CONTEXT_KEYS = ("context_dim", "context_in_dim", "cap_feat_dim", "cond_seq_dim", "joint_attention_dim",
                 "text_feat_dim", "caption_channels", "text_states_dim", "in_text_dim")


def family_of(model) -> str:
    """The host's config class of a MODEL, also for families that are not in the table."""
    return type(model.model.model_config).__name__


def rows_of(config: str) -> tuple[Family, ...]:
    """The rows of the table that one class of the host serves."""
    return tuple(family for family in FAMILIES if config in family.configs)


def style_blocks(config: str) -> tuple[int, ...]:
    """Decoder blocks that set the style in models of one class of the host.

    Raises:
        ValueError: none are known.
    """
    for family in rows_of(config):
        if family.style_blocks:
            return family.style_blocks
    known = ", ".join(family.label for family in FAMILIES if family.style_blocks)
    raise ValueError(f"layers is 'style block', which is known for {known}; the model or style is of {config}. Use "
                     "layers 'late' or 'all'.")


def context_width(model) -> int | None:
    """Width of the conditioning that a MODEL takes; None where nobody says."""
    config = model.model.model_config.unet_config
    if "txtdim" in config:
        return config["txtlayers"] * config["txtdim"]
    found = [config[key] for key in _CONTEXT_KEYS if key in config]
    found = [width[0] if isinstance(width, (list, tuple)) else width for width in found]
    widths = {family.context for family in rows_of(family_of(model))}
    return found[0] if found else widths.pop() if len(widths) == 1 else None


def pooled_width(model) -> int | None:
    """Width of the pooled text that a MODEL takes, where its config says so."""
    config = model.model.model_config.unet_config
    return config.get("adm_in_channels" if "context_embedder_config" in config else "vec_in_dim")


def label_of_encoders(encoders: Iterable[str]) -> str | None:
    """The best-known family with just these text encoders, for messages; None = unknown."""
    return next((family.label for family in FAMILIES if set(family.text) == set(encoders)), None)


def file_of(model) -> Path | None:
    """The file a MODEL was loaded from, where its loader tells."""
    match model.cached_patcher_init:
        case (_, (str() as path, *_), *_):
            return Path(path)
    return None


def source_of(model) -> str:
    """File name of the checkpoint a MODEL was loaded from, where its loader tells; otherwise the family."""
    file = file_of(model)
    return family_of(model) if file is None else file.name
