"""`POST /v1/completions`."""

from fastapi import APIRouter, Request, Response

from gateway.bodies import read_json
from gateway.openapi import json_body
from gateway.render.completions import CompletionRenderer
from gateway.requests import completion_requests
from gateway.schemas.completions import CompletionRequest
from gateway.schemas.unsupported import COMPLETION_FIELDS, refuse_unsupported
from gateway.serving import Serving


def completion_routes(serving: Serving) -> APIRouter:
    """The route of plain completions."""
    router = APIRouter(tags=["Generation"])

    @router.post("/v1/completions", openapi_extra=json_body(CompletionRequest))
    async def create_completion(request: Request) -> Response:
        """Go on from one prompt or several, whole or as a stream of events."""
        completion = await read_json(request, CompletionRequest)
        refuse_unsupported(completion.model_extra, COMPLETION_FIELDS)
        serving.limits.check_completion(completion)
        return await serving.answer(
            request,
            completion.model,
            "cmpl",
            completion_requests(completion),
            lambda head, usage: CompletionRenderer(completion, head, usage),
        )

    return router
