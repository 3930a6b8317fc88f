"""Writes what the pack ships for ComfyUI's template browser and node library from the short descriptions below:
``workflows/*.json`` and the subgraph blueprints ``subgraphs/*.json``. Thumbnails are pictures of results, which
``tools/workflows pictures`` makes.

Node sockets and widgets come from a running server's ``/object_info``, so the files always fit the nodes.
"""
import argparse
import json
from collections.abc import Callable
from pathlib import Path

from comfyui.client import Client

from workflows.graph import INPUT, Download, Graph, Link

ROOT = Path(__file__).resolve().parents[2]
HUB = "https://huggingface.co"
SD15 = "v1-5-pruned-emaonly-fp16.safetensors"
SDXL = "sd_xl_base_1.0.safetensors"
HYPER_SD = "Hyper-SD15-8steps-lora.safetensors"
DETAIL_LORA = "add_detail.safetensors"
CANNY = "control_v11p_sd15_canny_fp16.safetensors"
DOWNLOADS = {
    SD15: Download("checkpoints", f"{HUB}/Comfy-Org/stable-diffusion-v1-5-archive/resolve/main/{SD15}"),
    SDXL: Download("checkpoints", f"{HUB}/stabilityai/stable-diffusion-xl-base-1.0/resolve/main/{SDXL}"),
    HYPER_SD: Download("loras", f"{HUB}/ByteDance/Hyper-SD/resolve/main/{HYPER_SD}"),
    DETAIL_LORA: Download("loras", f"{HUB}/OedoSoldier/detail-tweaker-lora/resolve/main/{DETAIL_LORA}"),
    CANNY: Download("controlnet", f"{HUB}/comfyanonymous/ControlNet-v1-1_fp16_safetensors/resolve/main/{CANNY}"),
}
VGG = "vgg16.safetensors"
FEED_FORWARD = {  # methods that repaint in one pass of a network: (paper, repository on GitHub, files)
    "StyTr2": ("StyTr²: Image Style Transfer with Transformers (Deng et al., CVPR 2022)", "diyiiyiii/StyTR-2",
               ("embedding_iter_160000.pth", "transformer_iter_160000.pth", "decoder_iter_160000.pth")),
    "AdaAttN": ("AdaAttN: Revisit Attention Mechanism in Arbitrary Neural Style Transfer (Liu et al., ICCV 2021)",
                "Huage001/AdaAttN", ("vgg_normalised.pth", "latest_net_transformer.pth", "latest_net_decoder.pth",
                                     "latest_net_adaattn_3.pth")),
    "CAST": ("Domain Enhanced Arbitrary Image Style Transfer via Contrastive Learning (Zhang et al., SIGGRAPH 2022)",
             "zyxElsa/CAST_pytorch", ("latest_net_AE.pth", "latest_net_Dec_B.pth")),
}
STYLESHOT = ("style_aware_encoder.bin", "ip.bin", "ControlNetHED.pth")
PHOTO, PAINTING = "inst_photograph.jpg", "inst_painting.jpg"  # of samples/, which ComfyUI finds in its input folder
CFG = 4.0
GUESSER = "inst-demo-guesser.safetensors"
STYLE_FILE, STYLE_B = "inst-demo/van_gogh.safetensors", "inst-demo/hokusai.safetensors"
MODELS, PICTURES, STYLE, REPAINT, RESULT = "#7a8ca0", "#3f789e", "#b06634", "#88a", "#8a8"

WIDE = 760  # pixels; what shows a figure or a table

# Where sockets that must be connected get what they need, unless a template says something else.
USUAL: dict[str, Link] = {
    "model": ("checkpoint", 0), "clip": ("checkpoint", 1), "vae": ("checkpoint", 2), "positive": ("positive", 0),
    "negative": ("negative", 0), "latent": ("content", 0), "latent_image": ("content", 0), "pixels": ("scaled", 0),
    "samples": ("sample", 0), "content": ("scaled", 0), "style": ("painting", 0)}

YOUR_STYLE = ("The styles in inst-demo ship with this pack and fit its small demo checkpoint only. For your own "
              "checkpoint learn a style first (template 02), then press R and choose it.")


def steps(*three: str, more: str) -> str:
    """A note: numbered steps, then what else is worth knowing."""
    return "\n".join(f"### {i}. {step}" for i, step in enumerate(three, 1)) + f"\n\n{more}"


# ---- parts of templates ----

def checkpoint(g: Graph, name: str = SD15) -> None:
    g.add("checkpoint", "CheckpointLoaderSimple", ckpt_name=name)


