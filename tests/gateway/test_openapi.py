"""The OpenAPI document, which generators and fuzzers read."""

import re

from tests.gateway.conftest import RunningGateway


async def test_document_is_complete(gateway: RunningGateway) -> None:
    response = await gateway.http.get("/openapi.json")
    document = response.json()
    assert {"/v1/chat/completions", "/v1/completions", "/v1/models", "/tokenize"} <= set(document["paths"])
    schemas = document["components"]["schemas"]
    for name in re.findall(r'"#/components/schemas/([^"]+)"', response.text):
        assert name in schemas
    assert {"messages", "temperature", "top_k", "tools"} <= set(schemas["ChatRequest"]["properties"])
    assert document["security"] == [{"ApiKey": []}]
