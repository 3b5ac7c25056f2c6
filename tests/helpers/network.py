"""What a container needs to reach package indexes as this machine does: certificates, wheels beside, pip's settings."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

PREFIXES = ("PIP_", "UV_", "SSL_CERT", "REQUESTS_CA", "CURL_CA")
VARIABLES = ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy")


def arguments() -> Iterator[str]:
    """Arguments of `docker run` for the network of this machine; only tests give a container one."""
    yield from ("--network", "host")
    for name, value in sorted(os.environ.items()):
        if name.startswith(PREFIXES) or name in VARIABLES:
            yield from ("--env", f"{name}={value}")
            if value.startswith("/") and os.path.exists(value):  # noqa: PTH110 - a text of the environment's
                yield from ("--volume", f"{value}:{value}:ro")
    settings = [Path("/etc/pip.conf"), Path.home() / ".config/pip/pip.conf"]
    for path in settings[:1] if settings[0].exists() else settings[1:]:
        if path.exists():
            yield from ("--volume", f"{path}:/etc/pip.conf:ro")
