"""StyleShot: the style of one picture as tokens, for Stable Diffusion 1.5."""
from comfy_api.latest import io
from torch import Tensor

from ..inst_core import host, preprocess
from ..inst_core.methods.styleshot import shuffled_order
from .sockets import COMPARE_CATEGORY, MAX_SEED, held_to_widgets, to_image, to_pictures
from .weights import NONE, chosen, file_problem, fingerprint, read_weights, weight_files

StyleShot = io.Custom("STYLESHOT")
AS_THEY_COME, SHUFFLED = "as they come", "shuffled"
CONTROL_MAP, INVERTED, PHOTOGRAPH = "control map", "inverted control map", "photograph"


def _control_map(styleshot: host.styleshot.StyleShot, image: Tensor, control_type: str) -> Tensor:
    """The control map (B, H, W, 3) in [0, 1] that StyleShot's ControlNet reads."""
    if control_type == PHOTOGRAPH:
        return to_image(styleshot.contours(to_pictures(image, "control_image")))
    image = preprocess.as_rgb(image, "control_image")
    return 1 - image if control_type == INVERTED else image


class InSTLoadStyleShot(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="InST_LoadStyleShot",
            display_name="Load StyleShot",
            category=COMPARE_CATEGORY,
            description="StyleShot for Stable Diffusion 1.5 from its released files in models/style_transfer. Files "
                        "are recognised by their contents and stay on the disk until they are used.",
            search_aliases=["styleshot", "style shot", "style transfer", "ip-adapter style"],
            inputs=[
                io.Combo.Input("encoder", options=weight_files("style_aware"),
                               tooltip="style_aware_encoder.bin: turns a style picture into style tokens."),
                io.Combo.Input("adapter", options=weight_files("ip."),
                               tooltip="ip.bin of the same release: brings the tokens into the U-Net, and holds the "
                                       "ControlNet for the content."),
                io.Combo.Input("contour_detector", options=[NONE, *weight_files("hed")], default=NONE, optional=True,
                               tooltip="ControlNetHED.pth, for Apply StyleShot to find the contours of a photograph "
                                       "itself. None when you bring a control map."),
                io.Combo.Input("controlnet", options=[NONE, *weight_files("ip.")], default=NONE, optional=True,
                               advanced=True,
                               tooltip="For your own training, which leaves the adapter in the file of stage 1 and the "
                                       "ControlNet in that of stage 2: the second file. None for a released ip.bin."),
            ],
            outputs=[StyleShot.Output(display_name="styleshot", tooltip="For Apply StyleShot.")],
        )

    @classmethod
    def validate_inputs(cls, encoder, adapter, contour_detector=NONE, controlnet=NONE) -> bool | str:
        return file_problem(encoder, adapter, contour_detector, controlnet)

    @classmethod
    def fingerprint_inputs(cls, encoder, adapter, contour_detector=NONE, controlnet=NONE) -> str:
        return fingerprint(encoder, adapter, contour_detector, controlnet)

    @classmethod
    @held_to_widgets
    def execute(cls, encoder, adapter, contour_detector=NONE, controlnet=NONE) -> io.NodeOutput:
        names = chosen(encoder, adapter, contour_detector, controlnet)
        return io.NodeOutput(host.styleshot.StyleShot({name: read_weights(name, mapped=True) for name in names}))


class InSTApplyStyleShot(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="InST_ApplyStyleShot",
            display_name="Apply StyleShot",
            category=COMPARE_CATEGORY,
            description="Makes a Stable Diffusion 1.5 model paint in the style of a picture, without learning. With a "
                        "control image it keeps the layout of a photograph.",
            search_aliases=["styleshot", "style shot", "style transfer", "ip-adapter style", "style reference"],
            inputs=[
                io.Model.Input("model", tooltip="A Stable Diffusion 1.5 model. LoRAs may come before or after."),
                io.Conditioning.Input("positive", tooltip="The prompt; the authors use 'best quality, high quality' "
                                                          "after what is shown."),
                io.Conditioning.Input("negative", tooltip="The negative prompt."),
                StyleShot.Input("styleshot", tooltip="From Load StyleShot."),
                io.Image.Input("style", tooltip="The style picture: its central square is looked at. One for all "
                                                "pictures that are sampled, or one for each."),
                io.Float.Input("weight", default=1.0, min=0.0, max=2.0, step=0.05,
                               tooltip="How strongly the style acts beside the prompt. 1 = as trained, 0 = off."),
                io.Image.Input("control_image", optional=True,
                               tooltip="What to paint: a contour map (white on black) or, for the line-art release, a "
                                       "line drawing (dark on white), best in the size of the result."),
                io.Combo.Input("control_type", options=[CONTROL_MAP, INVERTED, PHOTOGRAPH], default=CONTROL_MAP,
                               optional=True,
                               tooltip="control map: use the control image as it is. inverted control map: swap black "
                                       "and white first, for line art from preprocessors that draw white on black. "
                                       "photograph: find its contours with the detector of Load StyleShot."),
                io.Float.Input("control_strength", default=1.0, min=0.0, max=10.0, step=0.05, optional=True,
                               tooltip="How firmly the control image is followed. 0 = not at all."),
                io.Float.Input("start_percent", default=0.0, min=0.0, max=1.0, step=0.01, optional=True, advanced=True,
                               tooltip="The part of the sampling after which the control image acts."),
                io.Float.Input("end_percent", default=1.0, min=0.0, max=1.0, step=0.01, optional=True, advanced=True,
                               tooltip="The part of the sampling after which the control image no longer acts."),
                io.Combo.Input("patch_order", options=[AS_THEY_COME, SHUFFLED], default=AS_THEY_COME, optional=True,
                               advanced=True,
                               tooltip="as they come: always the same result. shuffled: the encoder sees the patches "
                                       "of the style picture in random order, as in the released code."),
                io.Int.Input("patch_seed", default=0, min=0, max=MAX_SEED, optional=True, advanced=True,
                             tooltip="Draws the order of the patches when they are shuffled; no effect otherwise."),
            ],
            outputs=[
                io.Model.Output(display_name="model", tooltip="The model with the style, for any sampler."),
                io.Conditioning.Output(display_name="positive", tooltip="The prompt, with the control image if given."),
                io.Conditioning.Output(display_name="negative", tooltip="The negative prompt, likewise."),
            ],
        )

    @classmethod
    @held_to_widgets
    def execute(cls, model, positive, negative, styleshot, style, weight, control_image=None, control_type=CONTROL_MAP,
                control_strength=1.0, start_percent=0.0, end_percent=1.0, patch_order=AS_THEY_COME,
                patch_seed=0) -> io.NodeOutput:
        host.styleshot.check_styleshot(model, styleshot)
        steered = control_image is not None and control_strength > 0
        if weight == 0 and not steered:
            return io.NodeOutput(model, positive, negative)
        order = shuffled_order(patch_seed) if patch_order == SHUFFLED else None
        seen = styleshot.encode(to_pictures(style, "style"), order)
        if steered:
            control_map = _control_map(styleshot, control_image, control_type)
            positive, negative = host.styleshot.controlled(positive, negative, styleshot.controlnet(seen.tokens),
                                                           control_map, control_strength, start_percent, end_percent)
        return io.NodeOutput(host.styleshot.styled_model(model, seen, weight), positive, negative)
