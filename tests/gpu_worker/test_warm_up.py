"""What runs before the first request must fit every worker, and leave nothing behind."""

import pytest

from gpu_worker.warm_up import warm_up
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
