"""Every node explains itself: in its sockets, and on its help page."""
import asyncio
import inspect
from pathlib import Path
from types import SimpleNamespace

import pytest
import server
from app.node_replace_manager import NodeReplaceManager
from comfy_api.latest import io
from inst_pack import nodes

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


def test_the_editor_is_told_of_renamed_nodes(monkeypatch):
    renamed = io.NodeReplace(new_node_id="InST_Sample", old_node_id="InST_Old", old_widget_ids=["seed"])
    manager = NodeReplaceManager()
    monkeypatch.setattr(server.PromptServer, "instance", SimpleNamespace(node_replace_manager=manager), raising=False)
    monkeypatch.setattr(nodes.host.routes, "add_routes", lambda: None)
    monkeypatch.setattr(nodes, "REPLACED", (renamed,))
    asyncio.run(nodes.InSTExtension().on_load())
    assert manager.get_replacement("InST_Old") == [renamed]
