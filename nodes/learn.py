"""Learn InST Style."""
from dataclasses import asdict

from comfy_api.latest import io, ui

from ..inst_core import host, library, preprocess, saving
from ..inst_core.encoders import ENCODERS
from ..inst_core.learning import STOPPED, Learned
from ..inst_core.recipes import AUTO, GOOD, QUALITIES, RECIPES, START_WORDS, choose_recipe
from ..inst_core.stages import MOST
from ..inst_core.style import ALL_LAYERS, LAYERS, Style, style_metadata
from .sockets import CATEGORY, ZERO_IS_AUTO, InstStyle, LossMap, held_to_widgets, problem_of, seed_input


def suited(name: str) -> str:
    """The encoders' defaults in words: "100 for direct, 6100 for paper"."""
    by_value: dict[float, list[str]] = {}
    for encoder, recipe in RECIPES.items():
        by_value.setdefault(getattr(recipe, name), []).append(encoder)
    return ", ".join(f"{value:g} for {' and '.join(encoders)}" for value, encoders in by_value.items())


def check_vision(encoder: str, quality: str, connected: bool) -> None:
    """Raises ValueError for an unknown encoder or quality, or one that needs CLIP vision where none is connected."""
    if ENCODERS[choose_recipe(encoder, quality=quality).encoder].needs_picture:
        host.vision.check_vision(connected)


def stopped_name(name: str) -> str:
    """The name under which a run that was stopped keeps what it learned; the plain name where that has no room."""
    return f"{name}_stopped" if len(f"{name}_stopped".encode()) <= saving.MAX_NAME_BYTES else name


