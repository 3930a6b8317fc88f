"""Small models of the families whose sizes ComfyUI's detection fixes, filled from a seed.

ComfyUI knows Z-Image by its width of 3840, so a small file of it is recognised by nobody.  What is made here are
ComfyUI's own classes, tokenizers and weight names with smaller numbers; the loaders do what ComfyUI's do, without
looking for the family first.  The networks are random: they show that a graph runs, nothing else.
"""
import base64
import importlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from small_families import FLUX, filled
from small_models import save_whole, shapes
from torch import Tensor, nn

_CLIP = {"num_hidden_layers": 3, "intermediate_size": 64}

WORDS = 64  # width of their text encoders
TEXT_BRANCH = 0.3  # what a layer of them adds
PROMPT_SCALE = 40  # of the prompt beside the picture
_CHAT = {"hidden_size": WORDS, "intermediate_size": 64, "num_attention_heads": 1, "num_key_value_heads": 1}


def _layers(count: int) -> dict:
    return {**_CHAT, "num_hidden_layers": count}


_T5 = {"d_model": WORDS, "d_kv": WORDS, "num_layers": 1, "num_heads": 1, "d_ff": 64, "vocab_size": 32128}


class Reader(NamedTuple):
    """A family's text encoder. It has the layers that the family listens to, and no more.

    Attributes:
        tokenizer, model: "module:class" in comfy.text_encoders; ``model`` is a function that makes the class where
            there are ``arguments`` for it.
        sizes: {part: numbers of its config}
        from_file: name of the vocabulary, where the tokenizer is read from the text encoder's file.
    """

    tokenizer: str
    model: str
    sizes: Mapping[str, Mapping]
    arguments: Mapping | None = None
    from_file: str = ""


READERS = {
    "z-image": Reader("z_image:ZImageTokenizer", "z_image:te", {"qwen3_4b": _layers(3)}, {}),
    "z-image-deep": Reader("z_image:ZImageTokenizer", "z_image:te",
                           {"qwen3_4b": {**_layers(36), "hidden_size": 2 * WORDS, "intermediate_size": 96}}, {}),
    "klein-4b": Reader("flux:KleinTokenizer", "flux:klein_te", {"qwen3_4b": _layers(28)}, {}),
    "klein-9b": Reader("flux:KleinTokenizer8B", "flux:klein_te", {"qwen3_8b": _layers(28)}, {"model_type": "qwen3_8b"}),
    "flux2-dev": Reader("flux:Flux2Tokenizer", "flux:flux2_te", {"mistral3_24b": {**_layers(31), "vocab_size": 300}},
                        {}, "tekken_model"),
    "krea2": Reader("krea2:Krea2Tokenizer", "krea2:te", {"qwen3vl_4b": _layers(36)}, {}),
    "qwen-image": Reader("qwen_image:QwenImageTokenizer", "qwen_image:te", {"qwen25_7b": _layers(2)}, {}),
    "pixart": Reader("pixart_t5:PixArtTokenizer", "pixart_t5:pixart_te", {"t5xxl": _T5}, {}),
    "lumina2": Reader("lumina2:LuminaTokenizer", "lumina2:te", {"gemma2_2b": {**_layers(3), "vocab_size": 32128}}, {},
                      "spiece_model"),
    "auraflow": Reader("aura_t5:AuraT5Tokenizer", "aura_t5:AuraT5Model", {"pile_t5xl": _T5}),
    "mage-flow": Reader("mage_flow:MageFlowTokenizer", "mage_flow:te", {"qwen3vl_4b": _layers(2)}, {}),
    "ovis": Reader("ovis:OvisTokenizer", "ovis:te", {"qwen3_2b": _layers(2)}, {}),
    "longcat": Reader("longcat_image:LongCatImageTokenizer", "longcat_image:te", {"qwen25_7b": _layers(2)}, {}),
    "omnigen2": Reader("omnigen2:Omnigen2Tokenizer", "omnigen2:te", {"qwen25_3b": _layers(2)}, {}),
    "hidream": Reader("hidream:HiDreamTokenizer", "hidream:hidream_clip",
                      {"clip_l": _CLIP, "clip_g": _CLIP, "t5xxl": _T5, "llama": {**_layers(2), "vocab_size": 128256}},
                      {}),
    "hunyuan-image": Reader("hunyuan_image:HunyuanImageTokenizer", "hunyuan_image:te", {"qwen25_7b": _layers(4)},
                            {"byt5": False}),
    "kandinsky5": Reader("kandinsky5:Kandinsky5TokenizerImage", "kandinsky5:te",
                         {"qwen25_7b": _layers(2), "clip_l": _CLIP}, {}),
    "hydit": Reader("hydit:HyditTokenizer", "hydit:HyditModel",
                    {"hydit_clip": {"hidden_size": WORDS, "num_hidden_layers": 1, "intermediate_size": 64,
                                    "num_attention_heads": 1}, "mt5xl": _T5}, None, "mt5xl.spiece_model"),
}


