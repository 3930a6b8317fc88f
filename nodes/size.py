"""Pictures of any size on models that were made for one."""
from comfy_api.latest import io

from ..inst_core import host, preprocess
from .sockets import CATEGORY, ZERO_IS_AUTO, held_to_widgets


class InSTFitToModel(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="InST_FitToModel",
            display_name="Scale to Model Size",
            category=CATEGORY,
            description="Scales a photograph to the size that the model was made for, whole and in its own shape.",
            search_aliases=["resize image", "scale image", "megapixels", "model resolution", "fit image"],
            inputs=[
                io.Image.Input("image", tooltip="The photograph, any size and shape."),
                io.Model.Input("model", tooltip="The model that will repaint it."),
                io.Float.Input("scale", default=1.0, min=0.25, max=8.0, step=0.25, round=0.01,
                               tooltip="Times the side that the model was made for: 1 is 512 x 512 pixels in area for "
                                       "SD 1.x, 1024 x 1024 for SDXL. Above 1 connect Tile Model for High Resolution."),
            ],
            outputs=[io.Image.Output(display_name="image", tooltip="For VAE Encode.")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    @held_to_widgets
    def execute(cls, image, model, scale) -> io.NodeOutput:
        pictures = preprocess.as_rgb(image)
        fitted = host.size.fit(model, pictures, scale)
        (_, height, width, _), (_, new_height, new_width, _) = pictures.shape, fitted.shape
        host.progress.show_text(f"{width} x {height} pixels are scaled to {new_width} x {new_height}",
                                getattr(cls.hidden, "unique_id", None))
        return io.NodeOutput(fitted)


class InSTTileModel(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="InST_TileModel",
            display_name="Tile Model for High Resolution",
            category=CATEGORY,
            description="A model that looks at large pictures in overlapping tiles of the size it was made for, "
                        "blended in every step: no seams, the same style and inversion everywhere, memory of one tile.",
            search_aliases=["tiled diffusion", "multidiffusion", "hires fix", "high resolution", "upscale", "tiles"],
            inputs=[
                io.Model.Input("model", tooltip="The model, with LoRAs and patches. Connect the result to InST Sample, "
                                                "Stochastic Invert Latent or any other sampler."),
                io.Int.Input("tile_size", default=0, min=0, max=4096, step=64, advanced=True, extra_dict=ZERO_IS_AUTO,
                             tooltip="Side of a tile in pixels. auto (0): the side that the model was made for. "
                                     "Pictures that are not larger are not tiled."),
                io.Float.Input("overlap", default=0.25, min=0.0, max=0.75, step=0.05, advanced=True,
                               tooltip="How much of a tile its neighbour shares. More is smoother and slower."),
            ],
            outputs=[io.Model.Output(display_name="model", tooltip="The same model for large pictures.")],
        )

    @classmethod
    @held_to_widgets
    def execute(cls, model, tile_size, overlap) -> io.NodeOutput:
        return io.NodeOutput(host.size.tile_model(model, tile_size, overlap))