class InSTLearnStyle(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="InST_LearnStyle",
            display_name="Learn InST Style",
            category=CATEGORY,
            description="Learns the style of one painting as a few pseudo-words for your checkpoint, and saves it as a "
                        "small file that also works as embedding:name.",
            search_aliases=["style transfer", "painting", "artist", "art style", "photo to painting",
                            "textual inversion", "train style", "learn embedding", "embedding training", "dreambooth",
                            "lora training", "inst"],
            inputs=[
                io.Model.Input("model", tooltip="The checkpoint to learn for, from Load Checkpoint. LoRAs are seen."),
                io.Clip.Input("clip", tooltip="Text encoder of the same checkpoint."),
                io.Vae.Input("vae", tooltip="VAE of the same checkpoint."),
                io.Image.Input("image", tooltip="One painting, any size. A batch is several paintings of one style."),
                io.ClipVision.Input("clip_vision", optional=True,
                                    tooltip="CLIP ViT-L/14 from Load CLIP Vision. Only quality 'like the paper' and "
                                            "the encoders attention, paper and released need it."),
                io.Combo.Input("encoder", options=[*RECIPES, AUTO], default=AUTO, advanced=True,
                               tooltip="auto: as quality says. The others are learned by their own recipe, whatever "
                                       "the quality. direct: free vectors, works on every model. attention: learned "
                                       "queries over CLIP's view of the painting. paper: the published module. "
                                       "released: the published code with its quirks, for comparison."),
                io.Int.Input("tokens", default=RECIPES["direct"].tokens, min=1, max=32, advanced=True,
                             tooltip="How many pseudo-words the style gets. More hold more detail; paper and released "
                                     "always have one."),
                io.Int.Input("steps", default=0, min=0, max=100000, advanced=True, extra_dict=ZERO_IS_AUTO,
                             tooltip=f"Optimiser steps at the most. auto (0): as quality says, or {suited('steps')}."),
                io.Float.Input("learning_rate", default=0.0, min=0.0, max=1.0, step=0.0001, round=False,
                               advanced=True, extra_dict=ZERO_IS_AUTO,
                               tooltip="How far the pseudo-words move in a step, meant for CLIP-L and adapted to other "
                                       f"text encoders. auto (0): as quality says, or {suited('rate')}."),
                io.Int.Input("batch_size", default=0, min=0, max=64, advanced=True, extra_dict=ZERO_IS_AUTO,
                             tooltip="Noise levels looked at in every step. More is smoother and slower. auto "
                                     f"(0): as quality says, or {suited('batch')}."),
                seed_input("Same inputs and seed give the same style. Kept fixed, so that a style is not learned "
                           "again on every run."),
                io.String.Input("prompt", default="*", optional=True,
                                tooltip="What the painting shows, with * for the style: 'a village at night in the "
                                        "style of *'. Words you write here do not have to be learned."),
                io.String.Input("name", default=saving.AUTO, optional=True,
                                tooltip="File name of the style, also in a folder: painters/monet. A number is added. "
                                        "auto: the name of the painting's file."),
                io.Int.Input("resolution", default=0, min=0, max=2048, step=64, optional=True, advanced=True,
                             extra_dict=ZERO_IS_AUTO,
                             tooltip="The painting is learned at about this many pixels squared. auto (0): what the "
                                     "model was made for, such as 512 for SD 1.x and 1024 for SDXL."),
                io.String.Input("start", default=START_WORDS, optional=True, advanced=True,
                                tooltip="Words that direct and attention start from, such as 'oil painting, impasto'."),
                io.Float.Input("max_seconds", default=0.0, min=0.0, max=86400.0, step=1.0, optional=True, advanced=True,
                               tooltip="Time limit for learning; what was learned by then is kept. 0 = none."),
                InstStyle.Input("continue_from", optional=True,
                                tooltip="A style to go on learning, made with the same encoder and tokens."),
                io.Combo.Input("layers", options=list(LAYERS), default=ALL_LAYERS, optional=True, advanced=True,
                               tooltip="all: the whole model sees the style. late: only the last blocks of a U-Net do, "
                                       "which set colour and texture: learns about twice as fast and takes less of the "
                                       "painting's content along. style block: only the block of SDXL that is known "
                                       "to set the style. embedding:name always speaks to the whole model."),
                io.Float.Input("strongest", default=1.0, min=0.05, max=1.0, step=0.05, optional=True, advanced=True,
                               tooltip="The highest strength at which you will use the style. Noise above it is not "
                                       "learned from; paper and released always learn from all."),
                io.Boolean.Input("learn_again", default=False, optional=True, advanced=True,
                                 tooltip="Off: a style that was learned before from the same painting, models and "
                                         "settings is loaded from its file, whatever its name. On: learn it anew."),
                io.Combo.Input("quality", options=list(QUALITIES), default=GOOD, optional=True,
                               tooltip="quick: a first look, about a fifth of the work of good. good: the best this "
                                       "pack knows. like the paper: the published network and its 6100 steps, which "
                                       "take hours without a GPU and need clip_vision."),
                InstStyle.Input("style", optional=True,
                                tooltip="A style from Load InST Style: it is handed on, and nothing is learned. For "
                                        "switching between learning and reusing."),
                io.Int.Input("adapter_rank", default=0, min=0, max=64, optional=True, advanced=True,
                             tooltip="Above 0 a small adapter (a LoRA of this rank, on the attention of the model's "
                                     "late half) is learned with the pseudo-words and saved in the same file; Apply "
                                     "InST Style Adapter puts it on a model. For models on which pseudo-words alone "
                                     "do little; 8 is a good start. 0 = pseudo-words only."),
                io.Mask.Input("style_mask", optional=True,
                              tooltip="White is left out of what is learned: a frame, a signature, a figure. The mask "
                                      "of Load Image leaves out what is transparent, or what you painted in the mask "
                                      "editor. One for all paintings, or one for each."),
                io.String.Input("content", default="", optional=True, advanced=True,
                                tooltip="What the painting shows, such as 'sunflowers, vase': the style keeps out of "
                                        "the direction of these words. embedding:name of something learned works too. "
                                        "Empty: nothing is kept out."),
                io.Int.Input("stages", default=1, min=1, max=MOST, optional=True, advanced=True,
                             tooltip="Above 1, noise is divided into so many stages, and the style gets words of "
                                     "its own for each, which Apply InST Style follows. Takes so many times as long. "
                                     "embedding:name reads the middle stage."),
            ],
            outputs=[
                InstStyle.Output(display_name="style", tooltip="The learned style, for Apply InST Style."),
                LossMap.Output(display_name="loss", tooltip="Held-out loss over the run, for Plot Loss Graph."),
            ],
            hidden=[io.Hidden.unique_id, io.Hidden.prompt],
            is_output_node=True,
        )

    @classmethod
    def validate_inputs(cls, name=saving.AUTO, encoder=AUTO, quality=GOOD, clip_vision="", style="") -> bool | str:
        if (answer := problem_of(saving.check_name, name)) is not True or style is None:  # None: it is connected
            return answer
        return problem_of(check_vision, encoder, quality, clip_vision is None)

    @classmethod
    @held_to_widgets
    def execute(cls, model, clip, vae, image, encoder, tokens, steps, learning_rate, batch_size, seed,
                clip_vision=None, prompt="*", name=saving.AUTO, resolution=0, start=START_WORDS, max_seconds=0.0,
                continue_from=None, layers=ALL_LAYERS, strongest=1.0, learn_again=False,
                quality=GOOD, style=None, adapter_rank=0, style_mask=None,
                content="", stages=1) -> io.NodeOutput:
        if style is not None:
            said = "The connected style is used; nothing is learned."
            cls.say(said)
            return io.NodeOutput(style, {"loss": style.losses}, ui=ui.PreviewText(said))
        host.parts.check_learnable(model, clip, vae)
        host.patches.check_copyable(model, "model")
        host.patches.check_copyable(clip.patcher, "clip")
        host.training.check_layers(model, layers)
        name = saving.choose_name(name, cls.painting_file())
        prompt, content = host.text.with_placeholder(prompt), content.strip()
        pictures = preprocess.paintings(image, style_mask)
        recipe = choose_recipe(encoder, tokens, steps, batch_size, learning_rate, strongest, quality, start=start,
                               seed=seed, seconds=max_seconds)
        resolution = host.learning.side_to_learn_at(model, resolution)
        modules = host.learning.make_encoders(clip, recipe, continue_from, layers, content, stages, adapter_rank)
        module = host.adapter.with_adapter(modules[0], model, adapter_rank, recipe, layers, continue_from)
        vision = clip_vision if ENCODERS[recipe.encoder].needs_picture else None

        texts = [prompt, start, *([content] if content else [])]
        key = library.learning_key(
            pictures, models=host.identity.identify(model, clip, vae, vision, texts=texts),
            recipe=[asdict(recipe), prompt, resolution, layers],
            continued=continue_from and [continue_from.encoder, continue_from.vectors, continue_from.encoder_weights],
            **({"adapter": [adapter_rank, continue_from and continue_from.adapter]} if adapter_rank else {}),
            **({"content": content} if content else {}),
            **({"stages": [stages, continue_from and continue_from.stages]} if stages > 1 else {}))
        if not learn_again and (known := library.find(key, host.files.library_folders())):
            cls.say(known.text)
            return io.NodeOutput(known.style, {"loss": known.style.losses}, ui=ui.PreviewText(known.text))

        view = host.progress.LearningView(model, recipe, cls.say, stages)
        painting = host.learning.look_at(pictures, recipe, model, vae, vision, resolution, view.tell)

        def save(learned: Learned) -> tuple[Style, str]:
            stopped, family = learned.ended == STOPPED, host.families.family_of(model)
            metadata = style_metadata(family, host.families.source_of(model), recipe, learned, prompt,
                                      preprocess.as_rgb(image))
            metadata |= {"inst.start": start, "inst.ended": learned.ended}
            metadata |= ({} if stopped else {library.KEY: key}) | ({"inst.content": content} if content else {})
            extra = {} if painting.features is None else {"image_embed": painting.features.image_embed}
            style = Style(learned.vectors, recipe.encoder, family, learned.weights, extra, metadata, layers,
                          learned.adapter, learned.stages)
            saved = saving.save_new(style, stopped_name(name) if stopped else name, host.files.style_folders(),
                                    host.files.metadata_enabled(), host.files.searched_folders())
            cls.say(said := f"{saved}\n{learned.verdict}")
            return style, said

        learned = host.learning.learn(model, clip, module, painting, recipe, prompt, layers, view.report, view.tell,
                                      save, modules[1:])
        style, said = save(learned)
        return io.NodeOutput(style, {"loss": [check.loss for check in learned.checks]}, ui=ui.PreviewText(said))

    @classmethod
    def painting_file(cls) -> str | None:
        """Where the painting comes from, as far as the graph tells."""
        return saving.file_behind(getattr(cls.hidden, "prompt", None), getattr(cls.hidden, "unique_id", None))

    @classmethod
    def say(cls, text: str) -> None:
        """Shows a text in the node. What it says last stays there."""
        host.progress.show_text(text, getattr(cls.hidden, "unique_id", None))
