"""Methods to compare InST with: feed-forward style transfer and Gatys."""
from collections.abc import Callable

from comfy_api.latest import io
from PIL import Image
from torch import Tensor

from ..inst_core import host
from ..inst_core.methods import METHODS, files_of, gatys, load_style_model, official_names, vgg
from ..inst_core.pictures import luminance, with_luminance
from .sockets import COMPARE_CATEGORY, held_to_widgets, problem_of, seed_input, to_image, to_pictures
from .weights import NONE, chosen, file_problem, fingerprint, read_weights, weight_files

WORKING_MEMORY = 4 * 2**30  # bytes; less makes the methods compute in smaller pieces
PREVIEWS = 20  # pictures shown during a Gatys run
CHOSEN_FILES = "of the files above"
STYLE_LAYERS = ", ".join(gatys.STYLE_LAYERS)

StyleTransferModel = io.Custom("STYLE_TRANSFER_MODEL")


def _reporter(total: int, every: int) -> Callable[[int, Tensor], None]:
    """Moves the progress bar of ``total``, and shows every ``every``-th picture."""
    bar = host.progress.Progress(total)

    def report(done: int, picture: Tensor) -> None:
        due = done % every == 0 or done == total
        bar.update(done, Image.fromarray((to_image(picture)[0] * 255).round().byte().cpu().numpy()) if due else None)

    return report


