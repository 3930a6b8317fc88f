"""A workflow being written: nodes with their widgets and links, laid out in titled groups.

What is written is what ComfyUI's front end saves: UI format, version 0.4.
"""
from __future__ import annotations

import contextlib
import copy
import textwrap
import uuid
from collections.abc import Iterator
from typing import Any, NamedTuple

from workflows.api import AUTOGROW, has_control, inputs_of, is_widget, options_of

PACK = {"cnr_id": "inst-style-transfer", "ver": "0.1.0"}
CORE = {"cnr_id": "comfy-core", "ver": "0.30.0"}

# What the front end needs, in its pixels; tests/browser compares with what it draws.
WIDTH, TITLE, GAP, PADDING, HEADING = 296, 30, 60, 16, 50
SOCKET, WIDGET, TEXT, PICTURE, FRAME = 20, 24, 96, 224, 6
NOTE_WIDTH, NOTE_LINE, NOTE_LETTERS, NOTE_FRAME, NOTE_GAP = 600, 18, 100, 56, 36
SHOWN_LATER = 270  # room for what a node shows once it has run
SHOWS = {"SaveImage", "PreviewImage", "LossGraphNode", "PreviewAny", "InST_Sample", "KSampler",
         "SamplerCustomAdvanced", "InST_GatysStyleTransfer", "InST_TransferStyle"}
# The painting of a style; a line of text; text and pictures.
ALSO = {"InST_LoadStyle": 140, "InST_FitToModel": 70, "InST_LearnStyle": 288}

PREVIEW = "$$canvas-image-preview"  # the front end's name of the pictures in a node

INPUT = "in"  # source of a link from outside of a subgraph
Link = tuple[str, int]  # from the node that was added under that name, its output


class Socket(NamedTuple):
    """An input of a node as the front end stores it."""

    name: str
    kind: str
    optional: bool
    widget: bool


class Download(NamedTuple):
    """A file that the front end offers to fetch."""

    folder: str
    url: str


def sockets(info: dict, given: dict[str, Any]) -> list[Socket]:
    """Sockets first, then widgets; a growing input has one socket for each that is given, and one more."""
    optional = info["input"].get("optional", {})
    plain, widgets = [], []
    for name, spec in inputs_of(info).items():
        if is_widget(spec):
            widgets.append(Socket(name, spec[0] if isinstance(spec[0], str) else "COMBO", name in optional, True))
        elif spec[0] == AUTOGROW:
            template = options_of(spec)["template"]
            kind = next(iter(template["input"]["required"].values()))[0]
            used = [n for n in given if n.startswith(f"{name}.")]
            names = [*used, f"{name}.{template['prefix']}{len(used)}"]
            plain += [Socket(n, kind, i >= template["min"], False) for i, n in enumerate(names)]
        else:
            plain.append(Socket(name, spec[0], name in optional, False))
    return plain + widgets


def widget_values(info: dict, given: dict[str, Any]) -> Iterator[Any]:
    """Values by position, as they are stored: a seed is followed by its control, a picture by its upload button."""
    for name, spec in inputs_of(info).items():
        if not is_widget(spec):
            continue
        options = options_of(spec)
        choices = spec[0] if isinstance(spec[0], list) else options.get("options", [])
        yield given.get(name, options.get("default", next(iter(choices), "" if spec[0] == "STRING" else None)))
        if has_control(name, spec):
            yield "fixed"
        if options.get("image_upload"):
            yield "image"


def height(kind: str, info: dict, rows: int) -> int:
    """Of a node with ``rows`` sockets on its busier side."""
    widgets = [s for s in inputs_of(info).values() if is_widget(s)]
    controls = sum(has_control(n, s) for n, s in inputs_of(info).items() if is_widget(s))
    extra = 0
    for spec in widgets:
        options = options_of(spec)
        extra += TEXT if options.get("multiline") else WIDGET
        extra += WIDGET + PICTURE + 4 if options.get("image_upload") else 0
    return SOCKET * rows + FRAME + extra + WIDGET * controls + (8 if widgets else 0) \
        + ALSO.get(kind, SHOWN_LATER if kind in SHOWS else 0)


