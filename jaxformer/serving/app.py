"""The ASGI application: routes, keys, limits, and errors as clients expect them."""

import asyncio
import hmac
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any, TypeVar

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException

from jaxformer.serving import bodies, encoders
from jaxformer.serving.completions import ChatAnswer, CompletionAnswer, by_batch, chat_ids
from jaxformer.serving.errors import ApiError, api_error
from jaxformer.serving.measures import Measures
from jaxformer.serving.served import Limits, Served

OPEN = ("/health",)  # paths that need no key
USED = 499  # the status, in the counts alone, of a client that went away

Result = TypeVar("Result")


class Limiter:
    """ASGI middleware: the key, the size of a body, counts, and errors of every kind as JSON."""

    def __init__(self, app: Any, limits: Limits, key: str | None, measures: Measures) -> None:
        self.app, self.limits, self.key, self.measures = app, limits, key, measures

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Handles one connection."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        start, status, read = time.monotonic(), USED, 0

        async def counted() -> Any:
            nonlocal read
            message = await receive()
            read += len(message.get("body", b""))
            if read > self.limits.body:
                raise _TooLarge
            return message

        async def noted(message: Any) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            self._check(scope)
            await self.app(scope, counted, noted)
        except _TooLarge:
            if status == USED:
                await self._refuse(ApiError(413, self._too_large(f"more than {self.limits.body}")), scope, noted)
        except ApiError as error:
            await self._refuse(error, scope, noted)
        except Exception as error:
            found = api_error(error)
            if status == USED:
                await self._refuse(found, scope, noted)
        finally:
            route = getattr(scope.get("route"), "path", "other")
            self.measures.requests.labels(route, status).inc()
            self.measures.seconds.labels(route).observe(time.monotonic() - start)

    def _check(self, scope: Any) -> None:
        headers = dict(scope["headers"])
        if self.key is not None and scope["path"] not in OPEN and scope["method"] != "OPTIONS":
            given = headers.get(b"authorization", b"")
            if not hmac.compare_digest(given, b"Bearer " + self.key.encode()):
                said = "is missing" if not given else "is wrong"
                raise ApiError(401, f"the API key {said}, expected Authorization: Bearer KEY", code="invalid_api_key")
        size = headers.get(b"content-length", b"0")
        if size.isdigit() and int(size) > self.limits.body:
            raise ApiError(413, self._too_large(size.decode()))

    def _too_large(self, size: str) -> str:
        return f"the body has {size} bytes, expected at most {self.limits.body}"

    async def _refuse(self, error: ApiError, scope: Any, send: Any) -> None:
        with suppress(Exception):  # the client may be gone
            await JSONResponse(error.body, error.status)(scope, _nothing, send)


class _TooLarge(Exception):  # noqa: N818
    """The body of a request is longer than it may be."""


async def _nothing() -> Any:
    return {"type": "http.disconnect"}


