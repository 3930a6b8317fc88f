"""Guess InST Style."""
from pathlib import Path

from comfy_api.latest import io, ui
from torch import Tensor

from ..inst_core import guessing, host, preprocess
from ..inst_core.metrics.alexnet import AlexNet
from ..inst_core.textual_inversion import in_words
from .compare import lpips_weights
from .sockets import CATEGORY, InstStyle, held_to_widgets, problem_of

GO_ON = "Learn InST Style goes on from it in about 20 steps."
NO_ENCODERS = "(put an encoder into models/inst_encoders)"


def features_of(pictures: Tensor, about: guessing.About, clip_vision) -> Tensor:
    """What the encoder wants to know of pictures (P, H, W, 3): (P, F)."""
    if about.features == guessing.ALEXNET:
        return guessing.alexnet_features(AlexNet(lpips_weights()), pictures, about.side)
    if clip_vision is None:
        raise ValueError("clip_vision is not connected, and this encoder looks at paintings through CLIP ViT-L/14: "
                         "connect Load CLIP Vision (clip-vit-large-patch14), or choose an encoder that uses AlexNet.")
    return guessing.clip_features(host.vision.picture_features(clip_vision, pictures))


def check_clip(widths: dict[str, int], about: guessing.About, name: str) -> None:
    """Raises ValueError unless an encoder guesses for these text encoders {key: width}."""
    if widths != about.widths:
        raise ValueError(f"{name} guesses styles for the text encoders {in_words(about.widths)}; the connected clip "
                         f"has {in_words(widths)}. Use the text encoder of {about.base_model or about.family}, or an "
                         "encoder for this one.")


class InSTGuessStyle(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="InST_GuessStyle",
            display_name="Guess InST Style",
            category=CATEGORY,
            description="Guesses the style of a painting at once, without learning, for the checkpoint that the chosen "
                        "encoder was trained for. Learn InST Style can go on from it.",
            search_aliases=["style transfer", "instant style", "style encoder", "image to style", "inst"],
            inputs=[
                io.Image.Input("image", tooltip="One painting, any size. A batch is several paintings of one style."),
                io.Combo.Input("encoder_name", options=host.files.guesser_files() or [NO_ENCODERS],
                               tooltip="A file in models/inst_encoders, made by tools/train_encoder for one "
                                       "checkpoint. inst-demo-guesser is for the demo model."),
                io.String.Input("context", default="", optional=True,
                                tooltip="What is known of the painting: 'ukiyo-e, woodblock print, 1831'. Kept in the "
                                        "style; with a CLIP connected, the words that the guess starts from."),
                io.Clip.Input("clip", optional=True,
                              tooltip="Text encoder of the checkpoint. Only needed to start from the words in "
                                      "context."),
                io.ClipVision.Input("clip_vision", optional=True,
                                    tooltip="CLIP ViT-L/14, for encoders whose features are CLIP's; AlexNet's need "
                                            "none."),
            ],
            outputs=[
                InstStyle.Output(display_name="style", tooltip="For Apply InST Style, Save InST Style, or "
                                                               "continue_from of Learn InST Style."),
                io.String.Output(display_name="text", tooltip="For the text of Apply InST Style, where the context "
                                                              "should stay in the prompt: '*, ukiyo-e'."),
            ],
        )

    @classmethod
    def validate_inputs(cls, encoder_name) -> bool | str:
        if encoder_name == NO_ENCODERS:
            return ("There is no encoder to guess with. Put one into models/inst_encoders (tools/train_encoder makes "
                    "them), press R and choose it here.")
        return problem_of(host.files.guesser_path, encoder_name)

    @classmethod
    def fingerprint_inputs(cls, encoder_name, **others) -> str:
        return host.files.fingerprint(host.files.GUESSER_FOLDER, encoder_name)

    @classmethod
    @held_to_widgets
    def execute(cls, image, encoder_name, context="", clip=None, clip_vision=None) -> io.NodeOutput:
        pictures, context = preprocess.as_rgb(image), context.strip()
        guesser = guessing.load(Path(host.files.guesser_path(encoder_name)))
        about, start = guesser.about, None
        if clip is not None:
            check_clip(host.text.text_widths(clip), about, encoder_name)
            start = host.text.word_vectors(clip, context) if context else None
        vectors = guessing.guess(guesser, features_of(pictures, about, clip_vision), start)
        style = guessing.guessed_style(guesser, vectors, pictures, encoder_name, context, context if start else "")
        said = f"Guessed for {about.base_model or about.family}: {about.tokens} tokens. {GO_ON}"
        return io.NodeOutput(style, f"*, {context}" if context else "*", ui=ui.PreviewText(said))
