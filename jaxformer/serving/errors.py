"""Errors with the status and the body that clients of OpenAI's interface expect."""

import logging
import traceback
from typing import Any

from jaxformer.generation.scheduler import QueueFullError
from jaxformer.schema import UserError

LOG = logging.getLogger("jaxformer.serving")
TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    404: "not_found_error",
    413: "invalid_request_error",
}
TYPES |= {405: "invalid_request_error", 429: "rate_limit_error", 503: "overloaded_error", 504: "timeout_error"}


class ApiError(Exception):
    """An answer that is an error.

    Attributes:
        status: of HTTP.
        message: one line.
        param: the key of the request that is meant.
        code: a short name that programs can compare.
    """

    def __init__(self, status: int, message: str, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code

    @property
    def body(self) -> dict[str, Any]:
        """The body of the answer."""
        kind = TYPES.get(self.status, "server_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


def api_error(error: Exception) -> ApiError:
    """The answer to an exception; one that is no fault of the request is logged, and its answer says nothing of it."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, QueueFullError):
        return ApiError(429, str(error), code="queue_full")
    if isinstance(error, UserError):
        return ApiError(400, str(error))
    LOG.error("".join(traceback.format_exception(error)))
    return ApiError(500, "the server failed on this request; its log says why", code="internal_error")
