"""`POST /tokenize` and `POST /detokenize`, in vLLM's shape."""

import orjson
from fastapi import APIRouter, Request, Response

from gateway.bodies import read_json
from gateway.openapi import json_body
from gateway.requests import chat_prompt
from gateway.schemas.tokens import (
    DetokenizeRequest,
    TokenizeChatRequest,
    TokenizeRequest,
    TokenizeTextRequest,
)
from gateway.serving import Serving
from quire.packing import pack_int32, unpack_int32
from quire.v1 import tokenizer_pb2


def token_routes(serving: Serving) -> APIRouter:
    """The routes of tokenization."""
    router = APIRouter(tags=["Tokens"])
    pool = serving.pool

    @router.post("/tokenize", openapi_extra=json_body(TokenizeRequest))
    async def tokenize(request: Request) -> Response:
        """Token ids of a text or a chat."""
        body = (await read_json(request, TokenizeRequest)).root
        if isinstance(body, TokenizeChatRequest):
            serving.limits.check_prompt(body)
        answer = await pool.choose(body.model).tokenize(_to_proto(body))
        tokens = unpack_int32(answer.token_ids).tolist()
        document = {"count": len(tokens), "max_model_len": answer.max_model_len, "tokens": tokens}
        return Response(orjson.dumps(document), media_type="application/json")

    @router.post("/detokenize", openapi_extra=json_body(DetokenizeRequest))
    async def detokenize(request: Request) -> Response:
        """Text of token ids."""
        body = await read_json(request, DetokenizeRequest)
        # vLLM's route keeps special tokens: what it gives back is what was tokenized.
        proto = tokenizer_pb2.DetokenizeRequest(token_ids=pack_int32(body.tokens), skip_special_tokens=False)
        answer = await pool.choose(body.model).detokenize(proto)
        return Response(orjson.dumps({"prompt": answer.text}), media_type="application/json")

    return router


def _to_proto(body: TokenizeTextRequest | TokenizeChatRequest) -> tokenizer_pb2.TokenizeRequest:
    if isinstance(body, TokenizeChatRequest):
        return tokenizer_pb2.TokenizeRequest(chat=chat_prompt(body))
    proto = tokenizer_pb2.TokenizeRequest(text=body.prompt)
    if body.add_special_tokens is not None:
        proto.add_special_tokens = body.add_special_tokens
    return proto