def photograph(g: Graph, scale: float = 1.0) -> None:
    """The photograph at the model's size, as picture and as latent."""
    g.add("photo", "LoadImage", "Photograph", image=PHOTO)
    scaled_photograph(g, ("photo", 0), scale)


def scaled_photograph(g: Graph, image: Link, scale: float = 1.0) -> None:
    g.add("scaled", "InST_FitToModel", image=image, scale=scale)
    g.add("content", "VAEEncode")


def painting(g: Graph) -> None:
    g.add("painting", "LoadImage", "Painting", image=PAINTING)


def painting_latent(g: Graph) -> None:
    g.add("style_latent", "VAEEncode", "VAE Encode (painting)", pixels=("painting", 0))


def apply_style(g: Graph, style: Link = ("learn", 0), **settings: object) -> None:
    g.add("positive", "InST_StyleConditioning", style=style, **settings)


def saved_style(g: Graph, **settings: object) -> None:
    g.add("style", "InST_LoadStyle", style_name=STYLE_FILE)
    apply_style(g, ("style", 0), **settings)


def prompt(g: Graph, name: str, title: str, text: str = "", **settings: object) -> None:
    g.add(name, "CLIPTextEncode", title, text=text, **settings)


def nothing_else(g: Graph, **settings: object) -> None:
    """The empty negative prompt."""
    prompt(g, "negative", "Negative prompt", **settings)


def repaint(g: Graph, name: str = "sample", **settings: object) -> None:
    if "negative" not in g.ids:
        nothing_else(g)
    g.add(name, "InST_Sample", **{"steps": 20, "cfg": CFG, "strength": 0.6, **settings})


def saved(g: Graph, image: Link, prefix: str) -> None:
    g.add("saved", "SaveImage", images=image, filename_prefix=prefix)


# ---- groups of templates ----

def model_and_painting(g: Graph, name: str = SD15) -> None:
    with g.group("Model and painting", MODELS):
        checkpoint(g, name)
        painting(g)


def model_and_style(g: Graph, **settings: object) -> None:
    with g.group("Model and style", STYLE):
        checkpoint(g)
        saved_style(g, **settings)


def photograph_group(g: Graph, scale: float = 1.0) -> None:
    with g.group("Photograph", PICTURES):
        photograph(g, scale)


def learn_group(g: Graph, image: Link = ("painting", 0), **settings: object) -> None:
    with g.group("Learn", STYLE):
        g.add("learn", "InST_LearnStyle", image=image, **settings)


def learned_style_group(g: Graph) -> None:
    with g.group("Style", STYLE):
        apply_style(g)
        nothing_else(g)


def repainted(g: Graph, prefix: str, **settings: object) -> None:
    """The two groups that most templates end with."""
    with g.group("Repaint", REPAINT):
        repaint(g, **settings)
    picture(g, prefix)


def picture(g: Graph, prefix: str) -> None:
    with g.group("Result", RESULT):
        g.add("decoded", "VAEDecode")
        saved(g, ("decoded", 0), prefix)


def result(g: Graph, image: Link, prefix: str) -> None:
    with g.group("Result", RESULT):
        saved(g, image, prefix)


# ---- templates ----

def start_here(g: Graph) -> None:
    g.note("Start here", steps(
        "Choose your photograph and your painting.", "Choose a checkpoint in the box.",
        "Press Run. The painting is learned once and saved; then the photograph is repainted.",
        more="**repaint strength** says how much of the photograph is redone, **style strength** how far the style "
             "goes. **quality** quick is for a first look. Connect Load InST Style to **style**, and nothing is "
             "learned. The result has the photograph's size."))
    with g.group("Your pictures", PICTURES):
        g.add("photo", "LoadImage", "Photograph", image=PHOTO)
        painting(g)
    with g.group("Style transfer", STYLE):
        g.place("box", one_box(Graph(g.info, g.downloads, g.usual)), photograph=("photo", 0), painting=("painting", 0))
    result(g, ("box", 0), "inst/start")


def learn_a_style(g: Graph) -> None:
    g.note("Learn a style", steps(
        "Choose your checkpoint and your painting.", "Give the style a name, or leave auto: the painting's.",
        "Press Run. When it is done press R: the style is in Load InST Style.",
        more="**quality** decides how long it takes. **prompt** says what the painting shows, with * for its style: "
             "\"a village at night, *\". The file also works in every prompt, as \"embedding:\" and its name."))
    model_and_painting(g)
    learn_group(g, name="my_style")
    with g.group("How well it learned", RESULT):
        g.add("plot", "LossGraphNode", loss=("learn", 1), filename_prefix="inst/loss")


