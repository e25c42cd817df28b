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
