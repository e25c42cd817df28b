"""Floors: those published for one H200, and what must hold of any."""

import pytest

from quire.bench.floors import ModelCost, Rooflines, model_cost, workload_floor
from quire.bench.shapes import shapes
from quire.bench.workloads import Item, Workload, named, of_lengths

H200 = Rooflines("NVIDIA H200", 4.15e12, 4.27e12, 762e12, "bfloat16")


def cost_of(shape: str) -> ModelCost:
    config = shapes()[shape]
    kv_bytes = 2 * 2 * config["num_hidden_layers"] * config["num_key_value_heads"] * config["head_dim"]
    return model_cost(config, weight_bytes=2, kv_bytes_per_token=kv_bytes)


@pytest.mark.parametrize(
    ("shape", "workload", "output_tokens_per_s"),
    [
        ("llama-8b", "batch1_decode", 276),
        ("llama-8b", "uniform256", 13_800),
        ("llama-8b", "uniform1024", 18_400),
        ("llama-8b", "decode256", 32_400),
        ("qwen3-0.6b", "batch1_decode", 3_400),
        ("qwen3-0.6b", "uniform256", 34_900),
        ("qwen3-0.6b", "uniform1024", 36_700),
        ("qwen3-0.6b", "decode256", 83_300),
    ],
)
def test_decode_floors_are_those_of_the_issue(shape: str, workload: str, output_tokens_per_s: float) -> None:
    work = named(workload)
    floor = workload_floor(work, cost_of(shape), H200)
    assert work.output_tokens / floor.total_s == pytest.approx(output_tokens_per_s, rel=2e-3)


@pytest.mark.parametrize(("shape", "prompt_tokens_per_s"), [("llama-8b", 50_700), ("qwen3-0.6b", 564_000)])
def test_prefill_floors_are_those_of_the_issue(shape: str, prompt_tokens_per_s: float) -> None:
    work = named("prefill4k")
    floor = workload_floor(work, cost_of(shape), H200)
    assert work.prompt_tokens / floor.total_s == pytest.approx(prompt_tokens_per_s, rel=2e-3)


@pytest.mark.parametrize(("shape", "seconds"), [("llama-8b", 0.67), ("qwen3-0.6b", 0.26)])
def test_a_shared_prefix_is_computed_once(shape: str, seconds: float) -> None:
    assert workload_floor(named("shared_prefix"), cost_of(shape), H200).total_s == pytest.approx(
        seconds, rel=2e-2
    )


def test_equal_prompts_still_compute_their_last_token_each() -> None:
    prompt = list(range(100))
    once = workload_floor(Workload("one", [Item(prompt, 1)]), cost_of("llama-8b"), H200)
    many = workload_floor(Workload("many", [Item(prompt, 1)] * 4000), cost_of("llama-8b"), H200)
    compute_s = 2 * 4000 * cost_of("llama-8b").layer_weights / H200.matmul_flops_per_s
    assert compute_s < many.total_s < 100 * once.total_s


def test_a_single_token_of_one_request_costs_one_read_of_the_weights() -> None:
    cost = cost_of("qwen3-0.6b")
    floor = workload_floor(of_lengths(1, 1, 1), cost, H200)
    assert floor.total_s == pytest.approx(cost.step_bytes / H200.read_bytes_per_s)
    assert floor.decode_s == 0.0
