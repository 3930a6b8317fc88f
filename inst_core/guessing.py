"""A style at a glance: pseudo-words guessed from what a frozen network sees in a picture, without learning.

The amortised form of textual inversion (E4T, Gal et al. 2023, section 4: the word of a class plus a small learned
offset), with features that say how a picture is made and little of what it shows: means and deviations of a network's
layers over all places (Huang & Belongie 2017; Li et al. 2017).  ``tools/train_encoder`` trains it.
"""
import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from einops import rearrange
from torch import Tensor, nn

from . import preprocess
from .encoders import PictureFeatures, Vectors
from .metrics.alexnet import CHANNELS, AlexNet
from .style import FORMAT_VERSION as STYLE_FORMAT
from .style import Style, thumbnail
from .textual_inversion import in_words
from .whole import write_whole

ALEXNET, CLIP_VISION = "alexnet", "clip_vit_l14"
FEATURES = {ALEXNET: 2 * sum(CHANNELS), CLIP_VISION: 2 * 1024 + 768}  # {kind: how many numbers}
FORMAT, ABOUT = "1", "inst.guesser"
GUESSED_BY, CONTEXT = "inst.guessed_by", "inst.context"
ADVICE = "such as the pack's own inst-demo-guesser.safetensors."


@dataclass(frozen=True)
class About:
    """What a file of an encoder says of itself.

    Attributes:
        features: one of ``FEATURES``.
        widths: {text encoder key: width}.
        tokens, hidden, rank: pseudo-words, and the widths of the network's two inner layers.
        side: AlexNet looks at pictures of about this many pixels squared.
        start: words that the offsets are added to.
        family, base_model: the model family and the checkpoint it guesses for.
        trained_on: the pictures and how often they were seen, for people.
    """

    features: str
    widths: Mapping[str, int]
    tokens: int = 4
    hidden: int = 256
    rank: int = 64
    side: int = 512
    start: str = "painting"
    family: str = ""
    base_model: str = ""
    trained_on: str = ""

    def describe(self) -> str:
        """One line: ``4 tokens for clip_l (768), SD15, from alexnet features, trained on ...``."""
        return (f"{self.tokens} tokens for {in_words(self.widths)}, {self.family or 'unknown'}, from "
                f"{self.features} features, trained on {self.trained_on or 'nobody says what'}")


