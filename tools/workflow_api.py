"""Workflows as users save them (UI format) turned into prompts as the server runs them (API format)."""
from typing import Any

WIDGET_TYPES = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"}
NOTES = {"Note", "MarkdownNote"}
MUTED, BYPASSED = 2, 4


class WorkflowError(ValueError):
    """A workflow that cannot become a prompt; the message names the node."""


def is_widget(spec: list) -> bool:
    """Whether an input of ``/object_info`` is edited in the node: a combo (a list of options) or a plain value."""
    kind, options = spec[0], spec[1] if len(spec) > 1 else {}
    return (isinstance(kind, list) or kind in WIDGET_TYPES) and not options.get("forceInput")


def inputs_of(info: dict) -> dict[str, list]:
    """{input name: spec} of a node in the order in which widget values are stored."""
    order, groups = info.get("input_order", {}), info["input"]
    names = [(g, n) for g in ("required", "optional") for n in order.get(g, groups.get(g, {}))]
    return {name: groups[group][name] for group, name in names}


def widget_values(node: dict, info: dict) -> dict[str, Any]:
    """{widget name: value}; values are stored by position, and a seed's control takes a place of its own."""
    stored = node.get("widgets_values") or []
    if isinstance(stored, dict):
        return {name: stored[name] for name in inputs_of(info) if name in stored}
    values, position = {}, 0
    for name, spec in inputs_of(info).items():
        if not is_widget(spec) or position >= len(stored):
            continue
        values[name] = stored[position]
        options = spec[1] if len(spec) > 1 else {}
        position += 2 if options.get("control_after_generate") else 1
    return values


def to_api(workflow: dict, object_info: dict) -> dict[str, dict]:
    """The prompt of a workflow.

    Notes are left out, reroutes and bypassed nodes are passed through, muted nodes vanish.

    Args:
        workflow: UI format, as in ``workflows/*.json``.
        object_info: the server's ``/object_info``.

    Raises:
        WorkflowError: an unknown node type, or a subgraph.
    """
    nodes = {n["id"]: n for n in workflow["nodes"]}
    links = {link[0]: link for link in workflow["links"]}

    def source(link_id: int) -> Any:
        """[node id, slot] that really feeds a link, a primitive's value, or None."""
        _, origin, slot, _, _, kind = links[link_id][:6]
        node = nodes[origin]
        if node["type"] == "PrimitiveNode":
            return node["widgets_values"][0]
        if node["type"] == "Reroute" or node.get("mode") == BYPASSED:
            through = [i["link"] for i in node.get("inputs", ()) if i.get("link") is not None
                       and (node["type"] == "Reroute" or i["type"] == kind)]
            return source(through[0]) if through else None
        return None if node.get("mode") == MUTED else [str(origin), slot]

    prompt = {}
    for node in workflow["nodes"]:
        kind = node["type"]
        if kind in NOTES | {"Reroute", "PrimitiveNode"} or node.get("mode") in (MUTED, BYPASSED):
            continue
        if kind not in object_info:
            raise WorkflowError(f"node {node['id']} has type {kind}, which the server does not know. Install the pack "
                                "it belongs to, or unpack the subgraph.")
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
