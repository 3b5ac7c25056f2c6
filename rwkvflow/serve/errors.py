"""Errors as OpenAI's API has them: `{"error": {"message", "type", "param", "code"}}` and a status."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

KINDS = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    408: "timeout_error",
    413: "invalid_request_error",
    415: "invalid_request_error",
    421: "invalid_request_error",
    429: "rate_limit_error",
    500: "server_error",
    503: "server_error",
    507: "server_error",
}


class ApiError(Exception):
    """A request that is answered with an error. `param` names what of the request is wrong, where it is one thing."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.headers = dict(headers or {})

    def body(self) -> dict[str, Any]:
        """What is sent."""
        kind = KINDS.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


def busy(waiting: int, seconds: int) -> ApiError:
    """Nobody else can wait now; in so many seconds there may be room."""
    return ApiError(
        429,
        f"{waiting} requests are waiting already; try again in {seconds} s",
        code="queue_full",
        headers={"retry-after": str(seconds)},
    )


def closing(message: str) -> ApiError:
    """Nothing is begun any more."""
    return ApiError(503, message, code="closing", headers={"retry-after": "1"})