class Guesser(nn.Module):
    """Features (B, F) -> {text encoder key: (B, tokens, width)}.

    An offset in units of the starting word's length, which is the vocabulary's: other lengths are no words to a text
    encoder.  It begins at zero, so training starts from a prompt that the model understands.
    """

    def __init__(self, about: About, start: Mapping[str, Tensor]):
        """
        Args:
            start: {text encoder key: (1, width)} vectors of the starting words.
        """
        super().__init__()
        self.about = about
        count = FEATURES[about.features]
        self.register_buffer("mean", torch.zeros(count))
        self.register_buffer("deviation", torch.ones(count))
        self.start = nn.ParameterDict({k: nn.Parameter(v.clone().float(), requires_grad=False)
                                       for k, v in start.items()})
        self.seen = nn.Sequential(nn.Linear(count, about.hidden), nn.SiLU(), nn.Linear(about.hidden, about.rank))
        self.straight = nn.Linear(count, about.rank, bias=False)
        nn.init.zeros_(self.straight.weight)
        self.heads = nn.ModuleDict({k: nn.Linear(about.rank, about.tokens * w) for k, w in about.widths.items()})
        for head in self.heads.values():
            nn.init.zeros_(head.weight)
            nn.init.zeros_(head.bias)

    def offsets(self, features: Tensor) -> Vectors:
        """What sets a style apart from the starting words, in their length: {key: (B, tokens, width)}."""
        features = (features.to(self.mean) - self.mean) / self.deviation
        inner = self.seen(features) + self.straight(features)
        return {k: rearrange(head(inner), "b (n w) -> b n w", n=self.about.tokens) for k, head in self.heads.items()}

    def forward(self, features: Tensor, start: Mapping[str, Tensor] | None = None) -> Vectors:
        """
        Args:
            start: other words than it was trained from, {key: (1, width) or (B, 1, width)}; None = its own.
        """
        words = start or dict(self.start)
        return {k: words[k] + offset * words[k].norm(dim=-1, keepdim=True)
                for k, offset in self.offsets(features).items()}

    def standardize(self, features: Tensor) -> None:
        """Takes mean and deviation of all features from those of many pictures (n, F)."""
        self.mean.copy_(features.mean(0))
        self.deviation.copy_(features.std(0).clamp_min(1e-3))

    @torch.no_grad()
    def solve(self, features: Tensor, words: Vectors, ridge: float) -> None:
        """The best linear guess of known pseudo-words, in closed form (ridge regression), for training to go on from.

        Args:
            features: (n, F); words: {key: (n, width)}, the same for all tokens.
            ridge: weight of the squared coefficients, beside the mean over the pictures.
        """
        seen = ((features.to(self.mean) - self.mean) / self.deviation).double()
        start = torch.cat([self.start[k].expand(len(seen), -1) for k in self.heads], 1).double()
        lengths = torch.cat([self.start[k].norm().expand(self.about.widths[k]) for k in self.heads]).double()
        offsets = (torch.cat([words[k] for k in self.heads], 1).double() - start) / lengths
        centre, middle = offsets.mean(0), seen.mean(0)
        covariance = (seen - middle).T @ (seen - middle) / len(seen)
        covariance.diagonal().add_(ridge)
        solution = torch.linalg.solve(covariance, (seen - middle).T @ (offsets - centre) / len(seen))  # (F, widths)
        left, sizes, right = torch.linalg.svd(solution, full_matrices=False)
        rank = self.about.rank
        self.straight.weight.copy_((left[:, :rank] * sizes[:rank]).T)
        nn.init.zeros_(self.seen[-1].weight)
        nn.init.zeros_(self.seen[-1].bias)
        parts = zip(self.heads.items(), right[:rank].split([*self.about.widths.values()], 1),
                    (centre - middle @ solution).split([*self.about.widths.values()]), strict=True)
        for (_, head), rows, bias in parts:
            head.weight.copy_(rows.T.repeat(self.about.tokens, 1))
            head.bias.copy_(bias.repeat(self.about.tokens))

    @torch.no_grad()
    def remove(self, directions: Mapping[str, Tensor]) -> None:
        """Makes all offsets orthogonal to directions {key: (k, width), orthonormal rows}, such as those of words for
        what pictures show (CSD-VAR's projection, here inside the last layer: nothing is left to do when it guesses)."""
        for key, rows in directions.items():
            for table in (self.heads[key].weight, self.heads[key].bias):
                split = table.view(self.about.tokens, rows.shape[1], -1)
                split -= torch.einsum("kw,kv,nvr->nwr", rows, rows, split)


# ---- what a network sees ----

@torch.no_grad()
def alexnet_features(alexnet: AlexNet, pictures: Tensor, side: int) -> Tensor:
    """(P, F): root of mean and of deviation of every channel of AlexNet's five layers.

    Args:
        pictures: (P, H, W, 3) in [0, 1], of any size; looked at with about ``side`` pixels squared.
    """
    fitted = rearrange(preprocess.fit_area(pictures, side), "p h w c -> p c h w").contiguous()
    layers = alexnet(fitted)
    parts = [part for x in layers for part in (x.mean((2, 3)), x.flatten(2).std(2))]
    return torch.cat(parts, 1).clamp_min(0).sqrt()


def clip_features(seen: PictureFeatures) -> Tensor:
    """(P, F): mean and deviation of CLIP ViT-L/14's patches, and its embedding of the whole."""
    patches = seen.patches[:, 1:]
    return torch.cat([patches.mean(1), patches.std(1), seen.image_embed], 1)


# ---- files ----

def save(guesser: Guesser, path: Path) -> None:
    """Writes the file, in half precision; it is whole or not there."""
    tensors = {k: v.detach().half().contiguous() for k, v in guesser.state_dict().items()}
    about = {ABOUT: FORMAT, "about": json.dumps(asdict(guesser.about)), "modelspec.title": path.stem}
    write_whole(path, safetensors.torch.save(tensors, about))