@dataclass(frozen=True)
class Shrunk:
    """A family made by the host's classes without its detection, which knows the real sizes only.

    Attributes:
        family: the host's model config class.
        config: what its network is made with.
        reader: key of ``READERS``.
    """

    family: str
    config: Mapping
    reader: str


_FLUX2 = {"image_model": "flux2", "axes_dim": [32, 32, 32, 32], "num_heads": 1, "mlp_ratio": 3.0, "theta": 2000,
          "in_channels": 128, "out_channels": 128, "global_modulation": True, "mlp_silu_act": True, "qkv_bias": False,
          "ops_bias": False, "default_ref_method": "index", "ref_index_scale": 10.0, "txt_ids_dims": [3],
          "patch_size": 1, "hidden_size": 128, "context_in_dim": 3 * WORDS, "vec_in_dim": None, "depth": 1,
          "depth_single_blocks": 1, "guidance_embed": False, "yak_mlp": False, "txt_norm": False}
_CHROMA = {"image_model": "chroma", "in_channels": 64, "out_channels": 64, "in_dim": 64, "out_dim": 128,
           "hidden_dim": 64, "n_layers": 2, "hidden_size": 128, "context_in_dim": WORDS, "num_heads": 1,
           "axes_dim": [16, 56, 56], "mlp_ratio": 4.0, "depth": 1, "depth_single_blocks": 1, "theta": 10000,
           "patch_size": 2, "qkv_bias": True, "txt_ids_dims": [], "vec_in_dim": None}
_LUMINA = {"image_model": "lumina2", "patch_size": 2, "in_channels": 16, "cap_feat_dim": WORDS, "n_layers": 2,
           "n_refiner_layers": 1, "qk_norm": True, "axes_lens": [300, 512, 512], "multiple_of": 32}
_PIXART = {"image_model": "pixart_sigma", "num_heads": 2, "patch_size": 2, "hidden_size": 96, "in_channels": 4,
           "depth": 2, "model_max_length": 300, "micro_condition": False, "caption_channels": WORDS, "input_size": 64,
           "pe_interpolation": 1}
_HYDIT = {"image_model": "hydit", "depth": 2, "hidden_size": 64, "num_heads": 2, "text_states_dim": WORDS,
          "text_states_dim_t5": WORDS}
