"""Style transfer before and after InST, for comparison: one file per paper.

``load_style_model`` makes a feed-forward model from the files of its release, which are recognised by keys and shapes.
"""
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import PurePath

from torch import Tensor

from . import adaattn, cast, stytr2
from .common import NORMALISED_VGG, Limits, Part, Recipe, StyleTransferModel

StateDict = Mapping[str, Tensor]

RECIPES: tuple[Recipe, ...] = (*stytr2.RECIPES, *adaattn.RECIPES, *cast.RECIPES)
ALIKE = 0.5  # a file with this share of a part's tensors is called a damaged copy of it

METHODS = tuple(dict.fromkeys(recipe.name for recipe in RECIPES))

__all__ = ["METHODS", "RECIPES", "Identified", "Limits", "StyleTransferModel", "files_of", "identify",
           "load_style_model", "official_names"]


@dataclass(frozen=True)
class Identified:
    """A complete model: which, and the name of the file of each of its parts, in order."""

    recipe: Recipe
    files: tuple[str, ...]


def _plain(state_dict: StateDict) -> StateDict:
    """Without the prefix that saving a DataParallel model leaves."""
    return {k.removeprefix("module."): v for k, v in state_dict.items()}


def _all_parts() -> list[Part]:
    return [part for recipe in RECIPES for part in (*recipe.parts, *recipe.unused)]


def _title(name: str, state_dict: StateDict) -> str:
    """What a file is.

    Raises:
        ValueError: no part, or a part with tensors missing.
    """
    parts = _all_parts()
    for part in parts:
        if part.fits(name, state_dict):
            return part.title
    present = {part: 1 - len(part.lacking(state_dict)) / len(part.shapes()) for part in parts}
    closest = max(present, key=present.get)
    if present[closest] >= ALIKE:
        lacking = closest.lacking(state_dict)
        raise ValueError(f"{name} looks like {closest.file} ({closest.title}), but {len(lacking)} tensors are missing "
                         f"or have another shape: {', '.join(lacking[:4])}. The file is damaged or of another version: "
                         "download it again.")
    known = ", ".join(dict.fromkeys(part.file for part in parts))
    raise ValueError(f"{name} is not a file of a known style transfer model (it starts with "
                     f"{', '.join(list(state_dict)[:3]) or 'nothing'}). Choose one of these: {known}.")


@dataclass(frozen=True)
class _Attempt:
    """How well a set of files fits a recipe."""

    recipe: Recipe
    roles: Mapping[Part, list[str]]
    foreign: list[str]

    @classmethod
    def of(cls, recipe: Recipe, files: Mapping[str, StateDict]) -> "_Attempt":
        roles = {part: [name for name, weights in files.items() if part.fits(name, weights)] for part in recipe.parts}
        known = {name for names in roles.values() for name in names}
        foreign = [name for name, weights in files.items()
                   if name not in known and not any(part.fits(name, weights) for part in recipe.unused)]
        return cls(recipe, roles, foreign)

    @property
    def missing(self) -> list[Part]:
        return [part for part, names in self.roles.items() if not names]

    @property
    def closeness(self) -> tuple[int, int]:
        return sum(map(len, self.roles.values())) - len(self.foreign), -len(self.missing)

    def problems(self, titles: Mapping[str, str]) -> list[str]:
        """What is wrong, for people; ``titles`` says what each file is."""
        found = []
        if self.missing:
            found.append("missing: " + ", ".join(f"{part.file} ({part.title})" for part in self.missing))
        if self.foreign:
            found.append("not part of it: " + ", ".join(f"{name} ({titles[name]})" for name in self.foreign))
        return found + [f"{' and '.join(names)} are the same part; choose one"
                        for names in self.roles.values() if len(names) > 1]


