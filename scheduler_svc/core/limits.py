"""The numbers that bound the core, fixed for its life."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds on queue, step and run-ahead; `SchedulerSettings` documents each for operators."""

    max_queue_sequences: int = 2048
    """Sequences that may wait before the next request is refused."""
    max_queue_tokens: int = 4_000_000
    """Tokens still to compute that may wait; one request is always let in to an empty queue."""
    max_wait_s: float = 60.0
    """Seconds until its first token, as predicted, beyond which a request is refused; 0: no bound."""
    max_step_tokens: int = 8192
    """Token positions per step, decode rows first; the worker's own limit holds besides."""
    pipeline_depth: int = 2
    """Commands in flight per replica, up to twice as many of very short ones."""
    max_decode_steps: int = 16
    """Decode steps per command at most; the worker's own limit holds besides."""
    decode_burst_s: float = 0.001
    """Seconds that the decode steps of one command may take together, as measured, where what the command itself costs
    takes no longer; 0: one step."""
    itl_target_s: float = 0.05
    """Seconds that a step in which rows decode may take: prompt chunks are cut to it; 0: no bound."""
    shared_step_s: float = 0.015
    """Seconds that a step with prompts may take while several tenants are served; 0: no bound."""
    short_prompt_tokens: int = 512
    """Prompts with at most so many positions to compute are not held up by longer ones ahead of them."""
    max_sequences_per_request: int = 64
    """Largest `n`."""
    worker_return_s: float = 30.0
    """Seconds that requests wait for a worker after the last one was lost."""
