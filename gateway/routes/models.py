"""`GET /v1/models` and `GET /version`."""

from typing import Any

import orjson
from fastapi import APIRouter, Response

import quire
from gateway.pool import TokenizerPool
from quire.errors import NotFound
from quire.v1 import types_pb2


def model_routes(pool: TokenizerPool) -> APIRouter:
    """The routes that say what is served."""
    router = APIRouter(tags=["Models"])

    @router.get("/v1/models")
    async def list_models() -> Response:
        """The served models."""
        data = [_describe(pool, model) for model in pool.models().values()]
        return _json({"object": "list", "data": data})

    @router.get("/v1/models/{model_id:path}")
    async def get_model(model_id: str) -> Response:
        """One served model; its name may contain slashes."""
        model = pool.models().get(model_id)
        if model is None:
            raise NotFound(f"the model {model_id[:128]!r} does not exist", param="model")
        return _json(_describe(pool, model))

    @router.get("/version")
    async def get_version() -> Response:
        """The server's version."""
        return _json({"version": quire.__version__})

    return router


def _describe(pool: TokenizerPool, model: types_pb2.ModelDescription) -> dict[str, Any]:
    return {
        "id": model.name,
        "object": "model",
        "created": pool.first_seen(model.name),
        "owned_by": "quire",
        "root": model.source,
        "max_model_len": model.max_model_len,
    }


def _json(document: dict[str, Any]) -> Response:
    return Response(orjson.dumps(document), media_type="application/json")