def identify(state_dicts: Mapping[str, StateDict]) -> Identified:
    """Which model a set of files is.

    Args:
        state_dicts: {file name: state dict}; order and names do not matter, except that CAST's two decoders can only
            be told apart by name.

    Raises:
        ValueError: a file that is unknown or damaged, files that do not belong together, files that are missing.
    """
    if not state_dicts:
        raise ValueError("No file was given. Choose the files of one model.")
    files = {name: _plain(weights) for name, weights in state_dicts.items()}
    titles = {name: _title(name, weights) for name, weights in files.items()}
    best = max((_Attempt.of(recipe, files) for recipe in RECIPES), key=lambda attempt: attempt.closeness)
    if problems := best.problems(titles):
        raise ValueError(f"The files are closest to {best.recipe.name}. {'; '.join(problems)}.")
    return Identified(best.recipe, tuple(name for names in best.roles.values() for name in names))


def official_names(method: str, names: Iterable[str]) -> list[str]:
    """Which of these files, in any folder and format, are called as the parts of a method of ``METHODS`` are.

    Raises:
        ValueError: a part that no file is called like.
    """
    names, found = list(names), {}
    for part in _parts_of(method):
        stem = PurePath(part.file).stem.casefold()
        found[part.file] = [name for name in names if PurePath(name).stem.casefold() == stem]
    needed = min((recipe.parts for recipe in RECIPES if recipe.name == method), key=len)
    if missing := [part for part in needed if not found[part.file]]:
        raise ValueError(f"{method} is chosen, and models/style_transfer has no "
                         + " and no ".join(f"{part.file} ({part.title})" for part in missing)
                         + ". Put its released files there under their own names, or choose files of other names one "
                           "by one.")
    return list(dict.fromkeys(name for same in found.values() for name in same))


def files_of(method: str, files: Mapping[str, StateDict]) -> dict[str, StateDict]:
    """The files of one model of a method, out of those that are called like its parts; of one folder rather than of
    several, since parts of AdaAttN for pictures and for video have the same names and shapes.

    Raises:
        ValueError: a part that none of the files holds.
    """
    plain = {name: _plain(weights) for name, weights in files.items()}
    folders = list(dict.fromkeys(PurePath(name).parent for name in files))

    def roles_in(recipe: Recipe, folder: PurePath) -> dict[Part, str | None]:
        """The file of each part, one in ``folder`` if there is one."""
        ordered = sorted(plain, key=lambda name: PurePath(name).parent != folder)
        return {part: next((name for name in ordered if part.fits(name, plain[name])), None) for part in recipe.parts}

    def together(roles: dict[Part, str | None]) -> tuple[bool, int]:
        """Whether it is whole, and how many of its own parts lie in one folder; the VGG belongs to several models."""
        parents = [PurePath(name).parent for part, name in roles.items() if name and part is not NORMALISED_VGG]
        return None not in roles.values(), max(map(parents.count, parents), default=0)

    best = max((roles_in(recipe, folder) for recipe in RECIPES if recipe.name == method for folder in folders),
               key=together)
    if lacking := [part for part, name in best.items() if name is None]:
        raise ValueError(f"{method} is chosen, and none of {', '.join(files)} holds its "
                         f"{' or its '.join(part.title for part in lacking)}. They are of another model or damaged: "
                         f"expected the released {', '.join(part.file for part in lacking)}; download it again.")
    return {name: files[name] for name in best.values() if name}


def _parts_of(method: str) -> list[Part]:
    return list(dict.fromkeys(part for recipe in RECIPES if recipe.name == method for part in recipe.parts))


def load_style_model(state_dicts: Mapping[str, StateDict]) -> StyleTransferModel:
    """The model that a set of released files forms, on the files' device, frozen float32.

    Raises:
        ValueError: as ``identify``.
    """
    identified = identify(state_dicts)
    weights = [_plain(state_dicts[name]) for name in identified.files]
    return identified.recipe.build(*(part.load(w) for part, w in zip(identified.recipe.parts, weights, strict=True)))
