"""A CLIP ViT-L/14 of two thin layers: the real widths of its outputs, in transformers and in the host."""
import comfy.clip_vision
import torch
from transformers import CLIPConfig, CLIPModel

VISION = dict(hidden_size=1024, intermediate_size=128, num_attention_heads=16, num_hidden_layers=2, image_size=224,
              patch_size=14, projection_dim=768, num_channels=3, hidden_act="quick_gelu", layer_norm_eps=1e-5)


def make() -> tuple[CLIPModel, comfy.clip_vision.ClipVisionModel]:
    """The same weights, from a seed, as (transformers' model, the host's CLIP_VISION)."""
    with torch.inference_mode(False), torch.random.fork_rng():
        torch.manual_seed(0)
        text = dict(hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=1, vocab_size=64)
        reference = CLIPModel(CLIPConfig(vision_config=VISION, text_config=text, projection_dim=768)).eval()
        for parameter in reference.parameters():
            if parameter.ndim > 1:
                torch.nn.init.normal_(parameter, std=0.05)
    clip_vision = comfy.clip_vision.ClipVisionModel({**VISION, "model_type": "clip_vision_model"})
    weights = {k: v for k, v in reference.state_dict().items() if k.startswith(("vision_model", "visual_projection"))}
    missing, unexpected = clip_vision.load_sd(weights)
    assert not missing and not [k for k in unexpected if "position_ids" not in k]
    return reference, clip_vision
