"""Lines of text in any script: the font that Pillow brings where it has the letters, else one of the system's."""
import os
import sys
import unicodedata
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

LINE = 1.5  # height of a line in heights of the text
SUFFIXES = (".ttf", ".otf", ".ttc")
DOTS = "..."
VARIANTS = "\ufe0e\ufe0f"  # which choose between the plain and the coloured form of a symbol
# File names without suffix, in the order they are tried: plain faces with many scripts, then one for each large script.
# All other fonts of the system come after them.
FIRST_FONTS = ("dejavusans", "notosans-regular", "segoeui", "arial", "liberationsans-regular", "freesans",
               "arial unicode", "notosanscjk-regular", "notosanssc-regular", "sourcehansanssc-regular", "msyh",
               "pingfang", "hiragino sans gb", "yugothr", "meiryo", "malgun", "applesdgothicneo", "wqy-microhei",
               "droidsansfallbackfull", "nirmala", "tahoma", "unifont")
BOXES = ("lastresort", "adobeblank")  # fonts that have a box, or nothing, for every letter there is

# Letters that are no plain letter with an accent, as people write them where they cannot be had.
_SPELLED = str.maketrans({
    "ß": "ss", "ẞ": "SS", "æ": "ae", "Æ": "AE", "œ": "oe", "Œ": "OE", "ø": "o", "Ø": "O", "ł": "l", "Ł": "L",
    "đ": "d", "Đ": "D", "ð": "d", "Ð": "D", "þ": "th", "Þ": "Th", "ı": "i", "–": "-", "—": "-", "−": "-", "‐": "-",
    "‑": "-", "×": "x", "·": ".", "•": "*", "‘": "'", "’": "'", "‚": ",", "“": '"', "”": '"', "„": '"', "«": '"',
    "»": '"', "€": "EUR", "→": "->", "←": "<-", "±": "+-", "≈": "~",
})


def plain(text: str) -> str:
    """Text in the letters of English: accents are dropped, ß becomes ss, a dash a hyphen, other letters ``?``."""
    letters = (c for c in unicodedata.normalize("NFKD", text.translate(_SPELLED)) if not unicodedata.combining(c))
    return "".join(c if c.isascii() else "?" for c in letters)


def font_folders() -> list[Path]:
    """Where this system and this user keep fonts."""
    home = Path.home()
    if sys.platform == "win32":
        return [Path(os.environ.get("WINDIR", r"C:\Windows"), "Fonts"),
                Path(os.environ.get("LOCALAPPDATA", home), "Microsoft", "Windows", "Fonts")]
    if sys.platform == "darwin":
        return [Path("/System/Library/Fonts"), Path("/Library/Fonts"), home / "Library" / "Fonts"]
    shared = os.environ.get("XDG_DATA_DIRS") or "/usr/local/share:/usr/share"
    own = os.environ.get("XDG_DATA_HOME") or str(home / ".local" / "share")
    return [*(Path(folder, "fonts") for folder in (own, *shared.split(os.pathsep)) if folder), home / ".fonts"]


def system_fonts() -> list[Path]:
    """Font files, those of ``FIRST_FONTS`` in front, italics and bold faces at the end."""
    def place(path: Path) -> tuple[int, bool, str]:
        stem = path.stem.lower()
        first = FIRST_FONTS.index(stem) if stem in FIRST_FONTS else len(FIRST_FONTS)
        return first, any(face in stem for face in ("bold", "italic", "oblique")), str(path)

    found = {path for folder in font_folders() for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES}
    return sorted((path for path in found if not path.stem.lower().startswith(BOXES)), key=place)


class Font:
    """A font at one size, and which letters it has."""

    def __init__(self, font: ImageFont.FreeTypeFont):
        self.font = font
        self._covers: dict[str, bool] = {}

    @cached_property
    def _box(self) -> tuple:
        return self._drawn("\U0010fffe")  # which no font has

    def _drawn(self, letter: str) -> tuple:
        mask = self.font.getmask(letter)
        return mask.size, mask.getbbox(), bytes(mask)

    def covers(self, letter: str) -> bool:
        """Whether the font has a letter; spaces and marks that only join letters are had by all."""
        if letter.isspace() or unicodedata.category(letter) == "Cf" or letter in VARIANTS:
            return True
        if letter not in self._covers:
            drawn = self._drawn(letter)
            self._covers[letter] = drawn[1] is not None and drawn != self._box
        return self._covers[letter]


@dataclass(frozen=True)
class Lettering:
    """Labels in black on white at ``size`` px.

    Attributes:
        replaced: letters that no font of the system had, of all that was drawn or measured so far.
    """

    size: int
    replaced: set[str] = field(default_factory=set)

    @cached_property
    def _own(self) -> Font:
        return Font(ImageFont.load_default(self.size))

    @cached_property
    def _system(self) -> dict[Path, Font | None]:
        """The system's fonts, opened when they are first needed."""
        return dict.fromkeys(system_fonts())

    def _fonts(self) -> Iterator[Font]:
        yield self._own
        for path, font in self._system.items():
            try:
                self._system[path] = font = font or Font(ImageFont.truetype(str(path), self.size))
            except (OSError, ValueError):  # broken, or of pixels in other sizes
                continue
            yield font

    def _fonts_for(self, letters: set[str]) -> list[Font]:
        """The first font that has all the letters; where there is none, a few that together have what can be had."""
        chosen: list[Font] = []
        while letters := letters - self.replaced:
            best, had = None, set()
            for font in self._fonts():
                covered = {letter for letter in letters if font.covers(letter)}
                if len(covered) > len(had):
                    best, had = font, covered
                if covered == letters:
                    break
            if best is None:
                self.replaced.update(letters)
            else:
                chosen.append(best)
                letters = letters - had
        return chosen

    def _runs(self, text: str) -> list[tuple[Font, str]]:
        """The text in pieces of one font each."""
        text = unicodedata.normalize("NFC", text)
        fonts = self._fonts_for(set(text)) or [self._own]
        runs: list[tuple[Font, str]] = []
        for letter in text:
            font = next((f for f in ([runs[-1][0]] if runs else []) + fonts if f.covers(letter)), None)
            if font is None:
                font, letter = self._own, plain(letter)
            if runs and runs[-1][0] is font:
                runs[-1] = font, runs[-1][1] + letter
            else:
                runs.append((font, letter))
        return runs

    @property
    def height(self) -> int:
        return round(self.size * LINE)

    def width(self, text: str) -> int:
        return int(sum(font.font.getlength(piece) for font, piece in self._runs(text))) + 1

    def shortened(self, text: str, room: int) -> str:
        """The text, or as much of it as fits, with dots at the end."""
        if self.width(text) <= room:
            return text
        fitting = bisect_right(range(1, len(text)), room, key=lambda count: self.width(text[:count] + DOTS))
        return text[:fitting] + DOTS

    def draw(self, text: str, width: int) -> Tensor:
        """One line, centred: (3, height, width) in [0, 1]."""
        text = self.shortened(text, width)
        canvas = Image.new("L", (width, self.height), 255)
        draw, left = ImageDraw.Draw(canvas), (width - self.width(text) + 1) / 2
        for font, piece in self._runs(text):
            draw.text((left, self.height / 2), piece, 0, font.font, anchor="lm")
            left += font.font.getlength(piece)
        levels = torch.frombuffer(bytearray(canvas.tobytes()), dtype=torch.uint8).view(1, self.height, width)
        return levels.expand(3, -1, -1) / 255
