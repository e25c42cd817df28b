"""What a worker can be told."""

import socket
import tempfile
from typing import Literal

from pydantic import Field, ValidationInfo, field_validator

from gpu_worker.memory import parse_bytes
from quire.settings import ServiceSettings


class WorkerSettings(ServiceSettings):
    """Settings of `python -m gpu_worker`."""

    listen: str = Field("127.0.0.1:8003", description="address to serve on: host:port, or unix:/path")
    worker_id: str = Field(
        "",
        description="name of this worker, the same after a restart; empty: its host and address",
        validate_default=True,
    )
    redis_url: str = Field("", description="redis://host:port/db where workers register; empty: nowhere")
    advertise: str = Field(
        "",
        description="address under which schedulers reach this worker; empty: `listen`, or this host's own",
    )
    model: str = Field(description="checkpoint directory or hub id")
    served_model_name: str = Field(
        "", description="name that clients ask for; empty: the last part of `model`"
    )
    load_format: Literal["auto", "dummy"] = Field("auto", description="dummy: random weights of the config")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto: a GPU where there is one")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="of weights and KV; auto: the checkpoint's on a GPU, float32 on a CPU"
    )
    max_model_len: int = Field(
        0, ge=0, description="most tokens of prompt and output; 0: what the model allows"
    )
    max_rows: int = Field(
        0,
        ge=0,
        le=4096,
        description="most sequences that run at once; 0: 64 on a CPU; on a GPU 1024 if that leaves each 512 tokens of "
        "KV cache, else 512",
    )
    max_step_tokens: int = Field(
        0, ge=0, description="most token positions in one step; 0: 8192 on a GPU, 2048 on a CPU"
    )
    max_decode_steps: int = Field(8, ge=1, le=64, description="most decode steps in one command")
    max_logprobs: int = Field(20, ge=0, le=256, description="most likeliest tokens reported per token")
    block_size: int = Field(16, ge=1, le=256, description="tokens per KV block")
    kv_cache_memory: str = Field(
        "",
        description="size of the KV cache, such as 2GiB; empty: on a GPU what is left, on a CPU every row at a quarter "
        "of max_model_len, at most a quarter of the memory that is free",
    )
    kv_cache_dtype: Literal["auto", "fp8"] = Field(
        "auto",
        description="of the KV cache; auto: that of the weights, fp8: e4m3 with a scale per head, for twice the tokens",
    )
    gpu_memory_utilization: float = Field(
        0.9, gt=0, le=1, description="share of the GPU's memory for weights, activations and KV cache"
    )
    profile_dir: str = Field(
        tempfile.gettempdir(), description="directory for traces of the device's work, made on SIGUSR2"
    )
    profile_s: float = Field(0.2, gt=0, le=10, description="seconds that such a trace covers")
    threads: int = Field(0, ge=0, description="CPU threads for the model; 0: one per core")

    @field_validator("worker_id")
    @classmethod
    def _is_named(cls, value: str, info: ValidationInfo) -> str:
        return value or f"{socket.gethostname()}/{info.data.get('listen', '')}"

    @field_validator("kv_cache_memory")
    @classmethod
    def _is_size(cls, value: str) -> str:
        if value:
            parse_bytes(value)
        return value
