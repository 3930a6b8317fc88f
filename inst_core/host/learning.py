"""Learning on the host's models: the one way in for nodes and tools."""
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from .. import preprocess
from ..content import parts_of
from ..encoders import ENCODERS, StyleEncoder, build_encoder, resume
from ..learning import Learned, Painting, Step, learn_style
from ..recipes import Recipe
from ..staged_learning import learn_stages
from ..stages import MOST
from ..style import ALL_LAYERS, Style
from .families import MIN_SIDE
from .size import native_side
from .text import content_bases, word_vectors
from .training import training_mode, training_session
from .vision import encode_latent, picture_features


def make_encoder(clip, recipe: Recipe, continue_from: Style | None = None, layers: str = ALL_LAYERS,
                 content: str = "") -> StyleEncoder:
    """The style encoder that learning starts from.

    Args:
        continue_from: a style to go on from; None = from the recipe's start words.
        layers: that see the style, as for ``learn``.
        content: words for what the painting shows; the encoder's pseudo-words keep out of their span (see
            ``text.content_bases``).

    Raises:
        ValueError: the encoder does not fit this CLIP, or the style the encoder or the layers; content without words.
    """
    if continue_from is not None and continue_from.layers != layers:
        raise ValueError(f"continue_from is a style for layers {continue_from.layers!r}, and layers is {layers!r}. Set "
                         f"layers to {continue_from.layers!r}, or learn a new style.")
    with training_mode():
        words = word_vectors(clip, recipe.start)
        generator = torch.Generator().manual_seed(recipe.seed)
        encoder = build_encoder(recipe.encoder, words, recipe.tokens, generator)
        if continue_from is not None:
            resume(encoder, continue_from)
        if content:
            bases = content_bases(clip, content, words)
            encoder.register_forward_hook(lambda module, inputs, vectors: parts_of(vectors, words, bases)[0])
    return encoder


def make_encoders(clip, recipe: Recipe, continue_from: Style | None, layers: str, content: str, stages: int,
                  adapter_rank: int = 0) -> list[StyleEncoder]:
    """An encoder for every stage of a style, from much noise to little; see ``make_encoder``.

    Raises:
        ValueError: also too many stages, an adapter beside several, or a style of another number of them to go on
            from.
    """
    if not 1 <= stages <= MOST:
        raise ValueError(f"stages is {stages}; expected 1 to {MOST}. Set stages to 1 for a style that is the same at "
                         "all noise levels.")
    if stages > 1 and adapter_rank:
        raise ValueError(f"stages is {stages} and adapter_rank is {adapter_rank}; an adapter acts in all stages alike. "
                         "Set stages to 1, or adapter_rank to 0.")
    begun = continue_from.stages if continue_from is not None else ()
    if begun and (len(begun) != stages or recipe.encoder != "direct"):
        raise ValueError(f"continue_from is a style of {len(begun)} stages by encoder {continue_from.encoder}; stages "
                         f"is {stages} and the encoder {recipe.encoder}. Set stages to {len(begun)} and encoder to "
                         "'direct', or learn a new style.")
    starts = [replace(continue_from, vectors=stage.vectors, encoder_weights={}) for stage in begun] or \
        [continue_from] * stages
    return [make_encoder(clip, recipe, start, layers, content) for start in starts]


def side_to_learn_at(model, resolution: int) -> int:
    """The ``resolution`` of ``look_at``: as chosen, or that of the model where it is 0.

    Raises:
        ValueError: too small a number.
    """
    if 0 < resolution < MIN_SIDE:
        raise ValueError(f"resolution is {resolution}; it must be 0, which takes what the model was made for, or at "
                         f"least {MIN_SIDE} pixels.")
    return resolution or native_side(model)


