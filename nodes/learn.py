"""Learn InST Style."""
import time

import torch
from comfy_api.latest import io, ui

from ..inst_core import host, preprocess, saving
from ..inst_core.encoders import ENCODERS, build_encoder, resume
from ..inst_core.learning import (
    BATCH_SIZE,
    CROPS,
    START_WORDS,
    STEPS,
    TOKENS,
    Painting,
    Report,
    Settings,
    learn_style,
)
from ..inst_core.objective import Objective
from ..inst_core.style import ALL_LAYERS, LAYERS, Style, style_metadata
from .sockets import CATEGORY, InstStyle, LossMap, seed_input

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
                                    tooltip="CLIP ViT-L/14 from Load CLIP Vision, for all encoders but direct."),
                io.Combo.Input("encoder", options=list(ENCODERS), default="direct",
                               tooltip="direct: free vectors, works on every model. attention: learned queries over "
                                       "CLIP's view of the painting. paper: the published module. released: the "
                                       "published code with its quirks, for comparison."),
                io.Int.Input("tokens", default=TOKENS, min=1, max=32,
                             tooltip="How many pseudo-words the style gets. More hold more detail; paper and released "
                                     "always have one."),
                io.Int.Input("steps", default=STEPS, min=1, max=100000,
                             tooltip="Optimiser steps at the most; direct and attention stop earlier when nothing more "
                                     "is gained. The released code runs 6100."),
                io.Float.Input("learning_rate", default=0.0, min=0.0, max=1.0, step=0.0001, round=False,
                               tooltip="0 = what suits the encoder (direct 0.005, attention 0.001, paper and released "
                                       "0.0001)."),
                io.Int.Input("batch_size", default=BATCH_SIZE, min=1, max=64,
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
                io.String.Input("start", default=START_WORDS, optional=True, advanced=True,
                                tooltip="Words that direct and attention start from, such as 'oil painting, impasto'."),
                io.Float.Input("max_seconds", default=0.0, min=0.0, max=86400.0, step=1.0, optional=True, advanced=True,
                               tooltip="Time limit for learning; what was learned by then is kept. 0 = none."),
                InstStyle.Input("continue_from", optional=True,
                                tooltip="A style to go on learning, made with the same encoder and tokens."),
                io.Combo.Input("layers", options=list(LAYERS), default=ALL_LAYERS, optional=True, advanced=True,
                               tooltip="all: the whole model sees the style. late: only the last blocks of a U-Net do, "
                                       "which set colour and texture: learns about twice as fast and takes less of the "
                                       "painting's content along. embedding:name always speaks to the whole model."),
                io.Float.Input("strongest", default=1.0, min=0.05, max=1.0, step=0.05, optional=True, advanced=True,
                               tooltip="The highest strength at which you will use the style. Noise above it is not "
                                       "learned from; paper and released always learn from all."),
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
                clip_vision=None, prompt="*", name="style", resolution=512, start=START_WORDS, max_seconds=0.0,
                continue_from=None, layers=ALL_LAYERS, strongest=1.0) -> io.NodeOutput:
        host.check_learnable(model, clip, vae)
        saving.check_name(name)
        kind, family, prompt = ENCODERS[encoder], host.family_of(model), host.with_placeholder(prompt)
        settings = Settings(steps, learning_rate or kind.learning_rate, batch_size, seed, max_seconds,
                            Objective(strongest=strongest))
        pictures = preprocess.as_rgb(image)
        painting = cls.look_at(pictures, encoder, clip_vision, vae, model, resolution, seed)
        with host.training_mode():
            words = host.word_vectors(clip, start)
            module = build_encoder(encoder, words, tokens, torch.Generator().manual_seed(seed))
            if continue_from is not None:
                resume(module, continue_from)
            with host.training_session(model, clip, prompt, 1 if kind.faithful else tokens, layers) as session:
                learned = learn_style(session, module, painting, settings, cls.reporter(model, steps, batch_size))
        extra = {} if painting.features is None else {"image_embed": painting.features.image_embed}
        metadata = style_metadata(name, family, host.source_of(model), settings, learned, prompt, pictures)
        metadata["inst.start"] = start  # Apply InST Style's strength 0
        style = Style(learned.vectors, encoder, family, module.state_dict(), extra, metadata, layers)
        saved = saving.save_new(style, name, host.style_folders(), host.metadata_enabled(), host.searched_folders())
        curve = {"loss": [check.loss for check in learned.checks]}
        said = f"{learned.verdict}\n{saved}"
        cls.say(said)
        return io.NodeOutput(style, curve, ui=ui.PreviewText(said))

    @classmethod
    def say(cls, text: str) -> None:
        """Shows a text in the node. What it says last stays there."""
        host.show_text(text, getattr(cls.hidden, "unique_id", None))

    @classmethod
    def look_at(cls, pictures, encoder, clip_vision, vae, model, resolution, seed) -> Painting:
        """The painting as latents and CLIP features, each encoded once."""
        released = encoder == "released"
        features = host.picture_features(clip_vision, pictures, released) if ENCODERS[encoder].needs_picture else None
        whole = preprocess.released_square(pictures) if released else preprocess.fit_area(pictures, resolution)
        if ENCODERS[encoder].faithful:
            views = torch.cat([whole, whole.flip(2)])
        else:
            views = preprocess.random_crops(pictures, resolution, CROPS, torch.Generator().manual_seed(seed))
        return Painting(host.encode_latent(vae, model, views).cpu(), host.encode_latent(vae, model, whole).cpu(),
                        features)

    @classmethod
    def reporter(cls, model, steps: int, batch_size: int) -> Report:
        """Shows every sample in the progress bar; now and then what the model makes of the painting, from little to
        much noise, and a line with the loss."""
        progress, shown, began = host.Progress(steps * batch_size), host.LatentPreview(model), time.monotonic()

        def report(step: int, samples: int, loss: float, denoised: torch.Tensor) -> None:
            due = step == steps or step % max(1, steps // PREVIEWS) == 0
            progress.update(samples, shown(denoised) if due else None)
            if due:
                left = (time.monotonic() - began) / step * (steps - step)
                cls.say(f"{samples} of {steps * batch_size} samples, loss {loss:.4f}, at most {left:.0f} s left")

        return report
