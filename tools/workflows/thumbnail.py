"""The picture that the template browser shows for a workflow: what comes out of it, with its number and title."""
import textwrap

from PIL import Image, ImageDraw, ImageFont, ImageOps

SIDE, MARGIN = 640, 24  # px; a square, which is the shape that the template browser gives it
NUMBER, TITLE, LINE, LETTERS = 92, 46, 54, 22
BAND = "#14141c"
SEAM = 4


def halves(left: Image.Image, right: Image.Image) -> Image.Image:
    """A square of two pictures: the left half of one, the right half of the other."""
    both = [ImageOps.fit(picture.convert("RGB"), (SIDE, SIDE)) for picture in (left, right)]
    both[0].paste(both[1].crop((SIDE // 2, 0, SIDE, SIDE)), (SIDE // 2, 0))
    ImageDraw.Draw(both[0]).rectangle((SIDE // 2 - SEAM // 2, 0, SIDE // 2 + SEAM // 2, SIDE), fill="white")
    return both[0]


def thumbnail(picture: Image.Image, number: str, title: str) -> Image.Image:
    """The picture, cropped to a square, above a band with number and title."""
    lines = textwrap.wrap(title, LETTERS)
    band = 2 * MARGIN + max(NUMBER, LINE * len(lines))
    image = Image.new("RGB", (SIDE, SIDE), BAND)
    image.paste(ImageOps.fit(picture.convert("RGB"), (SIDE, SIDE - band)), (0, 0))
    draw, middle = ImageDraw.Draw(image), SIDE - band / 2
    draw.text((MARGIN, middle), number, fill="#e0925a", font=ImageFont.load_default(NUMBER), anchor="lm")
    left = MARGIN + draw.textlength(number, font=ImageFont.load_default(NUMBER)) + MARGIN
    draw.multiline_text((left, middle), "\n".join(lines), fill="white", font=ImageFont.load_default(TITLE), anchor="lm",
                        spacing=LINE - TITLE)
    return image


def strip(pictures: list[Image.Image], height: int = 256, gap: int = 8) -> Image.Image:
    """Pictures side by side at one height, on white."""
    scaled = [p.convert("RGB").resize((round(p.width * height / p.height), height), Image.LANCZOS) for p in pictures]
    sheet = Image.new("RGB", (sum(p.width + gap for p in scaled) - gap, height), "white")
    left = 0
    for picture in scaled:
        sheet.paste(picture, (left, 0))
        left += picture.width + gap
    return sheet
