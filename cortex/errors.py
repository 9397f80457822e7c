"""
The one error tree: every error a client or an operator sees is a `CortexError`.

A class fixes code, status and type (docs/http-api.md lists them); an instance adds the sentence,
what to do about it and the figures.  Messages are lower case, without a full stop, and name the
thing and its value.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar


class CortexError(Exception):
    """
    Something we can explain to the caller.

    Attributes:
        code: Stable snake_case identifier; clients and tests match on it.
        status: The HTTP status a server answers with.
        type: The `error.type` of the OpenAI envelope.
        hint: What the reader can do about it, or an empty string.
        param: The request field at fault, as a path such as ``messages[2].content``.
        retry_after_s: Seconds after which trying again makes sense.
        details: Further members of the error object, JSON values only.
    """

    code: ClassVar[str] = "internal_error"
    status: ClassVar[int] = 500
    type: ClassVar[str] = "server_error"
    retry_after_s: float | None = None

    def __init__(
        self,
        message: str,
        *,
        hint: str = "",
        param: str | None = None,
        retry_after_s: float | None = None,
        details: Mapping[str, object] | None = None,
    ) -> None:
        super().__init__(message)
        self.message, self.hint, self.param = message, hint, param
        self.details = dict(details or {})
        self.retry_after_s = self.retry_after_s if retry_after_s is None else retry_after_s

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message


class ConfigError(CortexError):
    """The configuration cannot be used; the message names file and key of each mistake."""

    code = "config"
    mistakes: tuple[ConfigError, ...] = ()

    @classmethod
    def of(cls, mistakes: Sequence[ConfigError]) -> ConfigError:
        """Return the one error that says all *mistakes*."""
        if len(mistakes) == 1:
            return mistakes[0]
        error = cls("; ".join(map(str, mistakes)))
        error.mistakes = tuple(each for mistake in mistakes for each in mistake.each)
        return error

    @property
    def each(self) -> tuple[ConfigError, ...]:
        """The mistakes it is about, one error for each."""
        return self.mistakes or (self,)


class PluginError(CortexError):
    """A plugin cannot be loaded or broke a registration rule."""

    code = "plugin"


class RemoteError(CortexError):
    """What a server answered to a client of ours; the instance carries code and status."""

    def __init__(self, message: str, *, code: str, status: int, **more: object) -> None:
        super().__init__(message, details=more)
        self.__dict__.update(code=code, status=status)


# What a client of the inference API can cause.


class InvalidRequest(CortexError):
    """A field has a value we cannot honour."""

    code = "invalid_value"
    status = 400
    type = "invalid_request_error"


class InvalidJson(InvalidRequest):
    """The body is not JSON."""

    code = "invalid_json"


class MissingParameter(InvalidRequest):
    """A required field is absent."""

    code = "missing_required_parameter"


class UnsupportedParameter(InvalidRequest):
    """A field we know and cannot honour; it is never silently ignored."""

    code = "unsupported_parameter"


class ContextLengthExceeded(InvalidRequest):
    """The prompt does not fit the model's context; details: prompt_tokens, context_tokens."""

    code = "context_length_exceeded"


class VisionUnsupported(InvalidRequest):
    """The model sees no images."""

    code = "vision_unsupported"


class InvalidImage(InvalidRequest):
    """An image cannot be had, read or shown; the message says which, and why."""

    code = "invalid_image"


class OperationUnsupported(InvalidRequest):
    """The model cannot do this at all: embed, or chat."""

    code = "unsupported_operation"


class ToolsUnsupported(InvalidRequest):
    """The model's chat template does not know tools."""

    code = "tools_unsupported"
    status = 422


class NotAuthenticated(InvalidRequest):
    """A key or token is missing or wrong."""

    code = "invalid_api_key"
    status = 401


class PermissionDenied(InvalidRequest):
    """The key is known and may not do this."""

    code = "permission_denied"
    status = 403
    type = "permission_error"


class ModelNotAllowed(PermissionDenied):
    """The key is known and may not use this model."""

    code = "model_not_allowed"


class RouteNotFound(InvalidRequest):
    """No such path, or nothing there by this name."""

    code = "not_found"
    status = 404


class MethodNotAllowed(InvalidRequest):
    """The path does not take this method."""

    code = "method_not_allowed"
    status = 405


class ModelNotFound(InvalidRequest):
    """No model or alias has this name."""

    code = "model_not_found"
    status = 404