SHRUNK = {
    "z-image": Shrunk("ZImage", {**_LUMINA, "dim": 256, "n_heads": 2, "n_kv_heads": 2, "axes_dims": [32, 48, 48],
                                 "rope_theta": 256.0, "ffn_dim_multiplier": 8 / 3, "z_image_modulation": True,
                                 "time_scale": 1000.0, "pad_tokens_multiple": 32}, "z-image"),
    "klein-4b": Shrunk("Flux2", _FLUX2, "klein-4b"),
    "klein-9b": Shrunk("Flux2", _FLUX2, "klein-9b"),
    "flux2-dev": Shrunk("Flux2", {**_FLUX2, "guidance_embed": True}, "flux2-dev"),
    "krea2": Shrunk("Krea2", {"image_model": "krea2", "features": 128, "channels": 16, "patch": 2, "layers": 1,
                              "heads": 1, "kvheads": 1, "txtlayers": 12, "txtdim": WORDS, "txtheads": 1,
                              "txtkvheads": 1}, "krea2"),
    "qwen-image": Shrunk("QwenImage", {"image_model": "qwen_image", "in_channels": 64, "num_layers": 1,
                                       "num_attention_heads": 1, "joint_attention_dim": WORDS}, "qwen-image"),
    "chroma": Shrunk("Chroma", _CHROMA, "pixart"),
    "chroma-radiance": Shrunk("ChromaRadiance", {
        **_CHROMA, "image_model": "chroma_radiance", "in_channels": 3, "out_channels": 3, "patch_size": 8,
        "nerf_hidden_size": 16, "nerf_mlp_ratio": 2, "nerf_depth": 1, "nerf_max_freqs": 2, "nerf_tile_size": 512,
        "nerf_final_head_type": "conv", "nerf_embedder_dtype": torch.float32, "use_x0": False,
        "use_sequential_txt_ids": False}, "pixart"),
    "pixart-alpha": Shrunk("PixArtAlpha", {**_PIXART, "image_model": "pixart_alpha", "micro_condition": True},
                           "pixart"),
    "pixart-sigma": Shrunk("PixArtSigma", _PIXART, "pixart"),
    "lumina2": Shrunk("Lumina2", {**_LUMINA, "dim": 96, "n_heads": 2, "n_kv_heads": 1, "axes_dims": [16, 16, 16],
                                  "rope_theta": 10000.0, "ffn_dim_multiplier": 1.0}, "lumina2"),
    "auraflow": Shrunk("AuraFlow", {"max_seq": 256, "cond_seq_dim": WORDS, "n_double_layers": 2, "n_layers": 3,
                                    "dim": 128, "n_heads": 2, "global_conddim": 128}, "auraflow"),
    "mage-flow": Shrunk("MageFlow", {"image_model": "mage_flow", "in_channels": 128, "num_layers": 1,
                                     "num_attention_heads": 1, "joint_attention_dim": WORDS}, "mage-flow"),
    "ovis": Shrunk("Flux", {**FLUX, "context_in_dim": WORDS, "vec_in_dim": None, "guidance_embed": False,
                            "txt_ids_dims": [1, 2], "yak_mlp": True, "txt_norm": True}, "ovis"),
    "longcat": Shrunk("LongCatImage", {**FLUX, "context_in_dim": WORDS, "vec_in_dim": None, "guidance_embed": False,
                                       "txt_ids_dims": [1, 2]}, "longcat"),
    "omnigen2": Shrunk("Omnigen2", {
        "image_model": "omnigen2", "hidden_size": 96, "num_attention_heads": 2, "num_kv_heads": 1,
        "axes_dim_rope": [16, 16, 16], "axes_lens": [1024, 1664, 1664], "num_layers": 1, "num_refiner_layers": 1,
        "in_channels": 16, "patch_size": 2, "text_feat_dim": WORDS, "timestep_scale": 1000.0, "multiple_of": 32},
        "omnigen2"),
    "hidream": Shrunk("HiDream", {
        "image_model": "hidream", "attention_head_dim": 128, "axes_dims_rope": [64, 32, 32], "in_channels": 16,
        "caption_channels": [WORDS, WORDS], "max_resolution": [128, 128], "llama_layers": [0, 1],
        "num_attention_heads": 1, "num_routed_experts": 2, "num_activated_experts": 1, "num_layers": 1,
        "num_single_layers": 1, "out_channels": 16, "patch_size": 2, "text_emb_dim": 2048}, "hidream"),
    "hunyuan-image": Shrunk("HunyuanImage21", {
        "image_model": "hunyuan_video", "in_channels": 64, "out_channels": 64, "patch_size": [1, 1],
        "vec_in_dim": None, "axes_dim": [64, 64], "meanflow": False, "context_in_dim": WORDS, "hidden_size": 128,
        "mlp_ratio": 4.0, "num_heads": 1, "depth": 2, "depth_single_blocks": 1, "theta": 256, "qkv_bias": True,
        "byt5": False, "guidance_embed": False, "use_cond_type_embedding": False, "vision_in_dim": None,
        "meanflow_sum": False}, "hunyuan-image"),
    "kandinsky5": Shrunk("Kandinsky5Image", {
        "image_model": "kandinsky5", "in_text_dim": WORDS, "time_dim": 64, "model_dim": 64, "ff_dim": 64,
        "visual_embed_dim": 64, "num_text_blocks": 1, "num_visual_blocks": 1, "axes_dims": (16, 24, 24),
        "rope_scale_factor": (1.0, 1.0, 1.0)}, "kandinsky5"),
    "hydit": Shrunk("HunyuanDiT", _HYDIT, "hydit"),
    "hydit-1": Shrunk("HunyuanDiT1", {**_HYDIT, "image_model": "hydit1", "size_cond": True, "use_style_cond": True},
                      "hydit"),
}


# As deep as the real model, and with a text encoder of 0.65 times its size as there. For tools/benchmark.py memory.
DEEP = {"z-image-deep": Shrunk("ZImage", {**SHRUNK["z-image"].config, "n_layers": 30, "n_refiner_layers": 2,
                                          "cap_feat_dim": 2 * WORDS}, "z-image-deep")}


