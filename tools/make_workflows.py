"""Writes the shipped workflows (``workflows/*.json``) from the short descriptions below.

    python tools/make_workflows.py SERVER_URL

Node sockets and widgets come from a running server's ``/object_info``, so the files always fit the nodes.  Positions
follow from the links; a person can still open, move and save them.  Each thumbnail is a drawing of its graph.
"""
import json
import sys
import textwrap
from pathlib import Path

from client import Client
from PIL import Image, ImageDraw, ImageFont
from workflow_api import inputs_of, is_widget

WORKFLOWS = Path(__file__).resolve().parents[1] / "workflows"
PACK = {"cnr_id": "inst-style-transfer", "ver": "0.1.0"}
CORE = {"cnr_id": "comfy-core", "ver": "0.30.0"}
HUB = "https://huggingface.co"
DOWNLOADS = {
    "v1-5-pruned-emaonly-fp16.safetensors": (
        "checkpoints",
        f"{HUB}/Comfy-Org/stable-diffusion-v1-5-archive/resolve/main/v1-5-pruned-emaonly-fp16.safetensors"),
    "clip-vit-large-patch14.safetensors": (
        "clip_vision", f"{HUB}/openai/clip-vit-large-patch14/resolve/main/model.safetensors"),
}
CHECKPOINT = {"ckpt_name": "v1-5-pruned-emaonly-fp16.safetensors"}
CLIP_VISION = {"clip_name": "clip-vit-large-patch14.safetensors"}
COLUMN, ROW = 400, 60


class Graph:
    """A workflow being written. Nodes are named; an input is a value, or ``(name, output)`` for a link."""

    def __init__(self, object_info: dict):
        self.info, self.nodes, self.links, self.ids, self.depth = object_info, [], [], {}, {}
        self.column_end: dict[int, int] = {}

    def add(self, name: str, kind: str, title: str | None = None, **inputs) -> None:
        info, node_id = self.info[kind], len(self.nodes) + 1
        specs = inputs_of(info)
        unknown = inputs.keys() - specs.keys()
        if unknown:
            raise ValueError(f"{kind} has no input {', '.join(unknown)}")
        linked = {k: v for k, v in inputs.items() if isinstance(v, tuple)}
        sockets, values = [], []
        for key, spec in specs.items():
            shape = {"shape": 7} if key in info["input"].get("optional", {}) else {}
            if is_widget(spec):
                options = spec[1] if len(spec) > 1 else {}
                choices = spec[0] if isinstance(spec[0], list) else options.get("options", [])
                values.append(inputs.get(key, options.get("default", next(iter(choices), None))))
                if options.get("control_after_generate"):
                    values.append("fixed")
                if options.get("image_upload"):
                    values.append("image")
            else:
                link = self._link(linked[key], node_id, len(sockets), spec[0]) if key in linked else None
                sockets.append({"name": key, "type": spec[0], "link": link, **shape})
        column = 1 + max((self.depth[source] for source, _ in linked.values()), default=-1)
        self.ids[name], self.depth[name] = node_id, column
        height = 60 + 24 * (len(sockets) + len(info["output"])) + 26 * len(values)
        top = self.column_end.get(column, 0)
        self.column_end[column] = top + height + ROW
        files = [v for v in values if v in DOWNLOADS]
        properties = {**(PACK if kind.startswith("InST_") else CORE), "Node name for S&R": kind}
        if files:
            properties["models"] = [{"name": f, "url": DOWNLOADS[f][1], "directory": DOWNLOADS[f][0]} for f in files]
        names = info.get("output_name") or info["output"]
        self.nodes.append({
            "id": node_id, "type": kind, "pos": [column * COLUMN, top], "size": [330, height], "flags": {},
            "order": len(self.nodes), "mode": 0, "inputs": sockets,
            "outputs": [{"name": n, "type": t, "links": []} for n, t in zip(names, info["output"], strict=True)],
            "properties": properties, "widgets_values": values, **({"title": title} if title else {})})

    def _link(self, source: tuple[str, int], target: int, slot: int, kind: str) -> int:
        name, output = source
        self.links.append([len(self.links) + 1, self.ids[name], output, target, slot, kind])
        return len(self.links)

    def note(self, title: str, text: str) -> None:
        self.nodes.append({
            "id": len(self.nodes) + 1, "type": "MarkdownNote", "pos": [-COLUMN, 0], "size": [340, 420], "flags": {},
            "order": 0, "mode": 0, "inputs": [], "outputs": [], "title": title, "properties": {},
            "widgets_values": [text], "color": "#432", "bgcolor": "#653"})

    def document(self) -> dict:
        for link_id, source, slot, *_ in self.links:
            self.nodes[source - 1]["outputs"][slot]["links"].append(link_id)
        return {"last_node_id": len(self.nodes), "last_link_id": len(self.links), "nodes": self.nodes,
                "links": self.links, "groups": [], "config": {}, "extra": {}, "version": 0.4}


