"""Learn InST Style."""
import torch
from comfy_api.latest import io, ui

from ..inst_core import host, preprocess, saving
from ..inst_core.encoders import ENCODERS, build_encoder
from ..inst_core.learning import Settings, learn_style
from ..inst_core.style import Style, style_metadata
from .sockets import CATEGORY, InstStyle, LossMap, seed_input

START_WORD = "painting"
PREVIEWS = 20  # pictures shown during a run


class InSTLearnStyle(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="InST_LearnStyle",
            display_name="Learn InST Style",
            category=CATEGORY,
            description="Learns the style of one painting as a few pseudo-words for your checkpoint, and saves it as a "
                        "small file that also works as embedding:name.",
            search_aliases=["style transfer", "textual inversion", "train style", "learn embedding", "inst"],
            inputs=[
                io.Model.Input("model", tooltip="The checkpoint to learn for, from Load Checkpoint. LoRAs are seen."),
                io.Clip.Input("clip", tooltip="Text encoder of the same checkpoint."),
                io.Vae.Input("vae", tooltip="VAE of the same checkpoint."),
                io.Image.Input("image", tooltip="One painting, any size. A batch is several paintings of one style."),
                io.ClipVision.Input("clip_vision", optional=True,
                                    tooltip="CLIP ViT-L/14 from Load CLIP Vision. Every encoder but 'direct' needs it."),
                io.Combo.Input("encoder", options=list(ENCODERS), default="direct",
                               tooltip="direct: free vectors, works on every model. attention: learned queries over "
                                       "CLIP's view of the painting. paper: the published module. released: the "
                                       "published code with its quirks, for comparison."),
                io.Int.Input("tokens", default=4, min=1, max=32,
                             tooltip="How many pseudo-words the style gets. More hold more detail; paper and released "
                                     "always have one."),
                io.Int.Input("steps", default=400, min=1, max=100000,
                             tooltip="Optimiser steps. The released code runs 6100."),
                io.Float.Input("learning_rate", default=0.0, min=0.0, max=1.0, step=0.0001, round=False,
                               tooltip="0 = what suits the encoder (direct 0.005, attention 0.001, paper and released "
                                       "0.0001)."),
                io.Int.Input("batch_size", default=1, min=1, max=64,
                             tooltip="Noise levels looked at in every step. More is smoother and slower."),
                seed_input("Same inputs and seed give the same style. Kept fixed, so that a style is not learned "
                           "again on every run."),
                io.String.Input("prompt", default="*", optional=True,
                                tooltip="What the painting shows, with * for the style: 'a village at night in the "
                                        "style of *'. Words you write here do not have to be learned."),
                io.String.Input("name", default="style", optional=True,
                                tooltip="File name of the style, without a folder. A number is added."),
                io.Int.Input("resolution", default=512, min=64, max=2048, step=64, optional=True, advanced=True,
                             tooltip="The painting is learned at about this many pixels squared: 512 for SD 1.x, 1024 "
                                     "for SDXL."),
            ],
            outputs=[
                InstStyle.Output(display_name="style", tooltip="The learned style, for Apply InST Style."),
                LossMap.Output(display_name="loss", tooltip="Held-out loss over the run, for Plot Loss Graph."),
            ],
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, model, clip, vae, image, encoder, tokens, steps, learning_rate, batch_size, seed,
                clip_vision=None, prompt="*", name="style", resolution=512) -> io.NodeOutput:
        host.check_learnable(model)
        saving.check_name(name)
        settings = Settings(steps, learning_rate or ENCODERS[encoder].learning_rate, batch_size, seed)
        pictures = preprocess.as_rgb(image)
        released = encoder == "released"
        features = host.picture_features(clip_vision, pictures, released) if ENCODERS[encoder].needs_picture else None
        fitted = preprocess.released_square(pictures) if released else preprocess.fit_area(pictures, resolution)
        views = host.encode_latent(vae, model, torch.cat([fitted, fitted.flip(2)])).cpu()
        prompt, shown = host.with_placeholder(prompt), host.LatentPreview(model)
        progress = host.Progress(steps)

        def report(step: int, loss: float, denoised: torch.Tensor) -> None:
            due = step == steps or step % max(1, steps // PREVIEWS) == 0
            progress.update(step, shown(denoised) if due else None)
            if due:
                host.show_text(f"step {step} of {steps}, loss {loss:.4f}", getattr(cls.hidden, "unique_id", None))

        with host.training_mode():
            start = host.word_vectors(clip, START_WORD)
            module = build_encoder(encoder, start, tokens, torch.Generator().manual_seed(seed))
            count = 1 if ENCODERS[encoder].faithful else tokens
            with host.training_session(model, clip, prompt, count) as session:
                learned = learn_style(session, module, features, views, settings, report)
        style = Style(learned.vectors, encoder, host.family_of(model), module.state_dict(),
                      {} if features is None else {"image_embed": features.image_embed},
                      style_metadata(name, host.family_of(model), encoder, settings, learned, prompt, pictures))
        saved = saving.save_new(style, name, host.style_folders(), host.metadata_enabled())
        text = f"{learned.verdict()}\n{saved}"
        return io.NodeOutput(style, {"loss": learned.held_out}, ui=ui.PreviewText(text))
