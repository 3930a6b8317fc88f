"""Styles as files and as conditioning."""
from comfy_api.latest import io, ui

from ..inst_core import host, official, preprocess, saving
from ..inst_core.content import PARTS
from ..inst_core.encoders import ENCODERS
from ..inst_core.guessing import CONTEXT
from ..inst_core.learning import final_vectors
from ..inst_core.recipes import START_WORDS
from ..inst_core.strength import SHAPES, Course
from ..inst_core.style import Style, check_fits, load_style, thumbnail
from .sockets import CATEGORY, InstStyle, held_to_widgets, problem_of, seed_input

NO_STYLES = "(learn a style first)"
NO_EMBEDDINGS = "(put embeddings.pt into models/embeddings)"


class InSTStyleConditioning(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="InST_StyleConditioning",
            display_name="Apply InST Style",
            category=CATEGORY,
            description="A prompt in which * stands for a learned style.",
            search_aliases=["style transfer", "style prompt", "style conditioning", "textual inversion", "artist",
                            "art style", "painting"],
            inputs=[
                io.Clip.Input("clip", tooltip="Text encoder of the family that the style was learned on."),
                InstStyle.Input("style", tooltip="From Learn InST Style or Load InST Style."),
                io.String.Input("text", default="*", multiline=True, dynamic_prompts=True,
                                tooltip="Prompt with * where the style goes; without one, 'in the style of *' is added."
                                        " Weights work where the model's prompts know them: (*:1.2). \\* is a star "
                                        "that is not the style."),
                io.Float.Input("strength", display_name="style strength", default=1.0, min=0.0, max=2.0, step=0.05,
                               tooltip="0 = the word that learning started from ('painting') in its place, 1 = the "
                                       "style as learned, 2 = twice as far from that word."),
                io.Float.Input("start_percent", default=0.0, min=0.0, max=1.0, step=0.01, optional=True, advanced=True,
                               tooltip="Where in the noise schedule the style sets in: 0 = pure noise, 1 = the "
                                       "finished picture. Before it the strength is 0."),
                io.Float.Input("end_percent", default=1.0, min=0.0, max=1.0, step=0.01, optional=True, advanced=True,
                               tooltip="Where the style ends. Sampling at repaint strength 0.7 begins at 0.3."),
                io.Combo.Input("shape", options=list(SHAPES), default=SHAPES[0], optional=True, advanced=True,
                               tooltip="Between start and end the strength stays (constant), rises to its full height "
                                       "(ease in) or falls from it (ease out)."),
                io.String.Input("content", default="", optional=True, advanced=True,
                                tooltip="What the painting shows, such as 'sunflowers, vase': the part of the style "
                                        "that lies in the direction of these words is taken out. embedding:name of "
                                        "something learned works too. Empty: the style as it is."),
                io.Combo.Input("part", options=list(PARTS), default=PARTS[0], optional=True, advanced=True,
                               tooltip="style: the style, without what content names. content: only what content "
                                       "names, in an otherwise empty prompt: for the negative input of a sampler."),
            ],
            outputs=[io.Conditioning.Output(display_name="conditioning",
                                            tooltip="Positive conditioning for any sampler.")],
        )

    @classmethod
    @held_to_widgets
    def execute(cls, clip, style, text, strength, start_percent=0.0, end_percent=1.0, shape=SHAPES[0], content="",
                part=PARTS[0]) -> io.NodeOutput:
        check_fits(style, host.text.text_widths(clip), host.families.label_of_encoders)
        words = style.metadata.get("inst.start", START_WORDS)
        course = Course(start_percent, end_percent, shape)
        style, origin = host.text.part_of_style(clip, style, content, part)
        return io.NodeOutput(host.text.style_conditioning(clip, text, style.vectors, strength, style.layers, words,
                                                          course, style.stages, style.family, origin))