def load(path: Path) -> Guesser:
    """Reads a file of ``save``.

    Raises:
        ValueError: what the file is, and what was expected.
    """
    try:
        with safetensors.safe_open(path, "pt") as file:
            about = read_about(file.metadata() or {}, list(file.keys()), path.name)
            check_shapes({k: tuple(file.get_slice(k).get_shape()) for k in file.keys()}, about, path.name)  # noqa: SIM118
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (no dictionary)
    except (safetensors.SafetensorError, OSError) as error:
        raise ValueError(f"{path.name} is cut off or no safetensors file ({error}). Choose an encoder made by "
                         f"tools/train_encoder, {ADVICE}") from error
    guesser = Guesser(about, {k: torch.zeros(1, w) for k, w in about.widths.items()})
    if broken := [k for k, v in tensors.items() if not torch.isfinite(v.float()).all()]:
        raise ValueError(f"{path.name}: {broken[0]} contains NaN or infinite values. Copy the file again.")
    guesser.load_state_dict({k: v.float() for k, v in tensors.items()})
    return guesser.eval().requires_grad_(False)


def check_shapes(found: Mapping[str, tuple[int, ...]], about: About, name: str) -> None:
    """Raises ValueError unless these are the tensors {key: shape} of an encoder with this header.  None of them is
    made for that, however large the header says they are."""
    with torch.device("meta"):
        expected = {k: tuple(v.shape) for k, v in
                    Guesser(about, {k: torch.zeros(1, w) for k, w in about.widths.items()}).state_dict().items()}
    if found != expected:
        wrong = min(k for k in {*expected, *found} if expected.get(k) != found.get(k))
        raise ValueError(f"{name} does not hold what its header says: {wrong} is {found.get(wrong)}, and "
                         f"{expected.get(wrong)} was expected. Copy the file again.")


def read_about(metadata: Mapping[str, str], keys: list[str], name: str) -> About:
    """What the header of a file says.

    Raises:
        ValueError: the file is something else, or of a version that is not known here.
    """
    if ABOUT not in metadata:
        is_style = metadata.get("inst.version") == STYLE_FORMAT
        what = ("a style, for Load InST Style" if is_style
                else f"a file of {len(keys)} tensors ({', '.join(keys[:3])}{', ...' if len(keys) > 3 else ''})")
        raise ValueError(f"{name} is {what}. Choose an encoder made by tools/train_encoder, {ADVICE}")
    try:
        about = About(**json.loads(metadata["about"]))
        sizes = [about.tokens, about.hidden, about.rank, about.side, *about.widths.values()]
        known = about.features in FEATURES and about.widths and all(isinstance(n, int) and n > 0 for n in sizes)
    except (KeyError, TypeError, ValueError, AttributeError):
        known = False
    if metadata[ABOUT] != FORMAT or not known:
        raise ValueError(f"{name} is an encoder of format {metadata[ABOUT]!r} with a header that this version of the "
                         f"pack cannot read; it reads format {FORMAT} with features {', '.join(FEATURES)}. Update "
                         "ComfyUI-InST, or copy the file again.")
    return about


# ---- the style ----

@torch.no_grad()
def guess(guesser: Guesser, features: Tensor, start: Mapping[str, Tensor] | None = None) -> Vectors:
    """The pseudo-words {key: (tokens, width)} of pictures of one style, from their features (P, F)."""
    return {k: v[0].clone() for k, v in guesser(features.mean(0, keepdim=True), start).items()}


def guessed_style(guesser: Guesser, vectors: Vectors, pictures: Tensor, source: str, context: str = "",
                  start: str = "") -> Style:
    """An ordinary style; Learn InST Style goes on from it with encoder ``direct``.

    Args:
        pictures: (P, H, W, 3) in [0, 1] that it was guessed from.
        source: name of the encoder's file.
        context: what is known of the painting.
        start: words that its strength is counted from.
    """
    about = guesser.about
    pixels = (pictures * 255).round().byte().cpu().contiguous()
    metadata = {
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": f"{about.family}/textual-inversion",
        "modelspec.implementation": "ComfyUI-InST",
        "modelspec.thumbnail": thumbnail(pictures[0]),
        "inst.base_model": about.base_model,
        "inst.style_sha256": hashlib.sha256(pixels.numpy().tobytes()).hexdigest(),
        "inst.start": start or about.start,
        GUESSED_BY: source,
    } | ({CONTEXT: context} if context else {})
    return Style(vectors, "direct", about.family, metadata=metadata)
