"""Builds the kernels of a small model for a Hopper GPU as a start does, on a machine that has none.

    TRITON_CACHE_DIR=DIRECTORY MALLOC_MMAP_THRESHOLD_=65536 python -m tests.support.kernel_build_probe

Prints JSON: the kernels asked for, whether a build is due again, and the kernels that launches of the same steps still
had to compile. The second variable aligns large tensors as a GPU's are, on which a kernel's choice depends. A process
of its own, because in the tests' process Triton interprets.
"""

import json
from typing import Any
from unittest import mock

import torch
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from gpu_worker.kernel_build import KernelBuild
from gpu_worker.models.architectures import decoder_config
from gpu_worker.models.decoder import Decoder
from gpu_worker.models.loader import dummy_parameters
from kernels import dispatch, pdl
from kernels.compilation import pool
from kernels.linear import kernel as linear
from kernels.paged_attention import hopper
from quire.model_files import read_json
from quire.v1 import worker_pb2
from tests.support.checkpoints import checkpoint

_HEADS = {"hidden_size": 512, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 128}


class _Hopper:
    """Triton's driver, as far as compiling needs it."""

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)


def _misses(build: KernelBuild, decoder: Decoder) -> list[str]:
    """Names of kernels that the steps' launches compile; up to the launch itself they go Triton's own way."""
    found: list[str] = []

    def note(*, src: Any, cache_hit: bool, **_: Any) -> None:
        if not cache_hit:
            found.append(src.name)

    run = JITFunction.run

    def compile_only(self: Any, *args: Any, **keywords: Any) -> Any:
        return run(self, *args, **keywords | {"warmup": True})

    knobs.compilation.listener = note
    with mock.patch.object(JITFunction, "run", compile_only), pool._Zeros():
        build._rehearse(decoder.shallow())
    return found


def main() -> None:
    driver.set_active(_Hopper())
    config = decoder_config(read_json(checkpoint("Qwen3ForCausalLM"), "config.json") | _HEADS)
    cpu = torch.device("cpu")
    limits = worker_pb2.WorkerDescription(
        block_size=16, max_rows=24, max_step_tokens=512, max_decode_steps=8, max_logprobs=5, device="Hopper"
    )
    limits.model.max_model_len = 512
    decoder = Decoder(config, dummy_parameters(config, torch.bfloat16, cpu), limits.model.max_model_len)
    module = dispatch._module
    with (
        mock.patch.object(dispatch, "_module", lambda op, _: module(op, "cuda")),
        mock.patch.object(linear, "_hopper_multiprocessors", return_value=132),
        mock.patch.object(hopper, "_num_programs", return_value=132),
        mock.patch("torch.cuda.get_device_properties", return_value=mock.Mock(multi_processor_count=132)),
        mock.patch.object(pdl, "options", return_value={"PDL": True, "launch_pdl": True}),
        mock.patch("torch.cuda.get_device_capability", return_value=(9, 0)),
        mock.patch("os.sched_getaffinity", return_value=set(range(4))),
    ):
        build = KernelBuild(config, limits, torch.bfloat16, torch.device("cuda"), is_fp8=False)
        build._device = cpu
        with build:
            build.run(decoder, lambda _: None)
            asked = sorted(name for name, _ in build._pool._seen)
        again = KernelBuild(config, limits, torch.bfloat16, torch.device("cuda"), is_fp8=False)
        print(json.dumps({"asked": asked, "due_again": again.is_due, "misses": _misses(build, decoder)}))
        again.__exit__(None, None, None)


if __name__ == "__main__":
    main()
