"""What the web extension (web/inst.js) asks the server for."""
from aiohttp import web
from server import PromptServer

from .. import incoming
from .files import library_folders, searched_folders, style_folders


async def keep_style(request: web.Request) -> web.Response:
    """POST /inst/styles?name=FILE with a style file as the body -> {"name": as Load InST Style lists it}."""
    try:
        name = incoming.keep(request.query.get("name", ""), await request.read(),
                             [folder for folder in style_folders() if folder in library_folders()], library_folders(),
                             searched_folders())
    except (ValueError, OSError) as error:
        return web.json_response({"error": str(error)}, status=400)
    return web.json_response({"name": name})


def add_routes() -> None:
    """Without a server (tests, tools) it does nothing."""
    if (server := getattr(PromptServer, "instance", None)) is not None:
        server.routes.post("/inst/styles")(keep_style)
