"""Colour on latents."""
from comfy_api.latest import io

from ..inst_core import host
from ..inst_core.color import METHODS, match_color
from .sockets import CATEGORY


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
                io.Combo.Input("method", options=list(METHODS), default="adain",
                               tooltip="adain: each channel's mean and spread, as released. mk: also how channels go "
                                       "together, with the smallest change. wct: the same, but colours may swap."),
                io.Float.Input("amount", default=1.0, min=0.0, max=1.0, step=0.05,
                               tooltip="0 = unchanged, 1 = the painting's colours."),
            ],
            outputs=[io.Latent.Output(display_name="latent", tooltip="The photograph with new colours.")],
        )

    @classmethod
    def execute(cls, latent, style_latent, method, amount) -> io.NodeOutput:
        content = latent["samples"]
        samples = match_color(content, style_latent["samples"].to(content), method, amount,
                              host.noise_mask(latent, content))
        return io.NodeOutput({**latent, "samples": samples})
