"""Prompts with pseudo-words: vectors in the place of tokens.

The prompt goes through the host's own tokenizer with token ids that no vocabulary has in the places of the style.
Afterwards vectors take those places, so whatever a family writes around its prompts stays as it is, to the last
newline.  Nothing is written to disk.
"""
import copy
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from comfy.sd1_clip import SDTokenizer
from torch import Tensor, nn

from ..content import PARTS, parts_of, span
from ..recipes import START_WORDS
from ..stages import Stage
from ..strength import ALWAYS, Course, split_at
from ..style import ALL_LAYERS, STYLE_BLOCK, Style
from .families import style_blocks
from .style_layers import restricted

PLACEHOLDER = "*"
MARK = "\ue257"  # stands for the style on its way through the tokenizer; a private character, no language uses it
# Token ids from here on name a text encoder and one of its pseudo-words; no vocabulary is that big.
FIRST_PLACE, PLACES = 10**9, 10**4
ROWS = 4096  # of an embedding table that are looked at together


class TextPart(NamedTuple):
    """One text encoder of a CLIP.

    Attributes:
        attribute: of the host's tokenizer that holds ``tokenizer``.
        encoder: the host's module.
    """

    attribute: str
    tokenizer: SDTokenizer
    encoder: nn.Module

    @property
    def table(self) -> Tensor:
        """Its token embeddings, (vocabulary, width)."""
        return self.encoder.transformer.get_input_embeddings().weight


def _tokenizers(clip) -> dict[str, SDTokenizer]:
    """{attribute of the host's tokenizer: tokenizer of one text encoder}"""
    return {k: t for k, t in vars(clip.tokenizer).items() if isinstance(t, SDTokenizer)}


def text_parts(clip) -> dict[str, TextPart]:
    """The text encoders that read the prompt, by the keys under which style files hold their vectors.

    A CLIP may come without some of those its tokenizer knows; they are left out.

    Raises:
        ValueError: there are none.
    """
    model, parts = clip.cond_stage_model, {}
    for attribute, tokenizer in _tokenizers(clip).items():
        # The host calls some of them clip_... in the tokenizer only.
        encoder = getattr(model, attribute, None) or getattr(model, attribute.removeprefix("clip_"), None)
        if encoder is not None:
            parts[tokenizer.embedding_key] = TextPart(attribute, tokenizer, encoder)
    if not parts:
        raise ValueError(f"The connected CLIP ({type(model).__name__}) has no text encoder that reads tokens in a way "
                         "known here, so a style cannot be put into its prompts. Load the text encoder of one of "
                         "the model families in the README.")
    return parts


def text_widths(clip) -> dict[str, int]:
    """{``clip_l``: 768, ...}: the text encoders a style for this CLIP needs, and their widths."""
    return {key: part.table.shape[1] for key, part in text_parts(clip).items()}


def with_placeholder(text: str) -> str:
    """The prompt with its ``*``; a prompt without one gets it at the end."""
    if MARK in _marked(text):
        return text
    return f"{text.strip()} in the style of {PLACEHOLDER}" if text.strip() else PLACEHOLDER


def _marked(text: str) -> str:
    r"""The prompt with a mark for every ``*``, and a star for every ``\*``."""
    return re.sub(r"(\\?)\*", lambda star: PLACEHOLDER if star[1] else MARK, text.replace(MARK, ""))


class _Halves:
    """Stands for the tokenizer that makes ids of words: what is left and right of a mark goes through it apart."""

    def __init__(self, part: SDTokenizer, places: Sequence[int]):
        self._words, self._places = part.tokenizer, places
        self._start, self._end = part.tokens_start, -1 if part.tokenizer_adds_end_token else None
        same = self._words("a a")["input_ids"][self._start:self._end]
        self._spaces_in_words = len(same) == 2 and same[0] == same[1]  # also before the first word

    def __getattr__(self, name: str):
        return getattr(self._words, name)

    def __call__(self, text: str, **options) -> dict[str, list[int]]:
        if self._spaces_in_words:
            text = re.sub(f" ?({MARK}) ?", r"\1", text)
        first, *others = (list(self._words(half, **options)["input_ids"]) for half in text.split(MARK))
        if not others:
            return {"input_ids": first}
        ids = first[:self._end]
        for half in others:
            ids += [*self._places, *half[self._start:self._end]]
        return {"input_ids": ids if self._end is None else ids + others[-1][self._end:]}