def repaint_in_a_style(g: Graph) -> None:
    g.note("Repaint with a saved style", steps(
        "Choose your checkpoint and your photograph.", "Choose a style; its painting is shown below.", "Press Run.",
        more="**repaint strength**: 0.5 keeps the layout, 0.7 gives more style. **style strength**: how far the style "
             "goes. **text**: what the photograph shows, with * for the style. " + YOUR_STYLE))
    model_and_style(g)
    photograph_group(g)
    repainted(g, "inst/applied")


def everything_in_one_graph(g: Graph) -> None:
    g.note("Everything in one graph", steps(
        "Choose your checkpoint, your photograph and your painting.", "Choose a quality.", "Press Run.",
        more="What the box of template 01 does, node by node: the painting is learned, the photograph takes its "
             "colours (**amount**), then it is repainted. **repaint strength**: 0.5 keeps the layout, 0.7 is the "
             "paper's example. **cfg**: the paper's is 10, milder is 5 to 7."))
    model_and_painting(g)
    photograph_group(g)
    learn_group(g)
    with g.group("Style and colours", STYLE):
        painting_latent(g)
        g.add("colored", "InST_MatchColor", style_latent=("style_latent", 0), method="adain")
        apply_style(g)
    repainted(g, "inst/transfer", latent=("colored", 0))


def a_whole_batch(g: Graph) -> None:
    g.note("A whole batch", steps(
        "Choose your photographs; a new socket appears for each one.", "Choose a style.", "Press Run.",
        more="All are brought to the size of the first and repainted in one run, each with an inversion of its own. "
             "Frames of a video are a batch, too: connect Get Video Components. " + YOUR_STYLE))
    with g.group("Photographs", PICTURES):
        g.add("photo", "LoadImage", "Photograph", image=PHOTO)
        g.add("photo_2", "LoadImage", "Second photograph", image="inst_photograph_2.jpg")
    with g.group("Model and batch", MODELS):
        checkpoint(g)
        g.add("batch", "BatchImagesNode", **{"images.image0": ("photo", 0), "images.image1": ("photo_2", 0)})
        scaled_photograph(g, ("batch", 0))
    with g.group("Style", STYLE):
        saved_style(g)
    repainted(g, "inst/batch")


def lettered_style(g: Graph, letter: str, file: str) -> None:
    g.add(f"style_{letter}", "InST_LoadStyle", f"Style {letter}", style_name=file)
    g.add(f"apply_{letter}", "InST_StyleConditioning", f"Apply style {letter}", style=(f"style_{letter}", 0))


def styles_a_and_b(g: Graph, share: float | None = None) -> None:
    """Two styles, and if wanted a mix with this share of A."""
    with g.group("Model and style A", STYLE):
        checkpoint(g)
        lettered_style(g, "A", STYLE_FILE)
    with g.group("Style B", STYLE):
        lettered_style(g, "B", STYLE_B)
        if share is not None:
            g.add("mixed", "ConditioningAverage", "Mix", conditioning_to=("apply_A", 0),
                  conditioning_from=("apply_B", 0), conditioning_to_strength=share)


def two_styles(g: Graph) -> None:
    g.note("Two styles mixed", steps(
        "Choose your photograph.", "Choose two styles.", "Set **conditioning_to_strength** and press Run.",
        more="1 is all of style A, 0 all of style B. In a prompt two styles stand side by side, each as "
             "\"embedding:\" and its name. " + YOUR_STYLE))
    styles_a_and_b(g, 0.5)
    photograph_group(g)
    repainted(g, "inst/mixed", positive=("mixed", 0))


def with_controlnet(g: Graph) -> None:
    g.note("A style with ControlNet", steps(
        "Choose your photograph and a style.", f"Fetch the ControlNet: {CANNY} goes into models/controlnet.",
        "Press Run.",
        more="Edges of the photograph hold its structure, so that **repaint strength** can be 0.8 and more. The "
             "ControlNet acts in the inversion and in sampling. Lower its **strength** or **end_percent** for freer "
             "brush strokes. Depth, line art and tile fit as well. " + YOUR_STYLE))
    model_and_style(g)
    photograph_group(g)
    with g.group("Structure", PICTURES):
        nothing_else(g)
        g.add("edges", "Canny", image=("scaled", 0), low_threshold=0.2, high_threshold=0.5)
        g.add("controlnet", "ControlNetLoader", control_net_name=CANNY)
        g.add("held", "ControlNetApplyAdvanced", control_net=("controlnet", 0), image=("edges", 0),
              vae=("checkpoint", 2), strength=0.8, end_percent=0.8)
    repainted(g, "inst/controlnet", positive=("held", 0), negative=("held", 1), strength=0.8)