# The numbers that make them the official size, which the host's detection recognises. (Depth does not matter to it.)
_WIDE = {"hidden_size": 3072, "num_heads": 24}
_WIDE_CHROMA = {**_WIDE, "context_in_dim": 4096, "out_dim": 3072, "hidden_dim": 5120, "n_layers": 5}
_WIDE_PIXART = {"hidden_size": 1152, "num_heads": 16, "caption_channels": 4096}
_WIDE_HYDIT = {"hidden_size": 1408, "num_heads": 16, "text_states_dim": 1024, "text_states_dim_t5": 2048}
OFFICIAL = {
    "z-image": {"dim": 3840, "n_heads": 30, "n_kv_heads": 30, "cap_feat_dim": 2560, "multiple_of": 256},
    "klein-4b": {**_WIDE, "context_in_dim": 7680},
    "klein-9b": {"hidden_size": 4096, "num_heads": 32, "context_in_dim": 12288},
    "flux2-dev": {"hidden_size": 6144, "num_heads": 48, "context_in_dim": 15360},
    "krea2": {"features": 6144, "heads": 48, "kvheads": 12, "txtdim": 2560, "txtheads": 20, "txtkvheads": 20},
    "qwen-image": {"num_attention_heads": 24, "joint_attention_dim": 3584},
    "chroma": _WIDE_CHROMA,
    "chroma-radiance": {**_WIDE_CHROMA, "patch_size": 16, "nerf_hidden_size": 64, "nerf_mlp_ratio": 4, "nerf_depth": 4,
                        "nerf_max_freqs": 8},
    "pixart-alpha": _WIDE_PIXART,
    "pixart-sigma": _WIDE_PIXART,
    "lumina2": {"dim": 2304, "n_heads": 24, "n_kv_heads": 8, "axes_dims": [32, 32, 32], "cap_feat_dim": 2304,
                "ffn_dim_multiplier": 4.0, "multiple_of": 256},
    "auraflow": {"dim": 3072, "n_heads": 12, "global_conddim": 3072, "cond_seq_dim": 2048},
    "mage-flow": {"num_attention_heads": 24, "joint_attention_dim": 2560},
    "ovis": {**_WIDE, "context_in_dim": 2048},
    "longcat": {**_WIDE, "context_in_dim": 3584},
    "omnigen2": {"hidden_size": 2520, "num_attention_heads": 21, "num_kv_heads": 7, "axes_dim_rope": [40, 40, 40],
                 "text_feat_dim": 2048, "multiple_of": 256},
    "hidream": {"num_attention_heads": 20, "num_routed_experts": 4, "num_activated_experts": 2,
                "caption_channels": [4096, 4096]},
    "hunyuan-image": {"hidden_size": 3584, "num_heads": 28, "context_in_dim": 3584},
    "kandinsky5": {"model_dim": 2560, "ff_dim": 10240, "in_text_dim": 3584, "axes_dims": (32, 48, 48)},
    "hydit": _WIDE_HYDIT,
    "hydit-1": _WIDE_HYDIT,
}


def official(name: str):
    """The host's model config that its detection finds in a file of the official size, which has no numbers in it."""
    import comfy.model_detection
    import comfy.supported_models

    small = SHRUNK[name]
    config = getattr(comfy.supported_models, small.family)({**small.config, **OFFICIAL[name]})
    config.set_inference_dtype(torch.float16, None)
    network = config.get_model({}, "", device="meta").diffusion_model
    return comfy.model_detection.model_config_from_unet(network.state_dict(), "")


def _config(name: str):
    """The host's model config of one of ``SHRUNK`` or ``DEEP``, in the precision that the host would choose."""
    import comfy.model_management as management
    import comfy.supported_models

    small = (SHRUNK | DEEP)[name]
    config = getattr(comfy.supported_models, small.family)(dict(small.config))
    dtype = management.unet_dtype(supported_dtypes=config.supported_inference_dtypes, weight_dtype=torch.float16)
    config.set_inference_dtype(dtype, management.unet_manual_cast(dtype, management.get_torch_device(),
                                                                  config.supported_inference_dtypes))
    return config


def _attribute(path: str):
    module, _, name = path.partition(":")
    return getattr(importlib.import_module(f"comfy.text_encoders.{module}"), name)


def _text_model(reader: Reader, **options) -> nn.Module:
    made = _attribute(reader.model)
    return (made if reader.arguments is None else made(**reader.arguments))(**options)


def _options(reader: Reader) -> dict:
    return {f"{part}_model_config": dict(sizes) for part, sizes in reader.sizes.items()}