class InSTLoadStyle(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="InST_LoadStyle",
            display_name="Load InST Style",
            category=CATEGORY,
            description="A learned style from its file, with the painting it was learned from.",
            search_aliases=["style transfer", "load embedding", "inst style", "artist", "art style", "painting"],
            inputs=[io.Combo.Input("style_name", options=host.files.style_files() or [NO_STYLES],
                                   tooltip="Files in models/inst_styles and output/inst_styles; what was just learned "
                                           "appears after pressing R. Those in inst-demo ship with this pack and fit "
                                           "its demo checkpoint only.")],
            outputs=[InstStyle.Output(display_name="style", tooltip="For Apply InST Style.")],
        )

    @classmethod
    def fingerprint_inputs(cls, style_name) -> str:
        return host.files.fingerprint(host.files.STYLE_FOLDER, style_name)

    @classmethod
    def validate_inputs(cls, style_name) -> bool | str:
        if style_name == NO_STYLES or not host.files.style_files():
            return ("There is no style yet: learn one first. Run Learn InST Style once (template 2 Learn a style), "
                    "then press R and choose it here.")
        return problem_of(host.files.style_path, style_name)

    @classmethod
    @held_to_widgets
    def execute(cls, style_name) -> io.NodeOutput:
        style = load_style(host.files.style_path(style_name))
        context = style.metadata.get(CONTEXT)
        return io.NodeOutput(style, ui=ui.PreviewText(context) if context else None)


class InSTSaveStyle(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="InST_SaveStyle",
            display_name="Save InST Style",
            category=CATEGORY,
            description="Writes a style under another name. Learn InST Style already saves what it learns.",
            search_aliases=["save embedding", "inst style"],
            inputs=[
                InstStyle.Input("style", tooltip="The style to save."),
                io.String.Input("name", default="style",
                                tooltip="File name, also in a folder: painters/monet. A number is added, so nothing is "
                                        "overwritten. Without spaces: a prompt's embedding: ends at one."),
            ],
            outputs=[],
            is_output_node=True,
        )

    @classmethod
    def validate_inputs(cls, name) -> bool | str:
        return problem_of(saving.check_name, name)

    @classmethod
    def execute(cls, style, name) -> io.NodeOutput:
        saved = saving.save_new(style, name, host.files.style_folders(), host.files.metadata_enabled(),
                                host.files.searched_folders())
        return io.NodeOutput(ui=ui.PreviewText(saved))


class InSTImportEmbeddings(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="InST_ImportEmbeddings",
            display_name="Import InST embeddings.pt",
            category=CATEGORY,
            description="Turns a checkpoint of the official InST code into a style. The file is read without running "
                        "anything in it.",
            search_aliases=["inst checkpoint", "import embedding", "embeddings.pt"],
            inputs=[
                io.Combo.Input("embeddings_name", options=host.files.embeddings_files() or [NO_EMBEDDINGS],
                               tooltip="An official embeddings.pt from models/embeddings (any .pt name)."),
                io.ClipVision.Input("clip_vision", tooltip="CLIP ViT-L/14, which the official code uses."),
                io.Image.Input("image", tooltip="The painting the file was trained on."),
                io.Combo.Input("encoder", options=["released", "paper"], default="released",
                               tooltip="released: what the official code computes, nearly black CLIP picture and "
                                       "dropout included. paper: the same weights with CLIP seeing the picture."),
                seed_input("Draws the dropout that the released code leaves on."),
            ],
            outputs=[InstStyle.Output(display_name="style", tooltip="For Apply InST Style or Save InST Style.")],
        )

    @classmethod
    def validate_inputs(cls, embeddings_name) -> bool | str:
        if embeddings_name == NO_EMBEDDINGS:
            return "There is no embeddings.pt. Copy one into models/embeddings, press R and choose it here."
        return problem_of(host.files.embeddings_path, embeddings_name)

    @classmethod
    def fingerprint_inputs(cls, embeddings_name, **others) -> str:
        return host.files.fingerprint("embeddings", embeddings_name)

    @classmethod
    @held_to_widgets
    def execute(cls, embeddings_name, clip_vision, image, encoder, seed=0) -> io.NodeOutput:
        weights = official.load_embeddings(host.files.embeddings_path(embeddings_name))
        pictures = preprocess.as_rgb(image)
        features = host.vision.picture_features(clip_vision, pictures, released=encoder == "released")
        module = ENCODERS[encoder]("clip_l")
        module.attention.load_state_dict(weights)
        metadata = {"modelspec.title": embeddings_name, "modelspec.thumbnail": thumbnail(pictures[0])}
        vectors = final_vectors(module, features, seed)
        return io.NodeOutput(Style(vectors, encoder, host.families.PAPER_FAMILY, module.state_dict(),
                                   {"image_embed": features.image_embed}, metadata))