def with_lora(g: Graph) -> None:
    g.note("A style with a LoRA", steps(
        "Choose your photograph and a style.", f"Choose a LoRA, such as {DETAIL_LORA}, in models/loras.", "Press Run.",
        more="The LoRA changes what is painted, the style how. It acts in the text encoder, the inversion and the "
             "sampler. A style that is learned through a LoRA (connect it to Learn InST Style) leaves out what the "
             "LoRA already does. " + YOUR_STYLE))
    with g.group("Model", MODELS):
        checkpoint(g)
        g.add("lora", "LoraLoader", "LoRA", lora_name=DETAIL_LORA, strength_model=0.7, strength_clip=0.7)
    with g.group("Style", STYLE):
        saved_style(g, clip=("lora", 1))
    photograph_group(g)
    with g.group("Repaint", REPAINT):
        nothing_else(g, clip=("lora", 1))
        repaint(g, model=("lora", 0))
    picture(g, "inst/lora")


def on_sdxl(g: Graph) -> None:
    g.note("A style on SDXL", steps(
        f"Choose an SDXL checkpoint, such as {SDXL}, or one made from it.", "Choose your photograph and your painting.",
        "Press Run.",
        more="Both text encoders get the style, and pictures are scaled to SDXL's size automatically. SD 3, Flux and "
             "other families work in the same graph with their own loaders: see the README of this pack. A style "
             "fits every checkpoint with the same text encoders."))
    model_and_painting(g, SDXL)
    photograph_group(g)
    learn_group(g)
    learned_style_group(g)
    repainted(g, "inst/sdxl")


def in_few_steps(g: Graph) -> None:
    g.note("A style in 8 steps", steps(
        "Choose your photograph and a style.", f"Fetch the LoRA: {HYPER_SD} goes into models/loras.", "Press Run.",
        more="LCM and Turbo LoRAs work the same way; for LCM choose **sampler** lcm. **cfg** is 1, since these LoRAs "
             "are trained without guidance. **repaint strength** means the same in 8 steps as in 50. Learn styles on "
             "the plain checkpoint. " + YOUR_STYLE))
    with g.group("Model", MODELS):
        checkpoint(g)
        g.add("few_steps", "LoraLoaderModelOnly", "Few-step LoRA", lora_name=HYPER_SD)
    with g.group("Style", STYLE):
        saved_style(g)
        nothing_else(g)
    photograph_group(g)
    repainted(g, "inst/few_steps", model=("few_steps", 0), steps=8, cfg=1.0, scheduler="sgm_uniform")


def styles_in_regions(g: Graph) -> None:
    g.note("Styles in regions", steps(
        "Choose your photograph and two styles.", "Press Run: style A goes to the left half, style B to the rest.",
        "For a region of your own right-click the photograph, Open in Mask Editor, and connect its MASK to A here and "
        "to Invert Mask.",
        more="**strength** in the two mask nodes says how firmly each region is held. " + YOUR_STYLE))
    styles_a_and_b(g)
    photograph_group(g)
    with g.group("Regions", PICTURES):
        g.add("whole", "SolidMask", "Region of A (left)", value=1.0, width=256, height=512)
        g.add("nothing", "SolidMask", "Rest", value=0.0, width=512, height=512)
        g.add("left", "MaskComposite", destination=("nothing", 0), source=("whole", 0), x=0, y=0, operation="add")
        g.add("right", "InvertMask", mask=("left", 0))
    with g.group("Each in its region", STYLE):
        g.add("in_left", "ConditioningSetMask", "A here", conditioning=("apply_A", 0), mask=("left", 0))
        g.add("in_right", "ConditioningSetMask", "B there", conditioning=("apply_B", 0), mask=("right", 0))
        g.add("both", "ConditioningCombine", conditioning_1=("in_left", 0), conditioning_2=("in_right", 0))
    repainted(g, "inst/regions", positive=("both", 0))


