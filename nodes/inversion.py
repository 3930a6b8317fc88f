"""Stochastic inversion and synthesis."""
import logging

from comfy_api.latest import io

from ..inst_core import host
from .sockets import CATEGORY, held_to_widgets, seed_input, strength_input, timing_input

NO_PHOTOGRAPH = ("latent is empty, as from Empty Latent Image: there is no photograph whose layout could be kept, and "
                 "below strength 1 the picture will be weak or grey. Connect VAE Encode with a photograph.")


def _warn_if_empty(node: type[io.ComfyNode], latent: dict, strength: float) -> None:
    """Says under the node and in the log that a photograph is missing; at strength 1 none is needed."""
    if strength < 1 and host.sampling.shows_nothing(latent):
        logging.getLogger(__name__).warning("%s: %s", node.define_schema().display_name, NO_PHOTOGRAPH)
        host.progress.show_text(NO_PHOTOGRAPH, getattr(node.hidden, "unique_id", None))


class InSTStochasticInvert(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="InST_StochasticInvert",
            display_name="Stochastic Invert Latent",
            category=CATEGORY,
            description="Lets the model predict the noise of the noised photograph once, and starts from that noise "
                        "instead of random noise, so that the photograph's layout survives.",
            search_aliases=["style transfer", "unsampler", "noise inversion", "ddim inversion", "invert latent"],
            inputs=[
                io.Model.Input("model", tooltip="The model that will sample."),
                io.Conditioning.Input("positive", tooltip="The style's conditioning, ControlNet included."),
                io.Latent.Input("latent", tooltip="The photograph, from VAE Encode."),
                strength_input(),
                seed_input("Draws the noise under which the model looks at the photograph; samplers that add noise "
                           "of their own draw it from this seed, too."),
                timing_input(),
                io.Sigmas.Input("sigmas", optional=True,
                                tooltip="The sampler's levels, for SamplerCustomAdvanced or KSampler (Advanced). Their "
                                        "first one then replaces repaint strength and timing."),
                io.Int.Input("steps", default=50, min=1, max=1000, optional=True, advanced=True,
                             tooltip="DDIM steps that timing 'released' counts its start in."),
            ],
            outputs=[
                io.Noise.Output(display_name="noise", tooltip="For SamplerCustomAdvanced and InST Sample, with the "
                                                              "same (clean) latent."),
                io.Latent.Output(display_name="noised_latent", tooltip="Already noised, for KSampler (Advanced) with "
                                                                       "add_noise disabled."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    @held_to_widgets
    def execute(cls, model, positive, latent, strength, seed, timing, sigmas=None, steps=50) -> io.NodeOutput:
        _warn_if_empty(cls, latent, strength)
        inverted = host.sampling.invert(model, positive, latent, strength, seed, timing, sigmas, steps)
        return io.NodeOutput(inverted.noise, inverted.noised)


class InSTSample(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="InST_Sample",
            display_name="InST Sample",
            category=CATEGORY,
            description="Repaints a photograph: stochastic inversion, then sampling from its level.",
            search_aliases=["style transfer", "img2img", "restyle", "repaint", "stylize", "painting",
                            "photo to painting", "ksampler", "inst"],
            inputs=[
                io.Model.Input("model", tooltip="The checkpoint, with LoRAs and patches if you like."),
                io.Conditioning.Input("positive", tooltip="From Apply InST Style, ControlNet included."),
                io.Conditioning.Input("negative", tooltip="What to stay away from; empty is the paper's."),
                io.Latent.Input("latent", tooltip="The photograph, from VAE Encode. Noise masks are kept."),
                io.Noise.Input("noise", optional=True,
                               tooltip="From Stochastic Invert Latent. Without it the inversion is done here."),
                io.Int.Input("steps", default=50, min=1, max=1000,
                             tooltip="Sampling steps. With timing 'released', steps of the whole schedule, of which "
                                     "the share 'repaint strength' is run."),
                io.Float.Input("cfg", default=10.0, min=0.0, max=100.0, step=0.1, round=0.01,
                               tooltip="Guidance. The released code uses 10; 5 to 7 is milder."),
                io.Combo.Input("sampler", options=host.sampling.samplers(), default="ddim",
                               tooltip="Any host sampler."),
                io.Combo.Input("scheduler", options=host.sampling.schedulers(), default="ddim_uniform",
                               tooltip="How levels are spaced below the start. Timing 'released' brings its own."),
                strength_input(),
                seed_input("Draws the inversion's noise, and that of samplers that add noise. With noise connected it "
                           "does nothing: the seed of Stochastic Invert Latent counts."),
                timing_input(),
                io.Sigmas.Input("sigmas", optional=True,
                                tooltip="Levels to sample at instead of steps, scheduler, repaint strength and timing, "
                                        "such as those of InST Cosine Scheduler."),
                io.Float.Input("keep_structure", default=0.0, min=0.0, max=1.0, step=0.05, optional=True,
                               tooltip="Share of the steps, from the first on, in which the photograph's layout is "
                                       "held: 0 = none, 0.5 = the first half. For high repaint strengths."),
                io.Combo.Input("keep_structure_by", options=list(host.structure.WAYS),
                               default=host.structure.COARSE, optional=True, advanced=True,
                               tooltip="coarse: large shapes stay where they are; any model, costs nothing. queries: "
                                       "the photograph's own self-attention guides; U-Nets only, held steps take twice "
                                       "as long. both: the two together."),
            ],
            outputs=[io.Latent.Output(display_name="latent", tooltip="The repainted latent, for VAE Decode.")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    @held_to_widgets
    def execute(cls, model, positive, negative, latent, steps, cfg, sampler, scheduler, strength, seed, timing,
                noise=None, sigmas=None, keep_structure=0.0, keep_structure_by=host.structure.COARSE) -> io.NodeOutput:
        host.structure.check_structure(model, keep_structure, keep_structure_by)
        released = timing == "released" and sigmas is None
        if released:
            levels = host.sampling.released_sigmas(model, strength, steps)[1]
        elif sigmas is None:
            levels = host.sampling.sampling_sigmas(model, scheduler, steps, strength, sampler)
        else:
            levels = sigmas
        if host.sampling.changes_nothing(levels):
            return io.NodeOutput(latent)
        _warn_if_empty(cls, latent, 1.0 if sigmas is not None else strength)
        if noise is None:
            noise = host.sampling.invert(model, positive, latent, strength, seed, timing, None if released else levels,
                                         steps).noise
        return io.NodeOutput(host.sampling.sample(model, positive, negative, latent, noise, levels, cfg, sampler,
                                                  released, keep_structure, keep_structure_by))


class InSTCosineScheduler(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="InST_CosineScheduler",
            display_name="InST Cosine Scheduler",
            category=CATEGORY,
            description="Noise levels at equal steps of the cosine schedule's clock: more of them in the middle, where "
                        "shapes and texture are decided.",
            search_aliases=["cosine schedule", "sigmas", "scheduler"],
            inputs=[
                io.Model.Input("model", tooltip="The model that will sample."),
                io.Int.Input("steps", default=20, min=1, max=1000, tooltip="Sampling steps."),
                io.Float.Input("denoise", default=1.0, min=0.0, max=1.0, step=0.01,
                               tooltip="The level to start from, the same scale as repaint strength."),
            ],
            outputs=[io.Sigmas.Output(display_name="sigmas", tooltip="For InST Sample or SamplerCustomAdvanced.")],
        )

    @classmethod
    @held_to_widgets
    def execute(cls, model, steps, denoise) -> io.NodeOutput:
        return io.NodeOutput(host.sampling.cosine_sigmas(model, steps, denoise))