async def unless_gone(request: Any, work: Awaitable[Result]) -> Result:
    """The result of some work, which ends if the client goes away.

    Raises:
        ApiError: the client went away.
    """

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    task, watch = asyncio.ensure_future(work), asyncio.ensure_future(gone())
    try:
        await asyncio.wait((task, watch), return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ApiError(USED, "the client went away")
    finally:
        for one in (task, watch):
            one.cancel()
            with suppress(asyncio.CancelledError, Exception):
                await one


def build_app(
    served: Mapping[str, Served], limits: Limits, *, key: str | None = None, origins: Sequence[str] = ()
) -> Any:
    """The application of some models, for an ASGI server.

    Args:
        served: the models by their names.
        limits: of requests.
        key: that requests must have; None: any may ask.
        origins: of pages in browsers that may ask (CORS); none by default.
    """
    measures = Measures(served)

    @asynccontextmanager
    async def lifespan(app: Any) -> AsyncIterator[None]:
        yield
        # Requests are answered by now, or their time to finish is over.
        for one in served.values():
            one.close(finish=False)

    app = FastAPI(title="jaxformer", lifespan=lifespan, openapi_url="/openapi.json", redoc_url=None, docs_url=None)
    app.state.measures = measures

    def answer(error: Exception) -> Any:
        found = api_error(error)
        return JSONResponse(found.body, found.status)

    @app.exception_handler(ApiError)
    async def refused(request: Any, error: ApiError) -> Any:
        return answer(error)

    @app.exception_handler(RequestValidationError)
    async def unread(request: Any, error: RequestValidationError) -> Any:
        return answer(invalid(error.errors()))

    @app.exception_handler(HTTPException)
    async def unknown(request: Any, error: HTTPException) -> Any:
        # FastAPI says of whatever happened while a body was read that it cannot be parsed.
        if isinstance(error.__cause__, _TooLarge):
            return answer(ApiError(413, f"the body is too long, expected at most {limits.body} bytes"))
        if error.status_code == 400:
            return answer(ApiError(400, "the body is no JSON in UTF-8"))
        said = f"{request.method} {request.url.path}: {error.detail}; see /openapi.json for what there is"
        return answer(ApiError(error.status_code, said))

    def find(name: str, use: str) -> Served:
        if name not in served:
            known = ", ".join(served)
            raise ApiError(404, f"there is no model {name!r}, expected one of {known}", "model", "model_not_found")
        if use not in served[name].uses:
            able = ", ".join(served[name].uses)
            raise ApiError(400, f"the model {name!r} has no {use}, expected a request for its {able}", "model")
        return served[name]

    async def texts(request: Any, make: Callable[[], Any]) -> Any:
        """The answer to a request for texts, at once or as a stream."""
        try:
            made = make()
            if made.streams:
                headers = {"Cache-Control": "no-cache"}
                return StreamingResponse(made.stream(), media_type="text/event-stream", headers=headers)
            return JSONResponse(await unless_gone(request, made.whole()))
        except Exception as error:
            return answer(error)

    @app.get("/health")
    async def health() -> Any:
        return {"status": "ok"}

    @app.get("/metrics")
    async def metrics() -> Any:
        page, kind = measures.page()
        return Response(page, media_type=kind)

    def card(one: Served) -> dict[str, Any]:
        about = {"id": one.name, "object": "model", "created": one.created, "owned_by": "jaxformer"}
        return {**about, "uses": list(one.uses), "max_model_len": one.longest}

    @app.get("/v1/models")
    async def models() -> Any:
        return {"object": "list", "data": [card(one) for one in served.values()]}

    @app.get("/v1/models/{name:path}")
    async def model(name: str) -> Any:
        if name not in served:
            raise ApiError(404, f"there is no model {name!r}", "model", "model_not_found")
        return card(served[name])

    @app.post("/v1/completions")
    async def completions(request: Request, body: bodies.Completion) -> Any:
        one = find(body.model, "completions")
        if one.scheduler is None:
            return await batched(request, by_batch(one, body))
        return await texts(request, lambda: CompletionAnswer(one, body, limits, measures.note(one.name)))

    @app.post("/v1/chat/completions")
    async def chat(request: Request, body: bodies.Chat) -> Any:
        one = find(body.model, "chat")
        return await texts(request, lambda: ChatAnswer(one, body, limits, measures.note(one.name)))

    async def batched(request: Any, work: Awaitable[Any]) -> Any:
        try:
            return JSONResponse(await unless_gone(request, asyncio.wait_for(work, limits.seconds)))
        except TimeoutError:
            return answer(ApiError(504, "the request took longer than it may", code="time"))
        except Exception as error:
            return answer(error)

    @app.post("/v1/embeddings")
    async def embeddings(request: Request, body: bodies.Embeddings) -> Any:
        return await batched(request, encoders.embeddings(find(body.model, "embeddings"), body))

    @app.post("/v1/rerank")
    async def rerank(request: Request, body: bodies.Rerank) -> Any:
        return await batched(request, encoders.rerank(find(body.model, "rerank"), body))

    @app.post("/v1/classifications")
    async def classifications(request: Request, body: bodies.Classifications) -> Any:
        return await batched(request, encoders.classifications(find(body.model, "classifications"), body))

    def of_name(name: str) -> Served:
        return find(name, served[name].uses[0] if name in served else "")

    @app.post("/tokenize")
    async def tokenize(body: bodies.Tokenize) -> Any:
        one = of_name(body.model)
        try:
            if body.messages is not None:
                ids = chat_ids(find(body.model, "chat"), body)
            else:
                options = {"truncation": False, "add_special_tokens": body.add_special_tokens}
                ids = list(one.pipe.tokenize([body.prompt], **options)[0].inputs["input_ids"])
        except Exception as error:
            return answer(error)
        found = {"count": len(ids), "max_model_len": one.longest, "tokens": ids}
        return (
            {**found, "token_strs": one.pipe.tokenizer.convert_ids_to_tokens(ids)} if body.return_token_strs else found
        )

    @app.post("/detokenize")
    async def detokenize(body: bodies.Detokenize) -> Any:
        tokenizer = of_name(body.model).pipe.tokenizer
        wrong = next((id for id in body.tokens if id >= len(tokenizer)), None)
        if wrong is not None:
            raise ApiError(400, f"tokens has {wrong}, expected 0 to {len(tokenizer) - 1}", "tokens")
        return {"prompt": tokenizer.decode(body.tokens, skip_special_tokens=False)}

    if origins:
        app.add_middleware(CORSMiddleware, allow_origins=list(origins), allow_methods=["*"], allow_headers=["*"])
    app.add_middleware(Limiter, limits=limits, key=key, measures=measures)
    return app


def invalid(errors: Sequence[Any]) -> ApiError:
    """One line for what pydantic says of a body."""
    first = errors[0]
    where = [str(part) for part in first["loc"] if part != "body"]
    param = where[0] if where else None
    if first["type"] == "json_invalid":
        return ApiError(400, f"the body is no JSON: {first.get('ctx', {}).get('error', first['msg'])}")
    if first["type"] == "missing" and param is None:
        return ApiError(400, "the body is empty, expected a JSON object with Content-Type: application/json")
    if first["type"] == "missing":
        return ApiError(400, f"{param} is missing, expected it in the body", param)
    if first["type"] == "extra_forbidden":
        return ApiError(400, f"{'.'.join(where)} is not known here, expected it to be left out", param)
    said = first["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
    if first["type"] == "value_error":
        return ApiError(400, said, param)
    return ApiError(400, f"{param or 'the body'} is {first.get('input')!r:.80}, expected {said}", param)