def colours_by_region(g: Graph) -> None:
    g.note("Colours by region", steps(
        "Choose your photograph, your painting and its style.",
        "Paint a mask on both: right-click a picture, Open in Mask Editor. What you mark in the photograph takes the "
        "colours of what you mark in the painting.", "Press Run.",
        more="What is in no mask is matched by **method**: *semantic* pairs what the model sees in both pictures, so "
             "that sky takes the colours of sky. It can pair the wrong things; masks always win. Without masks it does "
             "everything. " + YOUR_STYLE))
    model_and_style(g)
    photograph_group(g)
    with g.group("Painting", PICTURES):
        painting(g)
        painting_latent(g)
    with g.group("Colours", STYLE):
        g.add("colored", "InST_MatchColor", style_latent=("style_latent", 0), method="semantic",
              model=("checkpoint", 0), content_mask=("photo", 1), style_mask=("painting", 1))
    repainted(g, "inst/colours_by_region", latent=("colored", 0), strength=0.4)


def style_over_the_steps(g: Graph) -> None:
    g.note("A style over the steps", steps(
        "Choose your photograph and a style.",
        "Set **start_percent**, **end_percent** and **shape** of Apply InST Style; Nodes 2.0 has them among the "
        "advanced inputs.", "Press Run.",
        more="0 is pure noise, 1 the finished picture; sampling at repaint strength 0.6 begins at 0.4. A style that "
             "sets in late leaves shapes alone and changes texture; \"ease in\" lets it rise slowly. " + YOUR_STYLE))
    model_and_style(g, strength=1.2, start_percent=0.5, shape="ease in")
    photograph_group(g)
    repainted(g, "inst/over_steps")


def several_paintings(g: Graph) -> None:
    g.note("A style from several paintings", steps(
        "Choose two or more paintings of one painter; a new socket appears for each one.", "Choose your photograph.",
        "Press Run.",
        more="What the paintings have in common is learned, and less of what each of them shows."))
    with g.group("Paintings", PICTURES):
        painting(g)
        g.add("painting_2", "LoadImage", "Second painting", image="inst_painting_2.jpg")
        g.add("paintings", "BatchImagesNode", **{"images.image0": ("painting", 0), "images.image1": ("painting_2", 0)})
    with g.group("Model and photograph", PICTURES):
        checkpoint(g)
        photograph(g)
    learn_group(g, ("paintings", 0), name="painter")
    learned_style_group(g)
    repainted(g, "inst/painter")


def high_resolution(g: Graph) -> None:
    g.note("High resolution", steps(
        "Choose your photograph and a style.", "Set **scale**: 2 is twice the side that the model was made for.",
        "Press Run.",
        more="The model looks at overlapping tiles of its own size, with one style and one inversion for all of them, "
             "and blends them in every step. Memory stays that of one tile; time grows with the picture. "
             + YOUR_STYLE))
    model_and_style(g)
    photograph_group(g, 2.0)
    with g.group("Tiles", MODELS):
        g.add("tiled", "InST_TileModel")
    repainted(g, "inst/high_resolution", model=("tiled", 0), strength=0.5)


GLANCE = (0.0, 0.5, 1.0, 1.5)


def strengths_side_by_side(g: Graph) -> None:
    g.note("Strengths side by side", steps(
        "Choose your photograph and a style.", "Press Run.", "Read off which style strength you like.",
        more="The same photograph with four style strengths side by side, all else being equal. " + YOUR_STYLE))
    with g.group("Model and photograph", MODELS):
        checkpoint(g)
        photograph(g)
    with g.group("Style", STYLE):
        g.add("style", "InST_LoadStyle", style_name=STYLE_FILE)
        nothing_else(g)
    for i, strength in enumerate(GLANCE):
        with g.group(f"Style strength {strength}", REPAINT):
            g.add(f"apply_{i}", "InST_StyleConditioning", style=("style", 0), strength=strength)
            repaint(g, f"sample_{i}", positive=(f"apply_{i}", 0))
            g.add(f"decoded_{i}", "VAEDecode", samples=(f"sample_{i}", 0))
    with g.group("Side by side", RESULT, WIDE):
        g.add("figure", "InST_ComparisonGrid", column_labels="\n".join(map(str, GLANCE)), height=256,
              **{f"images.image{i}": (f"decoded_{i}", 0) for i in range(len(GLANCE))})
        saved(g, ("figure", 0), "inst/glance")


def guess_a_style(g: Graph) -> None:
    g.note("Style at a glance", steps(
        "Choose a painting and your photograph.", "Press Run.",
        "If the style is not close enough, connect it to continue_from of Learn InST Style, with encoder direct and "
        "about 20 steps.",
        more=f"The guess takes a moment. {GUESSER} ships with this pack and guesses for its small demo checkpoint only."
             " For your own checkpoint an encoder has to be trained first (docs/guessing.md), or learn the style "
             "(template 02)."))
    model_and_painting(g)
    photograph_group(g)
    with g.group("Guess", STYLE):
        g.add("guess", "InST_GuessStyle", image=("painting", 0), encoder_name=GUESSER)
        apply_style(g, ("guess", 0))
    repainted(g, "inst/guessed", steps=12, cfg=3.0)