def checkpoint(g: Graph) -> None:
    g.add("checkpoint", "CheckpointLoaderSimple", **CHECKPOINT)


def photograph(g: Graph) -> None:
    g.add("photo", "LoadImage", "Photograph", image="example.png")
    g.add("scaled", "ImageScaleToTotalPixels", image=("photo", 0), upscale_method="lanczos", megapixels=0.25)
    g.add("content", "VAEEncode", pixels=("scaled", 0), vae=("checkpoint", 2))


def picture(g: Graph, latent: tuple[str, int], prefix: str) -> None:
    g.add("decoded", "VAEDecode", samples=latent, vae=("checkpoint", 2))
    g.add("saved", "SaveImage", images=("decoded", 0), filename_prefix=prefix)


def apply_saved_style(g: Graph) -> None:
    checkpoint(g)
    photograph(g)
    g.add("style", "InST_LoadStyle", style_name="style_00001.safetensors")
    g.add("positive", "InST_StyleConditioning", clip=("checkpoint", 1), style=("style", 0), text="*")
    g.add("negative", "CLIPTextEncode", "Negative prompt", clip=("checkpoint", 1), text="")
    g.add("sample", "InST_Sample", model=("checkpoint", 0), positive=("positive", 0), negative=("negative", 0),
          latent=("content", 0), steps=30, cfg=7.0, strength=0.6)
    picture(g, ("sample", 0), "inst/applied")
    g.note("Apply a saved style", "Repaints a photograph in a style you have learned before (workflow 2 makes one).\n\n"
           "- **strength** in InST Sample: 0.5 keeps the layout, 0.7 gives more style.\n"
           "- **cfg**: 5 is mild, 10 is the paper's.\n"
           "- **text** in Apply InST Style: say what the photograph shows, with `*` for the style.\n\n"
           "The list of styles is empty at first: learn one, then press R.")


def learn_style(g: Graph) -> None:
    checkpoint(g)
    g.add("painting", "LoadImage", "Painting", image="example.png")
    g.add("learn", "InST_LearnStyle", model=("checkpoint", 0), clip=("checkpoint", 1), vae=("checkpoint", 2),
          image=("painting", 0), encoder="direct", tokens=4, steps=400)
    g.add("plot", "LossGraphNode", loss=("learn", 1), filename_prefix="inst/loss")
    g.note("Learn a style", "Learns the style of **one** painting and saves it as a small file. Needs no CLIP vision "
           "model.\n\n- **steps**: more is closer; the loss curve shows when it stops paying.\n"
           "- **prompt**: describe what the painting shows, with `*` for its style, and the words you write need not "
           "be learned: `a village at night in the style of *`.\n"
           "- **seed** is fixed, so that the style is not learned again on every run.\n\n"
           "The file appears in Load InST Style after pressing R, and as `embedding:name` in every prompt.")


def style_transfer(g: Graph) -> None:
    checkpoint(g)
    g.add("vision", "CLIPVisionLoader", **CLIP_VISION)
    g.add("painting", "LoadImage", "Painting", image="example.png")
    photograph(g)
    g.add("learn", "InST_LearnStyle", model=("checkpoint", 0), clip=("checkpoint", 1), vae=("checkpoint", 2),
          image=("painting", 0), clip_vision=("vision", 0), encoder="paper", tokens=1, steps=1000, learning_rate=0.001)
    g.add("style_latent", "VAEEncode", pixels=("painting", 0), vae=("checkpoint", 2))
    g.add("colored", "InST_MatchColor", latent=("content", 0), style_latent=("style_latent", 0), method="adain")
    g.add("positive", "InST_StyleConditioning", clip=("checkpoint", 1), style=("learn", 0), text="*")
    g.add("negative", "CLIPTextEncode", "Negative prompt", clip=("checkpoint", 1), text="")
    g.add("invert", "InST_StochasticInvert", model=("checkpoint", 0), positive=("positive", 0),
          latent=("colored", 0), strength=0.7)
    g.add("sample", "InST_Sample", model=("checkpoint", 0), positive=("positive", 0), negative=("negative", 0),
          latent=("colored", 0), noise=("invert", 0), steps=35, cfg=10.0, strength=0.7)
    picture(g, ("sample", 0), "inst/transfer")
    g.note("Content + style", "The whole of InST: learn the painting's style, invert the photograph, repaint it.\n\n"
           "- **strength**, the same in both nodes: 0.5 keeps the layout, 0.7 is the paper's example.\n"
           "- **amount** in Match Latent Color: how far the photograph takes the painting's colours first.\n"
           "- **cfg**: 10 as published; 5 to 7 is milder.\n\n"
           "`clip-vit-large-patch14.safetensors` is the file `model.safetensors` of openai/clip-vit-large-patch14; "
           "rename it. Encoder `direct` works without it.")