class _Splicing:
    """Stands for one of the host's tokenizers while a prompt with marks goes through it.

    Args:
        prompt: as the user wrote it, with marks.
        places: token ids for every mark.
    """

    def __init__(self, part: SDTokenizer, prompt: str, places: Sequence[int]):
        self._part, self._prompt, self._places = part, prompt, places

    def __getattr__(self, name: str):
        return getattr(self._part, name)

    def tokenize_with_weights(self, text: str, *arguments, **options):
        part = copy.copy(self._part)
        # The host's embedding: reader keeps words of several tokens in one window, but only spaces between words; so
        # it is used where the prompt is all there is, and not where a family wrote more around it.
        plain = text == self._prompt and not options.get("disable_weights", part.disable_weights)
        if plain and (part.embedding_directory is not None or part.pad_to_max_length):
            part._try_get_embedding = self._embedding_reader()
            part.embedding_directory = part.embedding_directory or []
            text = text.replace(MARK, f" {part.embedding_identifier}{MARK} ")
        else:
            part.tokenizer = _Halves(part, self._places)
        return part.tokenize_with_weights(text, *arguments, **options)

    def _embedding_reader(self):
        """The host's, which knows the style by the name MARK."""
        nowhere = copy.copy(self._part)
        nowhere.embedding_directory = []
        rows = torch.tensor(self._places, dtype=torch.long).unsqueeze(1)

        def read(text: str) -> tuple:
            if not text.strip():
                raise ValueError("The prompt has 'embedding:' without a name. Write the name of a file after it, or * "
                                 "alone for the connected style.")
            if text.split()[0] != MARK:
                return self._part._try_get_embedding(text)
            return rows, *nowhere._try_get_embedding(text)[1:]

        return read


@dataclass(frozen=True)
class Prompt:
    """A tokenised prompt with places for pseudo-words.

    Attributes:
        tokens: the host's; ids from ``FIRST_PLACE`` on are places.
        keys: of the text encoders, in the order of their places.
    """

    tokens: dict[str, list]
    keys: tuple[str, ...]

    def with_vectors(self, vectors: Mapping[str, Tensor]) -> dict[str, list]:
        """The host's tokens with ``vectors`` {key: (n, width)} in their places."""
        def filled(token):
            if not isinstance(token, int) or token < FIRST_PLACE:
                return token
            encoder, row = divmod(token - FIRST_PLACE, PLACES)
            return vectors[self.keys[encoder]][row]

        return {name: [[(filled(token), *weight) for token, *weight in window] for window in windows]
                for name, windows in self.tokens.items()}


def tokenize(clip, text: str, count: int) -> Prompt:
    r"""``text`` with ``count`` places in the place of every ``*``; with 0, the prompt without the style.

    At CLIP's and T5's tokenizers, which get the prompt as it is written, the places come from the host's ``embedding:``
    reader, so a style here and the same style as ``embedding:name`` give the same tokens by construction.  ``\*`` is a
    star in the text.
    """
    parts, text = text_parts(clip), _marked(text)
    keys = {part.attribute: i for i, part in enumerate(parts.values())}
    reader = clip.clone()
    reader.tokenizer = copy.copy(clip.tokenizer)
    for attribute, part in _tokenizers(clip).items():
        first = FIRST_PLACE + keys.get(attribute, 0) * PLACES
        places = range(first, first + count) if attribute in keys else ()
        setattr(reader.tokenizer, attribute, _Splicing(part, text, places))

    def number(token):
        """Places that went through the embedding: reader are tensors."""
        return int(token) if torch.is_tensor(token) and not token.is_floating_point() else token

    tokens = {name: [[(number(token), *weight) for token, *weight in window] for window in windows]
              for name, windows in reader.tokenize(text).items()}
    return Prompt(tokens, tuple(parts))


def style_conditioning(clip, text: str, vectors: Mapping[str, Tensor], strength: float = 1.0, layers: str = ALL_LAYERS,
                       words: str = "painting", course: Course = ALWAYS, stages: Sequence[Stage] = (),
                       family: str = "", origin: Mapping[str, Tensor] | None = None) -> list:
    """CONDITIONING of ``text`` with the style in the place of ``*``.

    Args:
        strength: of the pseudo-words: 1 = as learned, where the host's reader is whole bit-equal to
            ``embedding:name``; 0 = ``words``, as many as there are pseudo-words; others lie on the line through both.
        layers: "late" lets only the late blocks of a U-Net see the style, "style block" only those that are known to
            set it (see ``style_layers``).
        words: that learning started from.
        course: of the strength over the sampling.
        stages: of the style, where it has several; they take the place of ``vectors``.
        family: that the style was learned on, for "style block".
        origin: what strength 0 puts in the place of the style, {key: (1, width)}; None = ``words``.

    Raises:
        ValueError: a course that ends before it starts; "style block" for a family without.
    """
    text, stages = with_placeholder(text), stages or [Stage(0.0, vectors)]
    pieces = split_at(course.pieces(strength), [stage.start for stage in stages])
    blocks = style_blocks(family) if layers == STYLE_BLOCK else None
    prompt = tokenize(clip, text, len(next(iter(vectors.values()))))
    start = origin or (word_vectors(clip, words) if any(height != 1 for *_, height, _ in pieces) else {})
    conditioning = []
    for begin, end, height, stage in pieces:
        when = {"start_percent": begin, "end_percent": end} if len(pieces) > 1 else {}
        tokens = prompt.with_vectors(_at_strength(stages[stage].vectors, start, height))
        styled = clip.encode_from_tokens_scheduled(tokens, add_dict=when)
        if layers != ALL_LAYERS:
            without = tokenize(clip, text, 0).with_vectors({})
            styled = restricted(styled, clip.encode_from_tokens_scheduled(without, add_dict=when), blocks)
        conditioning += styled
    return conditioning


