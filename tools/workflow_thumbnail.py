"""The picture that the template browser shows for a workflow: its title, and its main nodes from top to bottom."""
import textwrap

from PIL import Image, ImageDraw, ImageFont

SIDE, MARGIN, GAP = 640, 24, 34
BACKGROUND, LINE, STOCK, OURS = "#202028", "#8a8aa0", "#3b4252", "#b4552d"
MAIN = {"LoadImage", "LoraLoader", "LoraLoaderModelOnly", "ControlNetApplyAdvanced", "KSampler", "ConditioningAverage",
        "BatchImagesNode", "CLIPTextEncode", "SamplerCustomAdvanced", "SaveImage", "LossGraphNode"}


def is_main(node: dict) -> bool:
    return (node["type"].startswith("InST_") or node["type"] in MAIN) and node.get("title") != "Negative prompt"


def main_links(document: dict) -> set[tuple[int, int]]:
    """(source, target) between main nodes, through the others."""
    nodes = {n["id"]: n for n in document["nodes"]}
    sources = {n: [link[1] for link in document["links"] if link[3] == n] for n in nodes}

    def behind(target: int) -> set[int]:
        found = set()
        for source in sources[target]:
            found |= {source} if is_main(nodes[source]) else behind(source)
        return found

    return {(s, n) for n in nodes if is_main(nodes[n]) for s in behind(n)}


def rows_of(document: dict) -> list[list[int]]:
    """Main nodes, each below everything that leads to it."""
    links = main_links(document)
    depth = {n["id"]: 0 for n in document["nodes"] if is_main(n)}
    for _ in depth:
        for source, target in links:
            depth[target] = max(depth[target], depth[source] + 1)
    return [[n for n, d in depth.items() if d == row] for row in range(max(depth.values()) + 1)]


def thumbnail(document: dict, object_info: dict) -> Image.Image:
    """A square, which is the shape that the template browser gives it."""
    title = next(n["title"] for n in document["nodes"] if n["type"] == "MarkdownNote")
    nodes = {n["id"]: n for n in document["nodes"]}
    image = Image.new("RGB", (SIDE, SIDE), BACKGROUND)
    draw = ImageDraw.Draw(image)
    heading = textwrap.fill(title, 22)
    draw.multiline_text((MARGIN, MARGIN - 6), heading, fill="white", font=ImageFont.load_default(54))
    top = MARGIN + 64 * (heading.count("\n") + 1) + 16
    rows = rows_of(document)
    step = (SIDE - MARGIN - top + GAP) / len(rows)
    boxes = {}
    for r, row in enumerate(rows):
        width = min((SIDE - 2 * MARGIN + GAP) / len(row) - GAP / 2, 280)
        left = (SIDE - len(row) * (width + GAP / 2) + GAP / 2) / 2
        for c, node in enumerate(row):
            x, y = left + c * (width + GAP / 2), top + r * step
            boxes[node] = (x, y, x + width, y + step - GAP)
    for source, target in sorted(main_links(document)):
        a, b = boxes[source], boxes[target]
        draw.line([((a[0] + a[2]) / 2, a[3]), ((b[0] + b[2]) / 2, b[1])], fill=LINE, width=4)
    for number, box in boxes.items():
        node = nodes[number]
        words = node.get("title") or object_info[node["type"]]["display_name"] or node["type"]
        draw.rounded_rectangle(box, 10, fill=OURS if node["type"].startswith("InST_") else STOCK)
        _write(draw, words, box)
    return image


def _write(draw: ImageDraw.ImageDraw, words: str, box: tuple[float, float, float, float]) -> None:
    """Words in the middle of a box, as large as fit."""
    for size in range(34, 11, -2):
        font = ImageFont.load_default(size)
        text = textwrap.fill(words, max(4, int((box[2] - box[0]) / (0.56 * size))), break_long_words=False)
        x0, y0, x1, y1 = draw.multiline_textbbox((0, 0), text, font=font)
        if x1 - x0 <= box[2] - box[0] - 12 and y1 - y0 <= box[3] - box[1] - 8:
            break
    middle = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
    draw.multiline_text(middle, text, fill="white", font=font, anchor="mm", align="center")
