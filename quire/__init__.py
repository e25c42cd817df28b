"""Quire: a large-language-model server of small asyncio services that speak gRPC.

`LLM` and `SamplingParams` are the offline API (docs/offline.md); they are imported when first asked for, so that the
services, which also import this package, stay light.
"""

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from quire.offline.llm import LLM
    from quire.offline.outputs import RequestOutput, SequenceOutput
    from quire.offline.sampling_params import SamplingParams

# gRPC's core writes lines of its own to stderr, past the logs' format; what matters in them is in our errors too.
# It reads this once, when it is first imported: every `__main__` imports this package first.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

__version__ = "0.1.0"
__all__ = ["LLM", "RequestOutput", "SamplingParams", "SequenceOutput", "__version__"]

_MODULES = {
    "LLM": "llm",
    "RequestOutput": "outputs",
    "SamplingParams": "sampling_params",
    "SequenceOutput": "outputs",
}


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"quire.offline.{_MODULES[name]}"), name)
