"""Cancellations that grpc's asyncio calls lose."""

import asyncio


def raise_if_cancelled() -> None:
    """Raise CancelledError if the current task has been asked to end, and has not.

    A call that is still being connected takes a cancellation of the task that awaits it for its own, and then raises
    its own end in its place, or nothing. Whoever goes on after a call has ended asks here first.
    """
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError
