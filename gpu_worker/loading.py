"""From settings to a worker that can run: the checkpoint on its device, the KV cache, and the description."""

import os
from collections.abc import Callable
from dataclasses import dataclass

import torch

from gpu_worker.kv_cache import KvCache
from gpu_worker.memory import num_kv_blocks
from gpu_worker.model_runner import ModelRunner
from gpu_worker.models.architectures import DecoderConfig, decoder_config
from gpu_worker.models.decoder import Decoder
from gpu_worker.models.loader import dummy_parameters, load_parameters
from gpu_worker.settings import WorkerSettings
from quire.errors import InvalidRequest, NotFound
from quire.model_files import model_revision, read_json, resolve_model
from quire.packing import pack_int32
from quire.v1 import types_pb2, worker_pb2


@dataclass(frozen=True, slots=True)
class LoadedWorker:
    """What loading makes."""

    description: worker_pb2.WorkerDescription
    runner: ModelRunner
    cache: KvCache


def load(settings: WorkerSettings, worker_epoch: int, on_progress: Callable[[float], None]) -> LoadedWorker:
    """Read the checkpoint; takes as long as that takes. Raises QuireError with what is wrong and what would help."""
    torch.set_num_threads(settings.threads or os.cpu_count() or 1)
    device = _device(settings.device)
    directory = resolve_model(settings.model, weights=settings.load_format == "auto")
    raw_config = read_json(directory, "config.json")
    config = decoder_config(raw_config)
    dtype = _dtype(settings.dtype, config, device)
    max_model_len = _max_model_len(settings, config)
    if settings.load_format == "dummy":
        parameters = dummy_parameters(config, dtype, device)
    else:
        parameters = load_parameters(directory, config, dtype, device, on_progress)
    num_blocks = num_kv_blocks(
        config,
        dtype.itemsize,
        block_size=settings.block_size,
        max_rows=settings.max_rows,
        max_model_len=max_model_len,
        asked=settings.kv_cache_memory,
    )
    cache = KvCache(config, num_blocks, settings.block_size, dtype, device)
    generation = read_json(directory, "generation_config.json") if _has_generation_config(directory) else {}
    model = types_pb2.ModelDescription(
        name=settings.served_model_name or settings.model.rstrip("/").rpartition("/")[2],
        source=settings.model,
        revision=model_revision(directory),
        architecture=config.architecture,
        vocab_size=config.vocab_size,
        max_model_len=max_model_len,
        eos_token_ids=pack_int32(_eos_token_ids(raw_config, generation, config.vocab_size)),
        dtype=str(dtype).removeprefix("torch."),
    )
    description = worker_pb2.WorkerDescription(
        worker_id=settings.worker_id,
        worker_epoch=worker_epoch,
        model=model,
        block_size=settings.block_size,
        num_blocks=num_blocks,
        max_rows=settings.max_rows,
        max_step_tokens=max(settings.max_step_tokens, settings.max_rows),
        max_decode_steps=settings.max_decode_steps,
        max_logprobs=min(settings.max_logprobs, config.vocab_size),
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        kv_cache_bytes=num_blocks * KvCache.block_bytes(config, settings.block_size, dtype.itemsize),
        weights_bytes=sum(tensor.nbytes for tensor in parameters.values()),
        world_size=1,
    )
    decoder = Decoder(config, parameters, max_model_len)
    return LoadedWorker(description, ModelRunner(decoder, cache, limits=description, device=device), cache)


def _has_generation_config(directory: os.PathLike[str]) -> bool:
    return os.path.isfile(os.path.join(directory, "generation_config.json"))


def _device(asked: str) -> torch.device:
    has_gpu = torch.cuda.is_available()
    if asked == "cuda" and not has_gpu:
        raise NotFound("no CUDA device is there; --device cpu runs without one", param="device")
    return torch.device("cuda" if has_gpu and asked != "cpu" else "cpu")


def _dtype(asked: str, config: DecoderConfig, device: torch.device) -> torch.dtype:
    # Half types are slow on most CPUs, and a CPU serves for looking closely rather than for speed.
    name = asked if asked != "auto" else ("float32" if device.type == "cpu" else config.dtype)
    dtype = getattr(torch, name, None)
    if dtype not in (torch.float32, torch.bfloat16, torch.float16):
        raise InvalidRequest(
            f"the dtype {name} is not supported: use --dtype float32 or bfloat16", param="dtype"
        )
    return dtype  # type: ignore[no-any-return]


def _max_model_len(settings: WorkerSettings, config: DecoderConfig) -> int:
    allowed = config.max_position_embeddings
    if settings.max_model_len > allowed:
        raise InvalidRequest(
            f"max_model_len {settings.max_model_len} is over the model's {allowed} positions",
            param="max_model_len",
        )
    return settings.max_model_len or allowed


def _eos_token_ids(config: dict[str, object], generation: dict[str, object], vocab_size: int) -> list[int]:
    """generation_config.json's where it names some, else config.json's, as transformers' generate does."""
    found = generation.get("eos_token_id", config.get("eos_token_id"))
    ids = found if isinstance(found, list) else [found]
    return [token for token in ids if isinstance(token, int) and 0 <= token < vocab_size]