def style_in_any_prompt(g: Graph) -> None:
    g.note("A style in any prompt", steps(
        "Choose your checkpoint.", "Write \"embedding:\" and the name of a style into the prompt.", "Press Run.",
        more="A learned style is an ordinary embedding: no node of this pack is needed to use it. In round brackets "
             "with :1.2 behind it, it acts more strongly. " + YOUR_STYLE))
    with g.group("Model and prompts", MODELS):
        checkpoint(g)
        prompt(g, "positive", "Prompt with a style",
               f"a lighthouse on a cliff in the style of embedding:{STYLE_FILE.removesuffix('.safetensors')}")
        prompt(g, "negative", "Negative prompt", "photograph, blurry")
        g.add("empty", "EmptyLatentImage", width=512, height=512)
    with g.group("Paint", REPAINT):
        g.add("sample", "KSampler", latent_image=("empty", 0), steps=25, cfg=CFG, sampler_name="dpmpp_2m",
              scheduler="karras")
    picture(g, "inst/embedding")


def custom_sampling(g: Graph) -> None:
    g.note("Custom sampling", steps(
        "Choose your photograph and a style.", "Choose sampler, guider and schedule.", "Press Run.",
        more="Stochastic inversion is a NOISE and plugs into SamplerCustomAdvanced. Connect the same SIGMAS to it and "
             "to the sampler; their first level is where both start. **denoise** in the scheduler is the repaint "
             "strength. " + YOUR_STYLE))
    model_and_style(g)
    photograph_group(g)
    with g.group("Invert", REPAINT):
        nothing_else(g)
        g.add("sigmas", "InST_CosineScheduler", steps=20, denoise=0.6)
        g.add("invert", "InST_StochasticInvert", sigmas=("sigmas", 0))
    with g.group("Sample", REPAINT):
        g.add("guider", "CFGGuider", cfg=CFG)
        g.add("sampler", "KSamplerSelect", sampler_name="dpmpp_2m")
        g.add("sample", "SamplerCustomAdvanced", noise=("invert", 0), guider=("guider", 0), sampler=("sampler", 0),
              sigmas=("sigmas", 0))
    picture(g, "inst/custom")


def photograph_and_painting(g: Graph) -> None:
    with g.group("Photograph and painting", PICTURES):
        g.add("photo", "LoadImage", "Photograph", image=PHOTO)
        g.add("scaled", "ImageScaleToTotalPixels", image=("photo", 0), upscale_method="lanczos", megapixels=0.25)
        g.column()
        painting(g)


def gatys(g: Graph) -> None:
    g.note("Gatys", steps(
        "Choose your photograph and your painting.",
        f"Fetch {VGG}: the help page of the node says how. It goes into models/style_transfer.", "Press Run.",
        more="Image Style Transfer Using Convolutional Neural Networks (Gatys et al., CVPR 2016): a picture is changed "
             "until a VGG network sees the photograph's content and the painting's textures. **style_weight**: change "
             "it by factors of ten. **size**: strokes keep their size in pixels. **steps**: 150 already show the "
             "style."))
    photograph_and_painting(g)
    with g.group("Gatys", REPAINT):
        g.add("painted", "InST_GatysStyleTransfer", vgg_name=VGG, steps=300)
    result(g, ("painted", 0), "inst/gatys")


def network_pass(g: Graph, name: str, title: str) -> None:
    *_, files = FEED_FORWARD[title]
    g.add(f"{name}_network", "InST_LoadStyleTransferModel", f"Load {title}",
          **{f"file_{i}": f for i, f in enumerate(files, 1)})
    g.add(name, "InST_TransferStyle", title, style_transfer_model=(f"{name}_network", 0))


def feed_forward(g: Graph, title: str) -> None:
    """One of the methods that repaint in one pass of a network."""
    paper, repository, files = FEED_FORWARD[title]
    g.note(title, steps(
        "Choose your photograph and your painting.",
        f"Fetch {', '.join(files)} into models/style_transfer; the README of {repository} on GitHub links to them.",
        "Press Run.",
        more=f"{paper}: one pass of a network, no prompt, no diffusion. **strength** below 1 blends with the "
             "photograph as the network sees it; **preserve_color** luminance keeps its colours. A batch of "
             "photographs or video frames works as well."))
    photograph_and_painting(g)
    with g.group(title, REPAINT):
        network_pass(g, "painted", title)
    result(g, ("painted", 0), f"inst/{title.lower()}")