def vocabulary(kind: str) -> Tensor:
    """What some text encoders' files hold of their tokenizer, as bytes: a SentencePiece model that comes with ComfyUI,
    or a vocabulary of single letters in Mistral's format."""
    if kind == "tekken_model":
        special = ["<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "<a>", "<b>",
                   "<c>", "<d>", "<pad>"]
        data = json.dumps({
            "config": {"default_vocab_size": len(special) + 256},
            "vocab": [{"rank": i, "token_bytes": base64.b64encode(bytes([i])).decode()} for i in range(256)],
            "special_tokens": [{"rank": i, "token_str": word} for i, word in enumerate(special)]}).encode()
    else:
        import comfy.text_encoders.aura_t5 as aura

        data = Path(aura.__file__).with_name("t5_pile_tokenizer").joinpath("tokenizer.model").read_bytes()
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)


def _text_tensor(key: str, shape: tuple[int, ...]) -> Tensor:
    if key.endswith(("embed_tokens.weight", "token_embedding.weight", "shared.weight", "word_embeddings.weight")):
        return filled(key, shape, 0.02 * shape[1] ** 0.5)
    return filled(key, shape, TEXT_BRANCH if key.endswith(("o_proj.weight", "down_proj.weight")) else 1.0)


def _denoiser_tensor(key: str, shape: tuple[int, ...]) -> Tensor:
    """Random; the prompt counts for much beside the picture, so that it matters in networks of one layer."""
    if key.endswith("norm.scale"):
        return torch.ones(shape)
    found = filled(key, shape)
    if key.endswith("txt_attn.qkv.weight"):
        found[-shape[0] // 3:] *= PROMPT_SCALE
    return found * PROMPT_SCALE if key.endswith(("add_v_proj.weight", "attn.w1v.weight")) else found


def text_encoder(name: str) -> dict[str, Tensor]:
    reader = READERS[name]
    module = _text_model(reader, device="meta", dtype=torch.float16, model_options=_options(reader))
    found = {key: _text_tensor(key, shape).half() for key, shape in shapes(module).items()
             if not key.endswith("logit_scale") and ".visual." not in key}
    return found | ({reader.from_file: vocabulary(reader.from_file)} if reader.from_file else {})


def denoiser(name: str) -> dict[str, Tensor]:
    with torch.device("cpu"):
        module = _config(name).get_model({}, "", device="meta").diffusion_model
    return {key: _denoiser_tensor(key, shape).half() for key, shape in shapes(module).items()}


def load_denoiser(path: str, name: str, disable_dynamic: bool = False):
    """What ``comfy.sd.load_diffusion_model`` does, for a family that is told."""
    import comfy.model_management as management
    import comfy.model_patcher
    import comfy.utils

    weights = comfy.utils.load_torch_file(path)
    model = _config(name).get_model(weights, "")
    model.load_model_weights(weights, "")
    patcher = comfy.model_patcher.ModelPatcher(model, load_device=management.get_torch_device(),
                                               offload_device=management.unet_offload_device())
    patcher.cached_patcher_init = load_denoiser, (path, name)
    return patcher


def load_clip(path: str, name: str, folder: list[str] | None = None, disable_dynamic: bool = False):
    """What ``comfy.sd.load_clip`` does, for a family that is told."""
    import comfy.sd
    import comfy.utils

    reader, weights = READERS[name], comfy.utils.load_torch_file(path, safe_load=True)
    target = type("Target", (), {"params": {}, "tokenizer": staticmethod(_attribute(reader.tokenizer)),
                                 "clip": staticmethod(lambda **options: _text_model(reader, **options))})
    found = {reader.from_file: weights.pop(reader.from_file)} if reader.from_file else {}
    clip = comfy.sd.CLIP(target, embedding_directory=folder, tokenizer_data=found, state_dict=weights,
                         model_options=_options(reader), disable_dynamic=disable_dynamic)
    clip.patcher.cached_patcher_init = load_text_patcher, (path, name, folder)
    return clip


def load_text_patcher(path: str, name: str, folder: list[str] | None = None, disable_dynamic: bool = False):
    return load_clip(path, name, folder, disable_dynamic).patcher


def open_shrunk(models: Path, name: str, folder: list[str] | None = None):
    """(MODEL, CLIP) of one of ``SHRUNK`` or ``DEEP``; its files are made where they are missing."""
    reader = (SHRUNK | DEEP)[name].reader
    network, text = models / f"shrunk-{name}.safetensors", models / f"shrunk-text-{reader}.safetensors"
    save_whole(network, lambda: denoiser(name))
    save_whole(text, lambda: text_encoder(reader))
    return load_denoiser(str(network), name), load_clip(str(text), reader, folder)
