"""Streams that are long enough to be disturbed."""

import asyncio

import openai


async def long_stream(client: openai.AsyncOpenAI, number: int, under_way: asyncio.Event | None = None) -> str:
    """The text of one of 400 tokens, greedy for even numbers, seeded for odd ones; `under_way` tells of its first."""
    chunks = await client.completions.create(
        model="tiny",
        prompt=f"Request {number} asks for pages:",
        max_tokens=400,
        temperature=0.8 * (number % 2),
        seed=number,
        stream=True,
        extra_body={"ignore_eos": True},
    )
    texts = []
    async for chunk in chunks:
        texts.append(chunk.choices[0].text)
        if under_way is not None and len(texts) == 3:
            under_way.set()
    return "".join(texts)