class ReloadRefused(InvalidRequest):
    """The configuration cannot be used as it is now; the one before stays."""

    code = "reload_refused"
    status = 422


class ReplyNotFound(InvalidRequest):
    """No answer is kept under this id."""

    code = "response_not_found"
    status = 404


class PreviousReplyNotFound(InvalidRequest):
    """A request goes on from an answer that is not kept."""

    code = "previous_response_not_found"


class RequestTimeout(InvalidRequest):
    """The client did not send the rest of its request."""

    code = "request_timeout"
    status = 408


class RequestTooLarge(InvalidRequest):
    """The body is over the limit."""

    code = "request_too_large"
    status = 413


class ModelNotFeasible(InvalidRequest):
    """No node of this fleet could ever hold the model."""

    code = "model_not_feasible"
    status = 422


# What the fleet can be short of.


class QueueFull(CortexError):
    """Too many requests wait for this model already."""

    code = "queue_full"
    status = 429
    type = "rate_limit_error"
    retry_after_s = 5.0


class RateLimited(CortexError):
    """A limit of the key, or of a server we ask for the client, is reached for now."""

    code = "rate_limit_exceeded"
    status = 429
    type = "rate_limit_error"
    retry_after_s = 5.0


class InsufficientQuota(RateLimited):
    """The key's budget of tokens is spent."""

    code = "insufficient_quota"


class QueueTimeout(CortexError):
    """The request waited too long for its turn; details: position."""

    code = "queue_timeout"
    status = 503
    type = "overloaded_error"
    retry_after_s = 5.0


class ModelLoading(CortexError):
    """The model is still loading; the details say how far."""

    code = "model_loading"
    status = 503
    type = "overloaded_error"
    retry_after_s = 10.0


class NoNodeAvailable(CortexError):
    """No healthy node can serve the model now."""

    code = "no_node_available"
    status = 503
    type = "api_error"
    retry_after_s = 5.0


class LoadFailed(CortexError):
    """The model could not be loaded; the message is the cause."""

    code = "load_failed"
    status = 503
    type = "api_error"
    retry_after_s = 10.0


class ShuttingDown(CortexError):
    """The gateway is about to stop, and takes nothing new."""

    code = "shutting_down"
    status = 503
    type = "overloaded_error"
    retry_after_s = 5.0


class RequestCancelled(CortexError):
    """An operator cancelled the request."""

    code = "request_cancelled"
    status = 499
    type = "api_error"


class UpstreamUnreachable(CortexError):
    """A neuron did not answer."""

    code = "upstream_unreachable"
    status = 502
    type = "api_error"
    retry_after_s = 1.0


class UpstreamDied(CortexError):
    """A neuron died while it answered."""

    code = "upstream_died"
    status = 502
    type = "api_error"


class UpstreamFailed(CortexError):
    """A server we ask for the client answered with a fault of its own."""

    code = "upstream_failed"
    status = 502
    type = "api_error"


# What a neuron answers to a load, an unload or an inference request.


class RepoFetchFailed(CortexError):
    """The weights could not be fetched."""

    code = "repo_fetch_failed"
    status = 422
    type = "invalid_request_error"


class EmptyRepo(RepoFetchFailed):
    """The place exists and holds no weights we can read."""

    code = "empty_repo"


class QuantNotFound(RepoFetchFailed):
    """The repository has no file of this quantisation; details: requested, available, nearest."""

    code = "quant_not_found"


class UnsupportedArchitecture(RepoFetchFailed):
    """The engine cannot run this kind of model; details: model_type, supported."""

    code = "unsupported_architecture"


class TensorParallelNotSupported(RepoFetchFailed):
    """The harness cannot split the model over this many devices."""

    code = "tp_not_supported"


class InsufficientVram(CortexError):
    """The device has too little free memory; details: needed_mb, free_mb."""

    code = "insufficient_vram"
    status = 507
    type = "api_error"


class DeviceUnavailable(CortexError):
    """The device is recovering or gone."""

    code = "device_unavailable"
    status = 503
    type = "api_error"
    retry_after_s = 5.0


class DeviceBusy(CortexError):
    """The device has models on it; details: models."""

    code = "device_busy"
    status = 409
    type = "api_error"


class ModelBusy(CortexError):
    """The model has requests in flight; details: in_flight."""

    code = "model_busy"
    status = 409
    type = "api_error"
