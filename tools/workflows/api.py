"""Workflows as users save them (UI format) turned into prompts as the server runs them (API format)."""
from collections.abc import Iterator
from typing import Any

WIDGET_TYPES = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"}
DYNAMIC_COMBO = "COMFY_DYNAMICCOMBO_V3"
AUTOGROW = "COMFY_AUTOGROW_V3"  # its sockets are called images.image0, images.image1, ...
NOTES = {"Note", "MarkdownNote"}
MUTED, BYPASSED = 2, 4


class WorkflowError(ValueError):
    """A workflow that cannot become a prompt; the message names the node."""


def options_of(spec: list) -> dict:
    return spec[1] if len(spec) > 1 else {}


def is_widget(spec: list) -> bool:
    """Whether an input of ``/object_info`` is edited in the node: a combo (a list of options) or a plain value."""
    return (isinstance(spec[0], list) or spec[0] in WIDGET_TYPES) and not options_of(spec).get("forceInput")


def has_control(name: str, spec: list) -> bool:
    """Whether a number has a 'control after generate' below it. Those called seed do, unless they say otherwise."""
    default = spec[0] == "INT" and name in ("seed", "noise_seed")
    return bool(options_of(spec).get("control_after_generate", default))


def inputs_of(info: dict) -> dict[str, list]:
    """{input name: spec} of a node, or of one choice of a dynamic combo, in the order in which values are stored."""
    order, groups = info.get("input_order", {}), info.get("input") or info["inputs"]
    names = [(g, n) for g in ("required", "optional") for n in order.get(g, groups.get(g, {}))]
    return {name: groups[group][name] for group, name in names}


def widget_values(node: dict, info: dict) -> dict[str, Any]:
    """{widget name: value}; values are stored by position, and a seed's control takes a place of its own.

    A dynamic combo called ``mode`` is followed by the widgets of its choice, called ``mode.strength`` and so on.
    """
    stored = node.get("widgets_values") or []
    if isinstance(stored, dict):
        return {name: stored[name] for name in inputs_of(info) if name in stored}
    return dict(_read(iter(stored), inputs_of(info)))


def _read(stored: Iterator, inputs: dict[str, list], prefix: str = "") -> Iterator[tuple[str, Any]]:
    end = object()
    for name, spec in inputs.items():
        if not is_widget(spec) and spec[0] != DYNAMIC_COMBO:
            continue
        value = next(stored, end)
        if value is end:  # saved before the node got this input
            return
        yield prefix + name, value
        if spec[0] == DYNAMIC_COMBO:
            for choice in options_of(spec)["options"]:
                if choice["key"] == value:
                    yield from _read(stored, inputs_of(choice), f"{prefix}{name}.")
        elif has_control(name, spec):
            next(stored, None)


def to_api(workflow: dict, object_info: dict) -> dict[str, dict]:
    """The prompt of a workflow.

    Notes are left out, reroutes and bypassed nodes are passed through, muted nodes vanish.

    Args:
        workflow: UI format, as in ``workflows/*.json``.
        object_info: the server's ``/object_info``.

    Raises:
        WorkflowError: not a workflow in UI format, an unknown node type, a subgraph, or a link from nowhere.
    """
    if not isinstance(workflow.get("nodes"), list):
        raise WorkflowError("this is no workflow in UI format: it has no list of nodes. Save it with Workflow > Save, "
                            "not with Export (API).")
    nodes = {n["id"]: n for n in workflow["nodes"]}
    links = {link[0]: link for link in workflow["links"]}
    subgraphs = {s["id"]: s["name"] for s in workflow.get("definitions", {}).get("subgraphs", ())}

    def source(link_id: int) -> Any:
        """[node id, slot] that really feeds a link, a primitive's value, or None."""
        link = links.get(link_id)
        if link is None or link[1] not in nodes:
            raise WorkflowError(f"link {link_id} comes from nowhere. Open the workflow in ComfyUI and save it again.")
        origin, slot, kind = link[1], link[2], link[5]
        node = nodes[origin]
        if node["type"] == "PrimitiveNode":
            return node["widgets_values"][0]
        if node["type"] == "Reroute" or node.get("mode") == BYPASSED:
            through = _input_behind(node, slot, kind)
            return None if through is None else source(through)
        return None if node.get("mode") == MUTED else [str(origin), slot]

    prompt = {}
    for node in workflow["nodes"]:
        kind = node["type"]
        if kind in NOTES | {"Reroute", "PrimitiveNode"} or node.get("mode") in (MUTED, BYPASSED):
            continue
        if kind in subgraphs:
            raise WorkflowError(f"node {node['id']} is the subgraph '{subgraphs[kind]}'. Unpack it in ComfyUI first.")
        if kind not in object_info:
            raise WorkflowError(f"node {node['id']} has type {kind}, which the server does not know. Install the pack "
                                "it belongs to.")
        inputs = widget_values(node, object_info[kind])
        for socket in node.get("inputs", ()):
            if socket.get("link") is None:
                continue
            value = source(socket["link"])
            if value is not None:
                inputs[socket["name"]] = value
        title = node.get("title") or object_info[kind].get("display_name") or kind
        prompt[str(node["id"])] = {"class_type": kind, "inputs": inputs, "_meta": {"title": title}}
    return prompt


def _input_behind(node: dict, slot: int, kind: str) -> int | None:
    """The link into a reroute or bypassed node that its output ``slot`` passes on.

    That is the input at the same place if it has the output's type, or else the first one that has it.
    """
    inputs = node.get("inputs", [])
    if node["type"] == "Reroute":
        return inputs[0].get("link")
    same_type = [i for i in inputs if i["type"] == kind]
    if slot < len(inputs) and inputs[slot] in same_type:
        return inputs[slot].get("link")
    return same_type[0].get("link") if same_type else None
