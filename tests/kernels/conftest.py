"""Where there is no GPU, Triton kernels run in its interpreter; that is decided when triton is first imported."""

import os

import pytest
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"


@pytest.fixture(autouse=True)
def seeded() -> None:
    """What a test draws does not depend on the tests that ran before it."""
    torch.set_num_threads(1)
    torch.manual_seed(0)


@pytest.fixture(params=["as they come", "longest first", "in shares"])
def order(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Plans of decoding rows are made in this order, by few programs, so that one has several rows."""
    from kernels.paged_attention import ProgramSizes, plan

    sizes = ProgramSizes(tile=32, num_warps=4, num_stages=2, programs_per_sm=1, order=request.param)
    monkeypatch.setattr(plan, "program_sizes", lambda group, num_rows: sizes)
    return str(request.param)
