"""Apply InST Style Adapter."""
from comfy_api.latest import io

from ..inst_core import host
from .sockets import CATEGORY, InstStyle, held_to_widgets


class InSTApplyStyleAdapter(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="InST_ApplyStyleAdapter",
            display_name="Apply InST Style Adapter",
            category=CATEGORY,
            description="Puts the adapter of a style that was learned with adapter_rank on a model, like a LoRA. Its "
                        "pseudo-words go into the prompt through Apply InST Style.",
            search_aliases=["style transfer", "style lora", "apply lora", "low rank adapter", "inst adapter"],
            inputs=[
                io.Model.Input("model", tooltip="A model of the family that the style was learned on; a distilled "
                                                "relative (Turbo, Lightning) works too."),
                InstStyle.Input("style", tooltip="Learned with adapter_rank above 0, from Learn InST Style or Load "
                                                 "InST Style."),
                io.Float.Input("strength", default=1.0, min=0.0, max=2.0, step=0.05,
                               tooltip="0 = the model as it was, 1 = the adapter as learned, 2 = twice as much of it."),
            ],
            outputs=[io.Model.Output(display_name="model",
                                     tooltip="For InST Sample, Stochastic Invert Latent and stock samplers.")],
        )

    @classmethod
    @held_to_widgets
    def execute(cls, model, style, strength) -> io.NodeOutput:
        return io.NodeOutput(host.adapter.adapted(model, style, strength))
