"""Pictures to learn from: WikiArt's parquet files, ShareGPT4V's JSON beside its pictures, any folder of pictures.

All are streamed with Hugging Face ``datasets`` and split by rank; whatever cannot be opened is left out and counted.
"""
import io
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps, UnidentifiedImageError

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"}
MOST_PIXELS = 600_000_000  # WikiArt holds scans of 20,000 pixels a side
LEAST_SIDE = 32
# What the public variants of WikiArt call these: huggan/wikiart, Artificio/WikiArt, asahi417/wikiart-all.
ARTIST = "artist", "artistName"
STYLE = "style", "styles"
CONTEXT = ("style", "styles", "media", "period", "genre", "genres", "date", "completitionYear")
CAPTION = "caption", "description", "title"
UNKNOWN = {"", "none", "unknown", "unknown artist", "unknown genre", "unknown_artist", "unknown_genre"}


@dataclass(frozen=True)
class Example:
    """One picture.

    Attributes:
        picture: RGB, sides of at least LEAST_SIDE.
        group: of the pictures of the same artist and style; "" where nobody says.
        caption: what it shows; context: school, medium, period, as far as a row has them.
        told: numbers of the demo model's teacher, where the set has them.
    """

    picture: Image.Image
    group: str
    caption: str = ""
    context: str = ""
    told: tuple[float, ...] = ()


class Unusable(Exception):
    """A picture that is left out; the message says in a word or two why."""


def opened(stored: Mapping[str, Any] | Path | None, at_least: int) -> Image.Image:
    """A picture as RGB.

    Args:
        stored: a parquet cell with ``bytes`` or ``path``, or a file.
        at_least: a JPEG may be read smaller than it is, with no side below this, which spares memory.

    Raises:
        Unusable: missing, empty, damaged, too large or too small.
    """
    if isinstance(stored, Mapping):
        stored = stored.get("bytes") if stored.get("bytes") is not None else stored.get("path") and Path(stored["path"])
    if stored is None or isinstance(stored, Path) and not stored.is_file():
        raise Unusable("missing")
    data = stored.read_bytes() if isinstance(stored, Path) else stored
    if not data:
        raise Unusable("empty")
    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None  # its own limit is below WikiArt's scans
    try:
        with Image.open(io.BytesIO(data)) as picture:
            if picture.width * picture.height > MOST_PIXELS:
                raise Unusable("too large")
            picture.draft(picture.mode, (at_least, at_least))
            whole = ImageOps.exif_transpose(picture).convert("RGB")
    except (OSError, SyntaxError, ValueError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise Unusable("damaged") from error
    finally:
        Image.MAX_IMAGE_PIXELS = limit
    if min(whole.size) < LEAST_SIDE:
        raise Unusable("too small")
    return whole


def words(value: Any) -> str:
    """A cell as words: ``Romanticism`` of it, of a list, of ``{"title": ...}``; underscores are spaces."""
    if isinstance(value, Mapping):
        value = value.get("title")
    if isinstance(value, (list, tuple)):
        return ", ".join(filter(None, map(words, value)))
    text = "" if value is None else str(value).replace("_", " ").strip()
    return "" if text.lower() in UNKNOWN else text


def first_of(row: Mapping[str, Any], names: tuple[str, ...]) -> str:
    return next((text for name in names if (text := words(row.get(name)))), "")


def context_of(row: Mapping[str, Any]) -> str:
    """What a row knows of the painting's school, medium, period and genre, each once."""
    return ", ".join(dict.fromkeys(text for name in CONTEXT if (text := words(row.get(name)))))


def wikiart(files: list[str], rank: int = 0, world: int = 1, at_least: int = 512,
            skipped: Counter | None = None) -> Iterator[Example]:
    """Rows of parquet files in any of WikiArt's layouts; class labels are read as their names."""
    from datasets import ClassLabel, load_dataset
    from datasets import Image as ImageFeature
    from datasets.distributed import split_dataset_by_node

    rows = load_dataset("parquet", data_files=files, split="train", streaming=True)
    features = rows.features or {}
    if isinstance(features.get("image"), ImageFeature):
        rows = rows.cast_column("image", ImageFeature(decode=False))
    labels: dict[str, Callable[[int], str]] = {k: f.int2str for k, f in features.items() if isinstance(f, ClassLabel)}
    for row in split_dataset_by_node(rows, rank, world):
        row |= {k: name(row[k]) for k, name in labels.items() if row[k] is not None}
        artist, style = first_of(row, ARTIST), first_of(row, STYLE)
        group = f"{artist} | {style}" if artist else ""
        yield from _usable(row["image"], at_least, skipped, group, first_of(row, CAPTION), context_of(row),
                           tuple(row.get("told") or ()))


def sharegpt4v(file: Path, pictures: Path, rank: int = 0, world: int = 1, at_least: int = 512,
               skipped: Counter | None = None) -> Iterator[Example]:
    """Records {id, image, conversations} of ShareGPT4V's JSON, with pictures under a folder; the caption is what was
    answered first.  Its paintings (``wikiart/images/artist_title.jpg``) are of their artist."""
    for number, record in enumerate(json.loads(file.read_text(encoding="utf-8"))):
        if number % world != rank or "image" not in record:
            continue
        said = [turn["value"] for turn in record.get("conversations", ()) if turn.get("from") == "gpt"]
        path = pictures / record["image"]
        painting = "wikiart" in path.parts
        group = words(path.stem.split("_")[0]) if painting else ""
        yield from _usable(path, at_least, skipped, group, said[0].strip() if said else "")


def folder(root: Path, rank: int = 0, world: int = 1, at_least: int = 512,
           skipped: Counter | None = None) -> Iterator[Example]:
    """Pictures of a folder; each subfolder is one style, a text file of the same name is the caption."""
    paths = sorted(p for p in root.rglob("*") if p.suffix.lower() in SUFFIXES)
    for path in paths[rank::world]:
        text = path.with_suffix(".txt")
        caption = text.read_text(encoding="utf-8", errors="replace").strip() if text.is_file() else ""
        group = "" if path.parent == root else path.parent.relative_to(root).as_posix()
        yield from _usable(path, at_least, skipped, group, caption)


def _usable(stored: Any, at_least: int, skipped: Counter | None, *about: Any) -> Iterator[Example]:
    try:
        yield Example(opened(stored, at_least), *about)
    except Unusable as reason:
        if skipped is not None:
            skipped[str(reason)] += 1