def _at_strength(learned: Mapping[str, Tensor], start: Mapping[str, Tensor], strength: float) -> Mapping[str, Tensor]:
    """Vectors on the line from the starting words (0) through the learned ones (1) and beyond."""
    return learned if strength == 1 else {k: torch.lerp(start[k].expand_as(v), v, strength) for k, v in learned.items()}


def token_embedding(clip, key: str):
    """The embedding table of one text encoder: a module with ``weight`` (vocabulary, width)."""
    return text_parts(clip)[key].encoder.transformer.get_input_embeddings()


def word_vectors(clip, words: str) -> dict[str, Tensor]:
    """A vector to start from, per text encoder: {key: (1, width) float32 CPU}.

    The mean token embedding of some words (of the whole vocabulary where there are none), at the mean length of the
    vocabulary: other lengths are no words to the text encoder (Kim et al. 2026, directional textual inversion).
    """
    start = {}
    for key, part in text_parts(clip).items():
        tokenizer, table = part.tokenizer, part.table
        special = {tokenizer.start_token, tokenizer.end_token, tokenizer.pad_token}
        ids = [t for window in tokenizer.tokenize_with_weights(words) for t, *_ in window if t not in special]
        mean = torch.cat([table[i:i + 1].float() for i in ids]).mean(0) if ids else _vocabulary_mean(table)
        start[key] = (mean * (_mean_length(table) / mean.norm())).unsqueeze(0).cpu().clone()
    return start


def part_of_style(clip, style: Style, content: str,
                  part: str = PARTS[0]) -> tuple[Style, Mapping[str, Tensor] | None]:
    """The style with only a part of its pseudo-words, in all stages, and the ``origin`` for ``style_conditioning``.

    "style" is the style without what ``content`` names; it comes from the word that learning started from.  "content"
    is what ``content`` names and nothing else; it comes from padding, so a style without any of it is an empty prompt.

    Args:
        content, part: see ``content_bases``, and one of ``content.PARTS``.

    Raises:
        ValueError: a text encoder finds no words in ``content``, or its part is wanted and there is none.
    """
    if not content.strip():
        if part != PARTS[0]:
            raise ValueError(f"part is {part!r} and content is empty; expected words for what the painting shows, such "
                             "as 'sunflowers, vase, table'. Write them into content, or set part to 'style'.")
        return style, None
    start = word_vectors(clip, style.metadata.get("inst.start", START_WORDS))
    bases, nothing = content_bases(clip, content, start), padding(clip)

    def split(vectors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        without, inside = parts_of(vectors, start, bases)
        return without if part == PARTS[0] else {key: nothing[key] + vector for key, vector in inside.items()}

    stages = tuple(stage._replace(vectors=split(stage.vectors)) for stage in style.stages)
    return replace(style, vectors=split(style.vectors), stages=stages), start if part == PARTS[0] else nothing


def padding(clip) -> dict[str, Tensor]:
    """The vector of the token that fills up prompts, {text encoder key: (1, width) float32 CPU}."""
    return {key: part.table[part.tokenizer.pad_token][None].float().cpu().clone()
            for key, part in text_parts(clip).items()}


def content_bases(clip, content: str, start: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Where content words lie, {text encoder key: (r, width) orthonormal} (see ``content.span``).

    A word points from the mean of the vocabulary to its vector; a learned word (``embedding:name``) from the word that
    learning started from to its vectors.

    Args:
        content: words for what the painting shows, by commas or not; with ``embedding:name`` where the host reads it.
        start: the word that the style's learning started from, {key: (1, width)}.

    Raises:
        ValueError: a text encoder finds no words in it.
    """
    bases = {}
    for key, part in text_parts(clip).items():
        tokenizer, table = part.tokenizer, part.table
        special = {tokenizer.start_token, tokenizer.end_token, tokenizer.pad_token}
        phrases = [phrase for phrase in re.split(r"[,;\n]", content) if phrase.strip()]
        tokens = [t for phrase in phrases for window in tokenizer.tokenize_with_weights(phrase) for t, *_ in window]
        ids = [t for t in tokens if not torch.is_tensor(t) and t not in special]
        learned = [t.float().cpu() for t in tokens if torch.is_tensor(t)]
        if not ids and not learned:
            raise ValueError(f"content is {content!r}, in which the text encoder {key} finds no words; expected words "
                             "for what the painting shows, such as 'sunflowers, vase, table'. Leave it empty for none.")
        directions = [t - start[key][0].cpu() for t in learned]
        if ids:
            mean = _vocabulary_mean(table)
            directions += [(table[i].float() - mean).cpu() for i in ids]
        bases[key] = span(torch.stack(directions))
    return bases


def _vocabulary_mean(table: Tensor) -> Tensor:
    """(width,) mean of a (vocabulary, width) table, a few rows at a time: tables have up to gigabytes."""
    return sum(rows.float().sum(0) for rows in table.split(ROWS)) / len(table)


def _mean_length(table: Tensor) -> Tensor:
    return sum(rows.float().norm(dim=-1).sum() for rows in table.split(ROWS)) / len(table)
