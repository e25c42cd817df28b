"""What runs before the first request must fit every worker, and leave nothing behind."""

import pytest
import torch

from gpu_worker.models.architectures import decoder_config
from gpu_worker.models.decoder import one_layer_of_each_kind
from gpu_worker.warm_up import compile_ahead, warm_up
from tests.support.checkpoints import checkpoint
from tests.support.worker_driver import make_runner


@pytest.mark.parametrize("max_rows", [1, 3, 32])
def test_every_kind_of_step_runs_and_leaves_no_row(max_rows: int) -> None:
    runner = make_runner(checkpoint("LlamaForCausalLM"), max_rows=max_rows)
    shares: list[float] = []
    warm_up(runner, shares.append)
    assert runner.rows.num_used == 0
    assert runner.steps_executed > 4
    assert shares == sorted(shares)
    assert shares[-1] == 1


def test_kernels_are_compiled_by_runners_of_their_own_which_keep_no_row() -> None:
    runners = []

    def make() -> object:
        runners.append(make_runner(checkpoint("LlamaForCausalLM"), max_rows=4))
        return runners[-1]

    shares: list[float] = []
    compile_ahead(make, shares.append)  # type: ignore[arg-type]
    assert all(runner.rows.num_used == 0 for runner in runners)
    assert sum(runner.steps_executed for runner in runners) > 4 * 10
    assert shares == sorted(shares)
    assert shares[-1] == 1


def test_a_thin_decoder_has_a_layer_of_each_window() -> None:
    config = decoder_config(
        {
            "architectures": ["Qwen2ForCausalLM"], "vocab_size": 32, "hidden_size": 16, "intermediate_size": 32,
            "num_hidden_layers": 4, "num_attention_heads": 2, "rms_norm_eps": 1e-6, "rope_theta": 1e4,
            "max_position_embeddings": 64, "use_sliding_window": True, "sliding_window": 8, "max_window_layers": 2,
        }
    )  # fmt: skip
    assert config.windows == (None, None, 8, 8)
    parameters = {f"layers.{index}.down": torch.full((1,), index) for index in range(4)}
    thin, kept = one_layer_of_each_kind(config, {**parameters, "final_norm": torch.ones(1)})
    assert (thin.num_layers, thin.windows) == (2, (None, 8))
    assert {name: int(tensor) for name, tensor in kept.items()} == {
        "final_norm": 1,
        "layers.0.down": 0,
        "layers.1.down": 2,
    }
