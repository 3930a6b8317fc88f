"""A small client of ComfyUI's HTTP API."""
import asyncio
import json
import time
import uuid
from collections.abc import Callable

import aiohttp
import requests

SECONDS = 60  # for an answer of the server


class PromptError(RuntimeError):
    """The server refused a prompt, or a node of it failed. ``node_errors`` and ``messages`` hold what it said."""

    def __init__(self, message: str, node_errors: dict | None = None):
        super().__init__(message)
        self.node_errors = node_errors or {}


class Client:
    """One session with a running ComfyUI."""

    def __init__(self, url: str):
        self.url = url.rstrip("/")
        self.id = uuid.uuid4().hex

    def _ask(self, method: str, path: str, **options) -> requests.Response:
        answer = requests.request(method, f"{self.url}{path}", timeout=SECONDS, **options)
        answer.raise_for_status()
        return answer

    def get(self, path: str, **query):
        """What the server answers: JSON as what it stands for, anything else as bytes."""
        answer = self._ask("GET", path, params=query)
        return answer.json() if "json" in answer.headers["Content-Type"] else answer.content

    def post(self, path: str, data: dict | None = None):
        answer = self._ask("POST", path, json=data or {})
        return answer.json() if answer.content else None

    def upload(self, name: str, picture: bytes) -> str:
        """Puts a PNG into the server's input folder; returns its name there."""
        return self._ask("POST", "/upload/image", data={"overwrite": "true"},
                         files={"image": (name, picture, "image/png")}).json()["name"]

    def object_info(self) -> dict:
        return self.get("/object_info")

    def queue(self, prompt: dict, workflow: dict | None = None) -> str:
        """The id of the queued prompt.

        Raises:
            PromptError: the server's validation refused it.
        """
        extra = {"extra_pnginfo": {"workflow": workflow}} if workflow else {}
        try:
            answer = self.post("/prompt", {"prompt": prompt, "client_id": self.id, "extra_data": extra})
        except requests.HTTPError as error:
            said = error.response.json()
            details = [f"{e['message']}: {e['details']}" for n in said["node_errors"].values() for e in n["errors"]]
            raise PromptError("; ".join(details) or said["error"]["message"], said["node_errors"]) from error
        return answer["prompt_id"]

    def wait(self, prompt_id: str, timeout: float = 600) -> dict:
        """The history entry of a prompt once it is done.

        Raises:
            PromptError: a node failed, or the prompt was interrupted.
            TimeoutError: not done in ``timeout`` seconds.
        """
        end = time.monotonic() + timeout
        while time.monotonic() < end:
            entry = self.get(f"/history/{prompt_id}").get(prompt_id)
            if entry and entry["status"]["completed"]:
                return entry
            if entry and entry["status"]["status_str"] == "error":
                raise PromptError(_reason(entry))
            time.sleep(0.2)
        raise TimeoutError(f"prompt {prompt_id} was not done after {timeout:.0f} s")

    def follow(self, show: Callable[[dict], None], queue: Callable[[], str]) -> dict:
        """Queues a prompt and returns its history entry, showing the server's messages as they come.

        Args:
            show: gets every message (``progress``, ``executing``, ...).
            queue: called once messages are being listened to; returns the prompt's id.
        """
        return self.wait(asyncio.run(self._listen(show, queue)))

    async def _listen(self, show: Callable[[dict], None], queue: Callable[[], str]) -> str:
        address = f"{self.url.replace('http', 'ws', 1)}/ws?clientId={self.id}"
        async with aiohttp.ClientSession() as session, session.ws_connect(address, max_msg_size=0) as messages:
            prompt_id = queue()
            async for message in messages:
                if message.type == aiohttp.WSMsgType.TEXT:  # the others are preview pictures
                    said = json.loads(message.data)
                    show(said)
                    if said["type"] in ("execution_success", "execution_error", "execution_interrupted"):
                        break
            return prompt_id


def saved_pictures(entry: dict) -> list[dict[str, str]]:
    """What Save Image wrote, of a history entry: filename, subfolder and type of each, as ``/view`` takes them."""
    return [i for o in entry["outputs"].values() for i in o.get("images", ()) if i["type"] == "output"]


def _reason(entry: dict) -> str:
    for kind, data in entry["status"]["messages"]:
        if kind == "execution_error":
            return f"{data['node_type']}: {data['exception_message'].strip()}"
        if kind == "execution_interrupted":
            return f"interrupted in {data['node_type']}"
    return "the prompt failed without a message"
