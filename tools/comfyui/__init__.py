"""ComfyUI as tools reach it: a running server over HTTP, or its modules in this process."""