class Graph:
    """Nodes are added to the current column of the current group, from top to bottom.

    An input is a value, or ``(name, output)``: a link from the node that was added under that name.  In a subgraph it
    may be ``(INPUT, name)`` or ``(INPUT, name, value)``: one of the subgraph's own inputs, or a widget of it.

    Args:
        usual: {socket: where a socket of this name that must be connected comes from, unless ``add`` is told}.
    """

    def __init__(self, object_info: dict, downloads: dict[str, Download], usual: dict[str, Link] | None = None):
        self.info, self.downloads, self.usual = object_info, downloads, usual or {}
        self.nodes: list[dict] = []
        self.links: list[tuple[int, int, int | str, int, int, str]] = []
        self.groups: list[dict] = []
        self.ids: dict[str, int] = {}
        self.promoted: list[tuple[int, str, str]] = []  # (node, widget, name outside)
        self.subgraphs: list[dict] = []
        self.margin, self.left, self.top, self.y, self.below, self.width = 0, 0, 0, 0, 0, WIDTH

    def note(self, title: str, text: str) -> None:
        """The note that every shipped workflow begins with, above everything."""
        lines = sum(max(1, len(textwrap.wrap(line, NOTE_LETTERS))) for line in text.splitlines())
        tall = NOTE_FRAME + NOTE_LINE * lines
        self.nodes.append({
            "id": len(self.nodes) + 1, "type": "MarkdownNote", "pos": [0, -tall - NOTE_GAP],
            "size": [NOTE_WIDTH, tall], "flags": {}, "order": len(self.nodes), "mode": 0,
            "inputs": [], "outputs": [], "title": title, "properties": {}, "widgets_values": [text],
            "color": "#432", "bgcolor": "#653"})

    @contextlib.contextmanager
    def group(self, title: str, color: str, width: int = WIDTH) -> Iterator[None]:
        """A titled frame to the right of the previous one, with nodes of this width."""
        first, left, self.width = len(self.nodes), self.left, width
        self.left, self.y = left + PADDING, self.top + TITLE + HEADING
        yield
        self.left += width + PADDING
        inside = self.nodes[first:]
        bottom = max(n["pos"][1] + n["size"][1] for n in inside) + 2 * PADDING
        self.groups.append({"id": len(self.groups) + 1, "title": title, "color": color, "font_size": 24, "flags": {},
                            "bounding": [left, self.top, self.left - left, bottom - self.top]})
        self.left += PADDING
        self.below = max(self.below, bottom)

    def column(self) -> None:
        """Goes on in a new column of the same group."""
        self.left, self.y = self.left + self.width + GAP, self.top + TITLE + HEADING

    def row(self) -> None:
        """Goes on below all groups of this block."""
        self.left, self.top = self.margin, self.below + PADDING

    def block(self) -> None:
        """Goes on at the top, to the right of all groups so far."""
        self.margin = self.left = max(g["bounding"][0] + g["bounding"][2] for g in self.groups) + PADDING
        self.top = self.below = 0

    def add(self, name: str, kind: str, title: str | None = None, /, **inputs: Any) -> None:
        """One node. Names with a dot, such as a growing input's, come in a dictionary: ``**{"images.image0": ...}``.

        Raises:
            ValueError: the node has no such input.
        """
        info, node_id = self.info[kind], len(self.nodes) + 1
        slots = sockets(info, inputs)
        unknown = inputs.keys() - {s.name for s in slots}
        if unknown:
            raise ValueError(f"{kind} has no input {', '.join(unknown)}")
        self.ids[name] = node_id
        needed = {slot.name for slot in slots if not slot.optional and not slot.widget}
        inputs = {k: v for k, v in self.usual.items() if k in needed} | inputs
        linked = {k: v for k, v in inputs.items() if isinstance(v, tuple)}
        given = {k: v for k, v in inputs.items() if k not in linked} | {k: v[2] for k, v in linked.items() if v[2:]}
        values = list(widget_values(info, given))
        stored = []
        for place, slot in enumerate(slots):
            entry = {"name": slot.name, "type": slot.kind, "link": None}
            if slot.optional:
                entry["shape"] = 7
            if slot.widget:
                entry["widget"] = {"name": slot.name}
            if slot.name in linked:
                entry["link"] = self._link(linked[slot.name], node_id, place, slot)
            stored.append(entry)
        names = info.get("output_name") or info["output"]
        outputs = [{"name": n, "type": t, "links": []} for n, t in zip(names, info["output"], strict=True)]
        rows = max(sum(not s.widget for s in slots), len(outputs))
        node = {"id": node_id, "type": kind, "pos": [self.left, self.y], "size": [self.width, height(kind, info, rows)],
                "flags": {}, "order": len(self.nodes), "mode": 0, "inputs": stored, "outputs": outputs,
                "properties": self._properties(kind, values), "widgets_values": values}
        self.nodes.append(node | ({"title": title} if title else {}))
        self.y += node["size"][1] + TITLE + GAP

    def place(self, name: str, blueprint: dict, **sockets: tuple[str, int]) -> None:
        """The box of a blueprint, with links into its sockets."""
        box, node_id = copy.deepcopy(blueprint["nodes"][0]), len(self.nodes) + 1
        self.ids[name] = node_id
        self.subgraphs += blueprint["definitions"]["subgraphs"]
        for place, entry in enumerate(box["inputs"]):
            if entry["name"] in sockets:
                slot = Socket(entry["name"], entry["type"], False, False)
                entry["link"] = self._link(sockets[entry["name"]], node_id, place, slot)
        self.nodes.append(box | {"id": node_id, "pos": [self.left, self.y], "order": len(self.nodes)})
        self.y += box["size"][1] + TITLE + GAP

    def _properties(self, kind: str, values: list) -> dict:
        files = [v for v in values if isinstance(v, str) and v in self.downloads]
        models = [{"name": f, "url": self.downloads[f].url, "directory": self.downloads[f].folder} for f in files]
        return {**(PACK if kind.startswith("InST_") else CORE), "Node name for S&R": kind,
                **({"models": models} if models else {})}

    def _link(self, source: tuple, target: int, place: int, slot: Socket) -> int:
        name, output, *_ = source
        number = len(self.links) + 1
        if name == INPUT:
            self.links.append((number, -10, output, target, place, slot.kind))
            if slot.widget:
                self.promoted.append((target, slot.name, output))
        else:
            kind = self.nodes[self.ids[name] - 1]["outputs"][output]["type"]
            if slot.kind not in ("*", kind) and kind not in slot.kind.split(","):
                raise ValueError(f"{name} gives {kind}, but {slot.name} takes {slot.kind}")
            self.links.append((number, self.ids[name], output, target, place, kind))
        return number

    def _finish(self) -> None:
        for number, source, slot, *_ in self.links:
            if source > 0:
                self.nodes[source - 1]["outputs"][slot]["links"].append(number)

    def document(self) -> dict:
        """The whole file."""
        self._finish()
        return {"last_node_id": len(self.nodes), "last_link_id": len(self.links), "nodes": self.nodes,
                "links": [list(link) for link in self.links], "groups": self.groups, "config": {}, "extra": {},
                "version": 0.4, **({"definitions": {"subgraphs": self.subgraphs}} if self.subgraphs else {})}

    def blueprint(self, name: str, category: str, description: str, inputs: list[str],
                  outputs: dict[str, tuple[str, int]], shown: tuple[str, ...] = ()) -> dict:
        """A file with one node that holds this graph: a subgraph blueprint.

        Args:
            inputs: names of the subgraph's inputs and widgets, in the order in which they are shown.
            outputs: name -> (node, output) of what comes out of it.
            shown: nodes whose previews the box shows.
        """
        starts = [(label, next(link[5] for link in self.links if link[2] == label),
                   [link[0] for link in self.links if link[2] == label]) for label in inputs]
        self.links = [(n, source, inputs.index(slot) if isinstance(slot, str) else slot, *to)
                      for n, source, slot, *to in self.links]
        promoted = sorted(self.promoted, key=lambda widget: inputs.index(widget[2]))
        ends = []
        for place, (label, (node, slot)) in enumerate(outputs.items()):
            kind = self.nodes[self.ids[node] - 1]["outputs"][slot]["type"]
            self.links.append((len(self.links) + 1, self.ids[node], slot, -20, place, kind))
            ends.append((label, kind, [len(self.links)]))
        self._finish()
        widgets = {outside for *_, outside in promoted}
        subgraph_id = str(uuid.uuid5(uuid.NAMESPACE_URL, f"{PACK['cnr_id']}/{name}"))

        def described(side: str, entries: list) -> list[dict]:
            return [{"id": str(uuid.uuid5(uuid.UUID(subgraph_id), f"{side}/{label}")), "name": label, "type": kind,
                     "linkIds": links} for label, kind, links in entries]

        right = max(g["bounding"][0] + g["bounding"][2] for g in self.groups)
        subgraph = {
            "id": subgraph_id, "version": 1, "revision": 0, "name": name, "category": category,
            "description": description, "config": {}, "extra": {}, "widgets": [],
            "state": {"lastGroupId": len(self.groups), "lastNodeId": len(self.nodes), "lastLinkId": len(self.links),
                      "lastRerouteId": 0},
            "inputNode": {"id": -10, "bounding": [-240, 100, 180, 40 + SOCKET * len(starts)]},
            "outputNode": {"id": -20, "bounding": [right + 60, 100, 120, 40 + SOCKET * len(ends)]},
            "inputs": described("input", starts), "outputs": described("output", ends),
            "nodes": self.nodes, "groups": self.groups,
            "links": [dict(zip(("id", "origin_id", "origin_slot", "target_id", "target_slot", "type"), link,
                               strict=True)) for link in self.links]}
        rows = max(len(starts) - len(widgets), len(ends))
        box = {"id": 1, "type": subgraph_id, "pos": [0, 0],
               "size": [WIDTH, SOCKET * rows + FRAME + WIDGET * len(widgets) + TEXT + SHOWN_LATER],
               "flags": {}, "order": 0, "mode": 0,
               "inputs": [{"name": label, "type": kind, "link": None,
                           **({"widget": {"name": label}} if label in widgets else {})} for label, kind, _ in starts],
               "outputs": [{"name": label, "type": kind, "links": []} for label, kind, _ in ends],
               "properties": {
                   **PACK, "proxyWidgets": [[str(node), widget] for node, widget, _ in promoted],
                   "previewExposures": [{"name": node, "sourceNodeId": str(self.ids[node]),
                                         "sourcePreviewName": PREVIEW} for node in shown]},
               "widgets_values": [], "title": name}
        return {"revision": 0, "last_node_id": 1, "last_link_id": 0, "nodes": [box], "links": [], "groups": [],
                "config": {}, "extra": {}, "version": 0.4, "definitions": {"subgraphs": [subgraph]}}
