"""Every node explains itself: in its sockets, and on its help page."""
import asyncio
import inspect
from pathlib import Path
from types import SimpleNamespace

import folder_paths
import pytest
import server
from app.node_replace_manager import NodeReplaceManager
from comfy_api.latest import io
from inst_pack import nodes
from inst_pack.inst_core import host

PAGES = Path(nodes.__file__).parents[1] / "web" / "docs"


@pytest.mark.parametrize("node", nodes.NODES)
def test_every_socket_is_explained(node):
    schema = node.define_schema()
    assert schema.category in ("InST", "InST/compare") and schema.description and schema.search_aliases
    assert not [socket.id or socket.display_name for socket in (*schema.inputs, *schema.outputs) if not socket.tooltip]
    page = (PAGES / f"{schema.node_id}.md").read_text(encoding="utf-8")
    missing = [socket.id for socket in schema.inputs if not named(socket, page)]
    assert not missing, f"the help page says nothing of {missing}"


def named(socket, page: str) -> bool:
    """By its id, the name it shows, or what a numbered series has in common (``file_1``)."""
    names = socket.id, socket.id.replace("_", " "), socket.display_name, socket.id.partition("_")[0]
    return any(name.lower() in page.lower() for name in names if name)


@pytest.mark.parametrize("node", nodes.NODES)
def test_execute_takes_the_sockets(node):
    assert {socket.id for socket in node.define_schema().inputs} == {*inspect.signature(node.execute).parameters}


@pytest.mark.parametrize("node", [node for node in nodes.NODES if "validate_inputs" in vars(node)])
def test_what_another_node_says_is_for_the_run_to_judge(node, folders):
    """The host asks with None in the place of a widget that is connected: a name from a text node, for instance."""
    lpips = Path(folder_paths.models_dir, host.files.TRANSFER_FOLDER, "lpips-alex.safetensors")
    lpips.parent.mkdir(parents=True)
    lpips.touch()
    widgets = dict.fromkeys(inspect.signature(node.validate_inputs).parameters)
    assert node.validate_inputs(**widgets) is True


@pytest.mark.parametrize("node", nodes.NODES)
def test_values_of_other_nodes_are_held_to_the_widget(node):
    """The host holds to its range what is typed, not what is connected."""
    widgets = {widget.id: widget for widget in node.define_schema().inputs}
    fine = {name: widget.options[0] if isinstance(widget, io.Combo.Input) else getattr(widget, "default", None)
            for name, widget in widgets.items()}
    for name in widgets.keys() - inspect.signature(node.validate_inputs).parameters:
        match widget := widgets[name]:
            case io.Combo.Input():
                wrong = ["nothing"]
            case io.Int.Input() | io.Float.Input():
                wrong = [widget.min - 1, widget.max * 2, float("nan"), None]
            case _:
                continue
        for value in wrong:
            with pytest.raises(ValueError, match=f"^{widget.display_name or name} is {value!r}; expected "):
                node.execute(**fine | {name: value})


def test_the_editor_is_told_of_renamed_nodes(monkeypatch):
    renamed = io.NodeReplace(new_node_id="InST_Sample", old_node_id="InST_Old", old_widget_ids=["seed"])
    manager = NodeReplaceManager()
    monkeypatch.setattr(server.PromptServer, "instance", SimpleNamespace(node_replace_manager=manager), raising=False)
    monkeypatch.setattr(nodes.host.routes, "add_routes", lambda: None)
    monkeypatch.setattr(nodes, "REPLACED", (renamed,))
    asyncio.run(nodes.InSTExtension().on_load())
    assert manager.get_replacement("InST_Old") == [renamed]