def stock_embedding(g: Graph) -> None:
    checkpoint(g)
    g.add("positive", "CLIPTextEncode", "Prompt with a style", clip=("checkpoint", 1),
          text="a lighthouse on a cliff in the style of embedding:style_00001")
    g.add("negative", "CLIPTextEncode", "Negative prompt", clip=("checkpoint", 1), text="photograph, blurry")
    g.add("empty", "EmptyLatentImage", width=512, height=512)
    g.add("sample", "KSampler", model=("checkpoint", 0), positive=("positive", 0), negative=("negative", 0),
          latent_image=("empty", 0), steps=25, cfg=7.0, sampler_name="dpmpp_2m", scheduler="karras")
    picture(g, ("sample", 0), "inst/embedding")
    g.note("A style as embedding:name", "A learned style is an ordinary embedding: no node of this pack is needed to "
           "use it.\n\n- Put the file's name, without `.safetensors`, after `embedding:`.\n"
           "- `(embedding:name:1.2)` strengthens it.")


def custom_sampling(g: Graph) -> None:
    checkpoint(g)
    photograph(g)
    g.add("style", "InST_LoadStyle", style_name="style_00001.safetensors")
    g.add("positive", "InST_StyleConditioning", clip=("checkpoint", 1), style=("style", 0), text="*")
    g.add("negative", "CLIPTextEncode", "Negative prompt", clip=("checkpoint", 1), text="")
    g.add("sigmas", "InST_CosineScheduler", model=("checkpoint", 0), steps=20, denoise=0.6)
    g.add("invert", "InST_StochasticInvert", model=("checkpoint", 0), positive=("positive", 0),
          latent=("content", 0), sigmas=("sigmas", 0), strength=0.6)
    g.add("guider", "CFGGuider", model=("checkpoint", 0), positive=("positive", 0), negative=("negative", 0), cfg=7.0)
    g.add("sampler", "KSamplerSelect", sampler_name="dpmpp_2m")
    g.add("sample", "SamplerCustomAdvanced", noise=("invert", 0), guider=("guider", 0), sampler=("sampler", 0),
          sigmas=("sigmas", 0), latent_image=("content", 0))
    picture(g, ("sample", 0), "inst/custom")
    g.note("Inversion noise in a custom sampler", "Stochastic inversion is a NOISE: it plugs into "
           "SamplerCustomAdvanced, with any sampler, guider and schedule.\n\n"
           "- Connect the **same SIGMAS** to Stochastic Invert Latent and to the sampler; their first level is where "
           "both start.\n- **denoise** in the scheduler is the strength.")


def thumbnail(document: dict, object_info: dict) -> Image.Image:
    """The graph as a small drawing: boxes in the colours of ours and the host's nodes, links between them."""
    nodes = {n["id"]: n for n in document["nodes"] if n["type"] != "MarkdownNote"}
    right = max(n["pos"][0] + n["size"][0] for n in nodes.values())
    bottom = max(n["pos"][1] + n["size"][1] for n in nodes.values())
    scale = 1160 / right
    image = Image.new("RGB", (1200, round(bottom * scale) + 40), "#202028")
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(15)

    def at(x: float, y: float) -> tuple[float, float]:
        return 20 + x * scale, 20 + y * scale

    for _, source, out, target, into, _ in document["links"]:
        a, b = nodes[source], nodes[target]
        start = at(a["pos"][0] + a["size"][0], a["pos"][1] + 40 + 24 * out)
        end = at(b["pos"][0], b["pos"][1] + 40 + 24 * into)
        draw.line([start, end], fill="#8a8aa0", width=2)
    for node in nodes.values():
        corner = at(node["pos"][0] + node["size"][0], node["pos"][1] + node["size"][1])
        ours = node["type"].startswith("InST_")
        draw.rounded_rectangle([at(*node["pos"]), corner], 6, fill="#b4552d" if ours else "#3b4252")
        left, top = at(*node["pos"])
        words = textwrap.fill(node.get("title") or object_info[node["type"]]["display_name"] or node["type"], width=13)
        draw.text((left + 6, top + 5), words, fill="white", font=font)
    return image


SHIPPED = {
    "1_apply_a_saved_style": apply_saved_style,
    "2_learn_a_style": learn_style,
    "3_content_and_style": style_transfer,
    "4_style_as_embedding": stock_embedding,
    "5_inversion_noise_in_custom_sampling": custom_sampling,
}


def main() -> None:
    info = Client(sys.argv[1]).object_info()
    for name, build in SHIPPED.items():
        graph = Graph(info)
        build(graph)
        document = graph.document()
        (WORKFLOWS / f"{name}.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
        thumbnail(document, info).save(WORKFLOWS / f"{name}.jpg", quality=85)


if __name__ == "__main__":
    main()
