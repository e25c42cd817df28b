"""Waiting for something that another task or process will make true."""

import asyncio
from collections.abc import Callable

_POLL_S = 0.005


async def until(condition: Callable[[], object], *, timeout_s: float = 60.0) -> None:
    """Return once `condition()` is true. Raises TimeoutError."""
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(_POLL_S)
