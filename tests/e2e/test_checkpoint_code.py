"""A checkpoint that brings code and pickles along: its weights are served, its code never runs."""

import json
import shutil
from pathlib import Path

import openai
import pytest

from tests.support.checkpoints import checkpoint
from tests.support.server import API_KEY, running_server

pytestmark = [pytest.mark.e2e, pytest.mark.slow]


def with_code(folder: Path, canary: Path) -> Path:
    """A copy of a good checkpoint whose own classes, and whose pickled weights, would leave a mark."""
    shutil.copytree(checkpoint("LlamaForCausalLM"), folder)
    mark = f"__import__('pathlib').Path({str(canary)!r}).touch()"
    for module in ("configuration_own", "modeling_own", "tokenization_own"):
        (folder / f"{module}.py").write_text(f"{mark}\nclass Own: pass\n")
    references = {
        "config.json": {
            "AutoConfig": "configuration_own.Own",
            "AutoModel": "modeling_own.Own",
            "AutoModelForCausalLM": "modeling_own.Own",
        },
        "tokenizer_config.json": {"AutoTokenizer": ["tokenization_own.Own", "tokenization_own.Own"]},
    }
    for name, auto_map in references.items():
        document = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps({**document, "auto_map": auto_map}))
    # A pickle, protocol 0: call `eval` with the mark.
    for name in ("pytorch_model.bin", "model.pt", "consolidated.00.pth"):
        (folder / name).write_text(f"cbuiltins\neval\n(V{mark}\ntR.")
    return folder


def test_a_checkpoint_s_code_and_pickles_never_run(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    model = with_code(tmp_path / "checkpoint", canary)
    with (
        running_server(model, tmp_path / "s", "--max-rows", "8") as server,
        openai.OpenAI(base_url=f"{server.url}/v1", api_key=API_KEY, max_retries=0) as client,
    ):
        completion = client.completions.create(model="tiny", prompt="one", max_tokens=2)
        assert completion.choices[0].finish_reason in ("length", "stop")
    assert not canary.exists()


def test_the_mark_would_be_left_by_whoever_ran_the_code(tmp_path: Path) -> None:
    import pickle
    import runpy

    canary = tmp_path / "canary"
    model = with_code(tmp_path / "checkpoint", canary)
    runpy.run_path(str(model / "modeling_own.py"))
    assert canary.exists()
    canary.unlink()
    with (model / "model.pt").open("rb") as file:
        pickle.load(file)  # noqa: S301
    assert canary.exists()
