"""Colour on latents."""
from functools import partial

from comfy_api.latest import io

from ..inst_core import host
from ..inst_core.color import METHODS, SEMANTIC, match_color
from .sockets import CATEGORY, held_to_widgets


class InSTMatchColor(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="InST_MatchColor",
            display_name="Match Latent Color",
            category=CATEGORY,
            description="Gives a latent the colours of another before it is repainted; the released code does this "
                        "with adain.",
            search_aliases=["color transfer", "adain", "palette", "color match", "style transfer"],
            inputs=[
                io.Latent.Input("latent", tooltip="The photograph. Outside its noise mask colours stay."),
                io.Latent.Input("style_latent", tooltip="The painting, any size: one, or one for each photograph."),
                io.Combo.Input("method", options=[*METHODS, SEMANTIC], default="adain",
                               tooltip="adain: each channel's mean and spread, as released. mk: also how channels go "
                                       "together, with the smallest change. wct: the same, but colours may swap. "
                                       "semantic: mk for each kind of thing that the model sees in both pictures, so "
                                       "that sky takes the colours of sky."),
                io.Float.Input("amount", default=1.0, min=0.0, max=1.0, step=0.05,
                               tooltip="0 = unchanged, 1 = the painting's colours."),
                io.Model.Input("model", optional=True,
                               tooltip="The checkpoint, for semantic only: one look at each picture tells its regions "
                                       "apart."),
                io.Mask.Input("content_mask", optional=True,
                              tooltip="White: a region of the photograph that takes the colours of what is white in "
                                      "style_mask. A batch of masks is several regions."),
                io.Mask.Input("style_mask", optional=True,
                              tooltip="The same regions in the painting, in the same order. What is in no mask is "
                                      "matched by the method."),
            ],
            outputs=[io.Latent.Output(display_name="latent", tooltip="The photograph with new colours.")],
        )

    @classmethod
    @held_to_widgets
    def execute(cls, latent, style_latent, method, amount, model=None, content_mask=None,
                style_mask=None) -> io.NodeOutput:
        if method == SEMANTIC and amount:
            host.features.check_features(model)
        content = latent["samples"]
        samples = match_color(content, style_latent["samples"].to(content), method, amount,
                              host.sampling.noise_mask(latent, content), content_mask, style_mask,
                              partial(host.features.denoiser_features, model))
        return io.NodeOutput({**latent, "samples": samples})
