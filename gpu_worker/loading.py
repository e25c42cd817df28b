"""From settings to a worker that can run: the checkpoint on its device, the KV cache, and the description."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import structlog
import torch

from gpu_worker import metrics
from gpu_worker.gpu_memory import explained, kv_budget, measure
from gpu_worker.kernel_build import KernelBuild
from gpu_worker.kv_cache import KvCache
from gpu_worker.kv_calibration import calibrate
from gpu_worker.memory import cpu_budget, gpu_rows, num_kv_blocks, parse_bytes
from gpu_worker.model_runner import ModelRunner
from gpu_worker.models.architectures import DecoderConfig, decoder_config
from gpu_worker.models.decoder import Decoder
from gpu_worker.models.loader import dummy_parameters, load_parameters
from gpu_worker.settings import WorkerSettings
from gpu_worker.start_up import StartUp
from gpu_worker.warm_up import warm_up
from kernels.kv_scales import FP8
from quire.errors import InvalidRequest, NotFound
from quire.model_files import model_revision, read_json, resolve_model
from quire.packing import pack_int32
from quire.v1 import types_pb2, worker_pb2

log = structlog.get_logger()

_CPU_ROWS = 64
_CPU_STEP_TOKENS, _GPU_STEP_TOKENS = 2048, 8192


@dataclass(frozen=True, slots=True)
class LoadedWorker:
    """What loading makes."""

    description: worker_pb2.WorkerDescription
    runner: ModelRunner
    cache: KvCache
    seconds: Mapping[str, float] = field(default_factory=dict)
    """What each phase of the start took."""


def load(settings: WorkerSettings, worker_epoch: int, on_progress: Callable[[float], None]) -> LoadedWorker:
    """Read the checkpoint; takes as long as that takes. Raises QuireError with what is wrong and what would help."""
    torch.set_num_threads(settings.threads or os.cpu_count() or 1)
    device = _device(settings.device)
    directory = resolve_model(settings.model, weights=settings.load_format == "auto")
    raw_config = read_json(directory, "config.json")
    config = decoder_config(raw_config)
    dtype = _dtype(settings.dtype, config, device)
    start = StartUp(on_progress)
    description = _describe(settings, worker_epoch, config, dtype, device)
    is_fp8 = settings.kv_cache_dtype == "fp8"
    with KernelBuild(config, description, dtype, device, is_fp8=is_fp8) as build:
        with (
            start.phase("weights") as tell,
            explained("reading the weights", "use a smaller model, or a GPU that nobody else uses"),
        ):
            if settings.load_format == "dummy":
                parameters = dummy_parameters(config, dtype, device)
            else:
                parameters = load_parameters(directory, config, dtype, device, tell)
        decoder = Decoder(config, parameters, description.model.max_model_len)
        if build.is_due:
            with (
                start.phase("kernels") as tell,
                explained("rehearsing steps", "lower max_step_tokens or max_rows"),
            ):
                build.run(decoder, tell)
    description.weights_bytes = sum(tensor.nbytes for tensor in parameters.values())
    generation = read_json(directory, "generation_config.json") if _has_generation_config(directory) else {}
    description.model.revision = model_revision(directory)
    description.model.eos_token_ids = pack_int32(_eos_token_ids(raw_config, generation, config.vocab_size))
    del parameters
    with start.phase("memory"):
        cache = _kv_cache(settings, decoder, description, dtype, device)
    with explained("making the rows", "lower gpu_memory_utilization or max_rows"):
        runner = ModelRunner(decoder, cache, limits=description, device=device)
    if device.type == "cuda":
        with explained("recording steps", "lower gpu_memory_utilization or max_rows"):
            with start.phase("graphs") as tell:
                runner.capture_graphs(tell)
            with start.phase("warm_up") as tell:
                warm_up(runner, tell)
                cache.checksums(np.zeros(1, np.int32)).wait()
        description.num_graphs = runner.num_graphs
        metrics.device_memory_allocated_bytes.set_function(torch.cuda.memory_allocated)
        metrics.device_memory_reserved_bytes.set_function(torch.cuda.memory_reserved)
    return LoadedWorker(description, runner, cache, start.seconds)


def _describe(
    settings: WorkerSettings,
    worker_epoch: int,
    config: DecoderConfig,
    dtype: torch.dtype,
    device: torch.device,
) -> worker_pb2.WorkerDescription:
    """All that is known before the weights and the KV cache are there."""
    is_gpu = device.type == "cuda"
    max_rows = settings.max_rows or _rows_that_suit(settings, config, dtype, device)
    max_step_tokens = settings.max_step_tokens or (_GPU_STEP_TOKENS if is_gpu else _CPU_STEP_TOKENS)
    model = types_pb2.ModelDescription(
        name=settings.served_model_name or settings.model.rstrip("/").rpartition("/")[2],
        source=settings.model,
        architecture=config.architecture,
        vocab_size=config.vocab_size,
        max_model_len=_max_model_len(settings, config),
        dtype=str(dtype).removeprefix("torch."),
    )
    return worker_pb2.WorkerDescription(
        worker_id=settings.worker_id,
        worker_epoch=worker_epoch,
        model=model,
        block_size=settings.block_size,
        max_rows=max_rows,
        max_step_tokens=max(max_step_tokens, max_rows),
        max_decode_steps=settings.max_decode_steps,
        max_logprobs=min(settings.max_logprobs, config.vocab_size),
        device=torch.cuda.get_device_name(device) if is_gpu else "cpu",
    )


def _rows_that_suit(
    settings: WorkerSettings, config: DecoderConfig, dtype: torch.dtype, device: torch.device
) -> int:
    if device.type != "cuda":
        return _CPU_ROWS
    memory = torch.cuda.get_device_properties(device).total_memory * settings.gpu_memory_utilization
    kv_bytes = 1 if settings.kv_cache_dtype == "fp8" else dtype.itemsize
    return gpu_rows(config, dtype.itemsize, kv_bytes, int(memory))


def _kv_cache(
    settings: WorkerSettings,
    decoder: Decoder,
    description: worker_pb2.WorkerDescription,
    dtype: torch.dtype,
    device: torch.device,
) -> KvCache:
    """The cache in its final size, which the description gets."""
    config, block_size = decoder.config, description.block_size
    max_model_len = description.model.max_model_len
    is_fp8 = settings.kv_cache_dtype == "fp8"
    with explained("calibrating the KV cache", "use a smaller model, or a GPU that nobody else uses"):
        scales = calibrate(decoder, max_model_len, dtype, device) if is_fp8 else None
    itemsize = FP8.itemsize if is_fp8 else dtype.itemsize
    if is_fp8:
        description.capabilities.append("kv_fp8")

    def make_cache(num_blocks: int) -> KvCache:
        return KvCache(config, num_blocks, block_size, dtype, device, scales)

    if settings.kv_cache_memory:
        budget = parse_bytes(settings.kv_cache_memory)
    elif device.type == "cuda":
        with explained("running the largest step", "lower max_step_tokens or max_rows"):
            needs = measure(decoder, description, make_cache, device)
        budget = kv_budget(needs, settings.gpu_memory_utilization)
        log.info("memory measured", activations_mib=needs.activations >> 20, graphs_mib=needs.graphs >> 20)
    else:
        max_rows = description.max_rows
        budget = cpu_budget(
            config, itemsize, block_size=block_size, max_rows=max_rows, max_model_len=max_model_len
        )
    block_bytes = KvCache.block_bytes(config, block_size, itemsize)
    num_blocks = num_kv_blocks(budget, block_bytes, block_size=block_size, max_model_len=max_model_len)
    description.num_blocks = num_blocks
    description.kv_cache_bytes = num_blocks * block_bytes
    with explained("making the KV cache", "lower gpu_memory_utilization or kv_cache_memory"):
        return make_cache(num_blocks)


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
