"""Downloads from model hubs that fail fast without a network, and then use the local cache."""

import socket
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlparse

from huggingface_hub import constants

from clearhead.models.errors import ModelError

_SECONDS = 3.0

LOCAL = (
    "give local files (timm:NAME@FILE, torchvision:NAME@FILE, hf:FOLDER or FOLDER), or pretrained=False for random "
    "weights"
)


@contextmanager
def hub_access(url: str | None = None) -> Iterator[bool]:
    """A block that downloads from a hub, by default Hugging Face's; yields whether the hub is out of reach.

    If it is, the block runs in the offline mode of huggingface_hub, which reads the local cache at once instead of
    retrying. An OSError in it becomes a ModelError that advises local files.
    """
    before = constants.HF_HUB_OFFLINE
    offline = before or not _reachable(url or constants.ENDPOINT)
    constants.HF_HUB_OFFLINE = offline
    try:
        yield offline
    except OSError as error:  # also what the clients of the hubs raise
        if offline:
            raise ModelError(f"the hub is out of reach and the local cache has no copy: {LOCAL}") from error
        text = " ".join(str(error).split())[:300].rstrip(".")
        raise ModelError(f"the hub gave no weights or config ({type(error).__name__}: {text}): {LOCAL}") from error
    finally:
        constants.HF_HUB_OFFLINE = before


def _reachable(url: str) -> bool:
    """Whether the host of a URL, or the proxy that leads to it, accepts a connection within 3 seconds."""
    parts = urlparse(urllib.request.getproxies().get(urlparse(url).scheme) or url)
    address = (parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80))
    connected = threading.Event()

    def connect() -> None:
        try:
            socket.create_connection(address, _SECONDS).close()
        except OSError:
            return
        connected.set()

    thread = threading.Thread(target=connect, daemon=True)  # looking up a name has no timeout
    thread.start()
    thread.join(_SECONDS)
    return connected.is_set()