def stytr2(g: Graph) -> None:
    feed_forward(g, "StyTr2")


def adaattn(g: Graph) -> None:
    feed_forward(g, "AdaAttN")


def cast(g: Graph) -> None:
    feed_forward(g, "CAST")


def apply_styleshot(g: Graph) -> None:
    encoder, adapter, detector = STYLESHOT
    g.add("styleshot", "InST_LoadStyleShot", encoder=encoder, adapter=adapter, contour_detector=detector)
    g.add("styled", "InST_ApplyStyleShot", styleshot=("styleshot", 0), control_image=("scaled", 0),
          control_type="photograph")


def sample_styleshot(g: Graph, name: str) -> None:
    g.add(name, "KSampler", model=("styled", 0), positive=("styled", 1), negative=("styled", 2), steps=30, cfg=7.0,
          sampler_name="ddim", scheduler="ddim_uniform")


def styleshot(g: Graph) -> None:
    encoder, adapter, detector = STYLESHOT
    g.note("StyleShot", steps(
        "Choose your photograph and your painting, and say in the prompt what the photograph shows.",
        f"Fetch {encoder} and {adapter} (Hugging Face, Gaojunyao/StyleShot, pretrained_weight) and {detector} "
        "(lllyasviel/Annotators) into models/style_transfer.", "Press Run.",
        more="StyleShot: A Snapshot on Any Style (Gao et al., 2024): an encoder reads the painting's style without "
             "learning anything, the photograph's contours hold its layout. **weight**: the style's share. "
             "**control_strength**: how firmly the contours are followed."))
    with g.group("Model and prompts", MODELS):
        checkpoint(g)
        prompt(g, "positive", "Prompt", "a house, best quality")
        prompt(g, "negative", "Negative prompt", "worst quality")
    photograph_group(g)
    with g.group("Painting", PICTURES):
        painting(g)
    with g.group("StyleShot", STYLE):
        apply_styleshot(g)
    with g.group("Paint", REPAINT):
        sample_styleshot(g, "sample")
    picture(g, "inst/styleshot")


def compare_everything(g: Graph) -> None:
    networks = [file for *_, files in FEED_FORWARD.values() for file in files]
    g.note("Compare everything", steps(
        "Choose your photograph and your painting.",
        "Methods whose files you do not have: select their nodes, press Ctrl+M, and take their lines out of "
        "**column_labels**.", "Press Run.",
        more="Content, style, InST and five other methods side by side, and the numbers to it, beside those of trivial "
             "results: without them a number cannot be read. In the table, picture 1 is InST, then StyTr2, AdaAttN, "
             "CAST, Gatys and StyleShot. The template of each method says where its files come from. All go into "
             "models/style_transfer: " + ", ".join((*networks, VGG, *STYLESHOT)) + "."))
    with g.group("Photograph and painting", PICTURES):
        checkpoint(g)
        photograph(g)
        painting(g)
    with g.group("InST", STYLE):
        g.add("learn", "InST_LearnStyle", image=("painting", 0))
        g.column()
        g.add("applied", "InST_StyleConditioning", style=("learn", 0))
        repaint(g, positive=("applied", 0))
        g.add("inst", "VAEDecode", "InST")
    with g.group("StyleShot", STYLE):
        prompt(g, "positive", "Prompt", "a house, best quality")
        apply_styleshot(g)
        sample_styleshot(g, "shot_latent")
        g.add("shot", "VAEDecode", "StyleShot", samples=("shot_latent", 0))
    g.row()
    for title in FEED_FORWARD:
        with g.group(title, REPAINT):
            network_pass(g, title.lower(), title)
    with g.group("Gatys", REPAINT):
        g.add("gatys", "InST_GatysStyleTransfer", "Gatys", vgg_name=VGG, steps=300)
    g.block()
    methods = ["inst", "stytr2", "adaattn", "cast", "gatys", "shot"]
    with g.group("Figure", RESULT, WIDE):
        g.add("figure", "InST_ComparisonGrid",
              **{f"images.image{i}": (name, 0) for i, name in enumerate(["scaled", "painting", *methods])},
              column_labels="Content\nStyle\nInST\nStyTr2\nAdaAttN\nCAST\nGatys\nStyleShot")
        saved(g, ("figure", 0), "inst/comparison")
    g.row()
    with g.group("Numbers", RESULT, WIDE):
        g.add("results", "BatchImagesNode", "All results",
              **{f"images.image{i}": (name, 0) for i, name in enumerate(methods)})
        g.add("metrics", "InST_Metrics", result=("results", 0))
        g.add("table", "PreviewAny", "Table", source=("metrics", 0))


