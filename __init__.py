"""ComfyUI-InST: learn the style of one painting and repaint photographs in it."""
if __package__:  # ComfyUI imports this folder as a package; tools that only look at the root do not.
    from .nodes import InSTExtension

    WEB_DIRECTORY = "./web"

    async def comfy_entrypoint() -> InSTExtension:
        return InSTExtension()