def look_at(pictures: Tensor, recipe: Recipe, model, vae, clip_vision, resolution: int,
            tell: Callable[[str], object] = lambda text: None) -> Painting:
    """The painting as latents and CLIP features, each encoded once.

    Args:
        pictures: (P, H, W, 3) in [0, 1], or (P, H, W, 4) where parts are left out (see ``preprocess.paintings``).
        resolution: latents are made of about this many pixels squared; ``released`` squashes the painting to a square
            of at most 512.
        tell: called with a line about what goes on; raises to stop.

    Raises:
        ValueError: a CLIP vision model that the encoder needs is missing or another; a VAE of another model; a mask
            that leaves no place whole.
    """
    features, released = None, recipe.encoder == "released"
    if ENCODERS[recipe.encoder].needs_picture:
        tell("CLIP vision looks at the painting")
        features = picture_features(clip_vision, pictures[..., :3], released)
    side = min(resolution, preprocess.RELEASED_SIZE)
    whole = preprocess.resize(pictures, side, side) if released else preprocess.fit_area(pictures, resolution)
    tell("the VAE encodes the painting")
    latents = encode_latent(vae, model, whole[..., :3]).cpu()
    if recipe.views:
        tell(f"the VAE encodes {recipe.views} crops of the painting")
        generator = torch.Generator().manual_seed(recipe.seed)
        crops = preprocess.random_crops(pictures, resolution, recipe.views, generator)
        views = encode_latent(vae, model, crops[..., :3]).cpu()
    else:
        crops = torch.cat([whole, whole.flip(2)])
        views = torch.cat([latents, encode_latent(vae, model, whole.flip(2)[..., :3]).cpu()])
    if pictures.shape[-1] == 3:
        return Painting(views, latents, features)
    return _weighted(Painting(views, latents, features), crops[..., 3:].cpu(), whole[..., 3:].cpu())


def _weighted(painting: Painting, of_views: Tensor, of_whole: Tensor) -> Painting:
    """The painting with weights, without views of which nothing counts.

    Args:
        of_views, of_whole: (V, H, W, 1) and (P, H', W', 1), 1 where a pixel counts.
    """
    weights = preprocess.latent_weights(of_views, painting.views)
    whole_weights = preprocess.latent_weights(of_whole, painting.whole)
    seen = weights.flatten(1).any(1)
    if not seen.any() or not whole_weights.flatten(1).any(1).all():
        raise ValueError("style_mask leaves no place of the painting whole: what it leaves is finer than the model "
                         "sees. Use a mask of fewer, larger shapes, or a higher resolution.")
    return replace(painting, views=painting.views[seen], view_weights=weights[seen], whole_weights=whole_weights)


def learn(model, clip, encoder: StyleEncoder, painting: Painting, recipe: Recipe, prompt: str = "*",
          layers: str = ALL_LAYERS, report: Callable[[Step], object] = lambda step: None,
          tell: Callable[[str], object] = lambda text: None,
          rescue: Callable[[Learned], object] = lambda learned: None,
          further: Sequence[StyleEncoder] = ()) -> Learned:
    """Learns a style on copies of MODEL and CLIP, which are freed afterwards. See ``learning.learn_style``.

    Args:
        prompt: what the painting shows, with ``*`` for the style.
        encoder: with an adapter, if one is learned beside it (see ``adapter.with_adapter``).
        layers: "all", or "late" (see ``style_layers``).
        further: encoders of further stages, where the style has several (see ``stages``).
    """
    tell("loading the model and the text encoder a second time, to learn on the copies")
    with training_mode(), training_session(model, clip, prompt, recipe.tokens, layers) as session, \
            encoder.attached(session):
        if not further:
            return learn_style(session, encoder, painting, recipe, report, tell, rescue)
        learn_one = partial(_learn_stage, session, painting)
        return learn_stages(learn_one, [encoder, *further], recipe, report, tell, rescue)


def _learn_stage(session, painting: Painting, encoder: StyleEncoder, recipe: Recipe, **more) -> Learned:
    return learn_style(session, encoder, painting, recipe, **more)