def keep_content_out(g: Graph) -> None:
    g.note("Keep content out", steps(
        "Choose your photograph and your painting.",
        "Right-click the painting, Open in Mask Editor, and paint over what is not style, such as a signature.",
        "Say what the painting shows in **content** (advanced) of all three nodes, and press Run.",
        more="What is masked or transparent is not learned from. **content** takes its words out of the style; the "
             "second Apply InST Style, **part** content, pushes it away as negative. Each helps alone."))
    shows = "street, houses, people, trees"
    model_and_painting(g)
    photograph_group(g)
    learn_group(g, style_mask=("painting", 1), content=shows)
    with g.group("Style, and what it is not", STYLE):
        apply_style(g, content=shows)
        g.add("negative", "InST_StyleConditioning", "What the painting shows", style=("learn", 0), content=shows,
              part="content")
    repainted(g, "inst/content_out")


def one_box(g: Graph) -> dict:
    """The whole of InST with a painting and a photograph as its only sockets that must be connected."""
    with g.group("Model and pictures", MODELS):
        g.add("checkpoint", "CheckpointLoaderSimple", ckpt_name=(INPUT, "checkpoint", SD15))
        g.add("scaled", "InST_FitToModel", image=(INPUT, "photograph"), scale=(INPUT, "scale", 1.0))
        g.add("content", "VAEEncode")
        g.add("style_latent", "VAEEncode", "VAE Encode (painting)", pixels=(INPUT, "painting"))
    with g.group("Style", STYLE):
        g.add("learn", "InST_LearnStyle", image=(INPUT, "painting"), style=(INPUT, "style"),
              quality=(INPUT, "quality", "good"), name=(INPUT, "name", "auto"))
    with g.group("Repaint", REPAINT):
        g.add("colored", "InST_MatchColor", style_latent=("style_latent", 0), method="adain",
              amount=(INPUT, "color", 1.0))
        apply_style(g, text=(INPUT, "text", "*"), strength=(INPUT, "style strength", 1.0))
        nothing_else(g)
        g.column()
        g.add("tiled", "InST_TileModel")
        repaint(g, model=("tiled", 0), latent=("colored", 0), strength=(INPUT, "repaint strength", 0.6),
                cfg=(INPUT, "cfg", CFG), seed=(INPUT, "seed", 0))
        g.add("decoded", "VAEDecode")
    with g.group("The photograph's size", PICTURES):
        g.add("size", "GetImageSize", image=(INPUT, "photograph"))
        g.add("restored", "ImageScale", image=("decoded", 0), width=("size", 0), height=("size", 1),
              upscale_method="lanczos", crop="disabled")
    return g.blueprint(
        BLUEPRINT, "InST", "Learns the style of a painting and repaints a photograph in it. The style is saved, and "
        "not learned again for the same painting, checkpoint and quality. The result has the photograph's size.",
        ["photograph", "painting", "style", "checkpoint", "quality", "name", "repaint strength", "style strength",
         "text", "color", "cfg", "scale", "seed"],
        {"image": ("restored", 0), "style": ("learn", 0)}, ("learn", "sample"))


SHIPPED: dict[str, Callable[[Graph], None]] = {f"{number:02}_{build.__name__}": build for number, build in enumerate((
    start_here, learn_a_style, repaint_in_a_style, everything_in_one_graph, a_whole_batch, two_styles, with_controlnet,
    with_lora, on_sdxl, in_few_steps, styles_in_regions, style_over_the_steps, several_paintings, high_resolution,
    strengths_side_by_side, style_in_any_prompt, custom_sampling, compare_everything, gatys, stytr2, adaattn, cast,
    styleshot, guess_a_style, colours_by_region, keep_content_out), 1)}
BLUEPRINT = "Style transfer (InST)"


def write(path: Path, document: dict) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("url", help="of a running server")


def main(args: argparse.Namespace) -> None:
    info = Client(args.url).object_info()
    for name, build in SHIPPED.items():
        graph = Graph(info, DOWNLOADS, USUAL)
        build(graph)
        write(ROOT / "workflows" / f"{name}.json", graph.document())
    write(ROOT / "subgraphs" / f"{BLUEPRINT}.json", one_box(Graph(info, DOWNLOADS, USUAL)))
