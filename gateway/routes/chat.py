"""`POST /v1/chat/completions`."""

from fastapi import APIRouter, Request, Response

from gateway.bodies import read_json
from gateway.openapi import json_body
from gateway.render.chat import ChatRenderer
from gateway.requests import chat_request
from gateway.schemas.chat import ChatRequest
from gateway.schemas.unsupported import CHAT_FIELDS, refuse_unsupported
from gateway.serving import Serving
from quire.errors import QuireError


def chat_routes(serving: Serving) -> APIRouter:
    """The route of chat completions."""
    router = APIRouter(tags=["Generation"])

    @router.post("/v1/chat/completions", openapi_extra=json_body(ChatRequest))
    async def create_chat_completion(request: Request) -> Response:
        """Answer a chat, whole or as a stream of events."""
        chat = await read_json(request, ChatRequest)
        refuse_unsupported(chat.model_extra, CHAT_FIELDS)
        serving.limits.check_chat(chat)
        text_request = chat_request(chat)
        try:
            return await serving.answer(
                request,
                chat.model,
                "chatcmpl",
                [text_request],
                lambda head, usage: ChatRenderer(chat, head, usage),
            )
        except QuireError as error:
            if error.param == "prompt":
                error.param = "messages"  # what the services behind call the prompt
            raise

    return router