class InSTLoadStyleTransferModel(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        def more(number: int, tooltip: str) -> io.Combo.Input:
            return io.Combo.Input(f"file_{number}", options=[NONE, *weight_files()], default=NONE, optional=True,
                                  tooltip=tooltip)

        return io.Schema(
            node_id="InST_LoadStyleTransferModel",
            display_name="Load StyTr2, AdaAttN or CAST",
            category=COMPARE_CATEGORY,
            description="StyTr2, AdaAttN (pictures or video) or CAST from their released files in "
                        "models/style_transfer. Choose a method, and it finds its files; or choose all files of one "
                        "model, in any order; they are recognised by their contents.",
            search_aliases=["stytr2", "adaattn", "cast", "style transfer", "load style model", "vgg_normalised"],
            inputs=[
                io.Combo.Input("file_1", options=weight_files(),
                               tooltip="A file of the model. StyTr2: embedding, transformer and decoder. AdaAttN: "
                                       "vgg_normalised, transformer, decoder and adaattn_3. CAST: AE and Dec_B."),
                more(2, "Another file of the same model."),
                more(3, "Another file of the same model, or none."),
                more(4, "Another file of the same model, or none."),
                io.Combo.Input("method", options=[CHOSEN_FILES, *METHODS], default=CHOSEN_FILES, optional=True,
                               tooltip="A method finds its files by their released names anywhere in "
                                       "models/style_transfer; the files above are then not read."),
            ],
            outputs=[StyleTransferModel.Output(display_name="style_transfer_model",
                                               tooltip="For Apply StyTr2, AdaAttN or CAST.")],
        )

    @classmethod
    def validate_inputs(cls, file_1, file_2=NONE, file_3=NONE, file_4=NONE, method=CHOSEN_FILES) -> bool | str:
        if method == CHOSEN_FILES:
            return file_problem(file_1, file_2, file_3, file_4)
        return problem_of(official_names, method, weight_files())

    @classmethod
    def fingerprint_inputs(cls, file_1, file_2=NONE, file_3=NONE, file_4=NONE, method=CHOSEN_FILES) -> str:
        return fingerprint(*([None] if method is None else cls.names(method, file_1, file_2, file_3, file_4)))

    @classmethod
    @held_to_widgets
    def execute(cls, file_1, file_2=NONE, file_3=NONE, file_4=NONE, method=CHOSEN_FILES) -> io.NodeOutput:
        files = {name: read_weights(name) for name in cls.names(method, file_1, file_2, file_3, file_4)}
        return io.NodeOutput(load_style_model(files if method == CHOSEN_FILES else files_of(method, files)))

    @staticmethod
    def names(method: str, *files: str) -> list[str]:
        """Files that are read: the chosen ones, or those that are called as the method's are."""
        return chosen(*files) if method == CHOSEN_FILES else official_names(method, weight_files())


class InSTTransferStyle(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="InST_TransferStyle",
            display_name="Apply StyTr2, AdaAttN or CAST",
            category=COMPARE_CATEGORY,
            description="Repaints pictures or video frames in the manner of a style picture, in one pass of a "
                        "feed-forward network.",
            search_aliases=["style transfer", "stytr2", "adaattn", "cast", "neural style", "stylize"],
            inputs=[
                StyleTransferModel.Input("style_transfer_model", tooltip="From Load StyTr2, AdaAttN or CAST."),
                io.Image.Input("content", tooltip="Photographs or video frames, any size; the result has the same."),
                io.Image.Input("style", tooltip="One style picture, any size, or one for each content picture."),
                io.Float.Input("strength", default=1.0, min=0.0, max=1.0, step=0.05,
                               tooltip="1 = the published method. Lower values blend with the features that the "
                                       "content gets with itself as the style."),
                io.Combo.Input("preserve_color", options=["none", "luminance"], default="none",
                               tooltip="luminance: take brightness from the result and colour from the content."),
            ],
            outputs=[io.Image.Output(display_name="image", tooltip="The stylised pictures, in the content's size.")],
        )

    @classmethod
    @held_to_widgets
    def execute(cls, style_transfer_model, content, style, strength, preserve_color) -> io.NodeOutput:
        pictures, reference = to_pictures(content, "content"), to_pictures(style, "style")
        try:
            style_transfer_model.to(host.training.make_room(WORKING_MEMORY))
            result = style_transfer_model.stylize(pictures, reference, alpha=strength,
                                                  progress=_reporter(len(pictures), every=1))
        finally:
            style_transfer_model.to("cpu")
        if preserve_color == "luminance":
            result = with_luminance(pictures, luminance(result))
        return io.NodeOutput(to_image(result))


class InSTGatysStyleTransfer(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="InST_GatysStyleTransfer",
            display_name="Gatys Style Transfer",
            category=COMPARE_CATEGORY,
            description="The first neural style transfer: changes a picture step by step until a VGG network sees the "
                        "content of one picture and the textures of another.",
            search_aliases=["neural style", "gatys", "nst", "vgg", "gram matrix", "style transfer", "optimization"],
            inputs=[
                io.Combo.Input("vgg_name", options=weight_files("vgg"),
                               tooltip="VGG-19 or VGG-16 in models/style_transfer: vgg_conv.pth, vgg_normalised.pth, "
                                       "torchvision's or Caffe's. Recognised by its contents."),
                io.Image.Input("content", tooltip="The photograph. A batch is painted one by one."),
                io.Image.Input("style", tooltip="The painting: one, or one for each photograph."),
                io.Int.Input("steps", default=gatys.OFFICIAL_STEPS, min=1, max=10000,
                             tooltip="Loss evaluations. The authors use 500; 150 already show the style."),
                io.Float.Input("style_weight", default=1.0, min=0.0, max=1e6, step=0.1,
                               tooltip="Times the authors' weight. More is more painting and less photograph; try 0.1 "
                                       "and 10."),
                io.Int.Input("size", default=512, min=gatys.MINIMUM, max=4096, step=16,
                             tooltip="Short side of the result in pixels. Brush strokes keep their size in pixels, so "
                                     "this also sets how coarse they are."),
                io.Combo.Input("preserve_color", options=["none", "luminance", "histogram"], default="none",
                               tooltip="luminance: only brightness is painted, colours stay. histogram: the painting "
                                       "is given the photograph's colours first."),
                seed_input("Draws the noise to start from; without effect when starting from the content."),
                io.Int.Input("high_resolution", default=0, min=0, max=4096, step=16, optional=True,
                             tooltip="Short side of a second pass that refines the first result; the authors use 800. "
                                     "0 = no second pass."),
                io.Float.Input("content_weight", default=1.0, min=0.0, max=1e6, step=0.1, optional=True, advanced=True,
                               tooltip="Times the authors' weight."),
                io.Combo.Input("start", options=["content", "noise"], default="content", optional=True, advanced=True,
                               tooltip="content: as in the authors' code. noise: as in the paper; freer, needs more "
                                       "steps."),
                io.Combo.Input("pooling", options=["max", "avg"], default="max", optional=True, advanced=True,
                               tooltip="max: as in the authors' code. avg: as in the paper; smoother."),
                io.Combo.Input("content_layer", options=[f"relu{b}_{n}" for b in (2, 3, 4, 5) for n in (1, 2)],
                               default="relu4_2", optional=True, advanced=True,
                               tooltip="Where content is compared. Lower keeps more detail of the photograph."),
                io.String.Input("style_layers", default=STYLE_LAYERS, optional=True, advanced=True,
                                tooltip="Where textures are compared. Fewer deep layers: smaller strokes."),
            ],
            outputs=[
                io.Image.Output(display_name="image", tooltip="The stylised pictures, with the short side asked for."),
                io.String.Output(display_name="report", tooltip="How far the loss fell, for Preview as Text."),
            ],
        )

    @classmethod
    def validate_inputs(cls, vgg_name, style_layers=STYLE_LAYERS) -> bool | str:
        answer = problem_of(gatys.style_layers, style_layers)
        return file_problem(vgg_name) if answer is True else answer

    @classmethod
    def fingerprint_inputs(cls, vgg_name, **others) -> str:
        return fingerprint(vgg_name)

    @classmethod
    @held_to_widgets
    def execute(cls, vgg_name, content, style, steps, style_weight, size, preserve_color, seed,
                high_resolution=0, content_weight=1.0, start="content", pooling="max", content_layer="relu4_2",
                style_layers=STYLE_LAYERS) -> io.NodeOutput:
        settings = gatys.Settings(steps, content_weight, style_weight, {content_layer: 1.0},
                                  gatys.style_layers(style_layers), pooling, start, size, high_resolution,
                                  preserve_color, seed)
        pictures, reference = to_pictures(content, "content"), to_pictures(style, "style")
        total = len(pictures) * settings.total_steps
        network = vgg.load(read_weights(vgg_name)).to(host.training.make_room(WORKING_MEMORY))
        result = gatys.stylize(network, pictures, reference, settings, _reporter(total, max(1, total // PREVIEWS)))
        return io.NodeOutput(to_image(result.pictures), result.report(network.family.name))
