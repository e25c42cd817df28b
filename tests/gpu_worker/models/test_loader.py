"""What can be wrong with a checkpoint is one clear error, and pickles are never opened."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from gpu_worker.models.architectures import decoder_config
from gpu_worker.models.loader import dummy_parameters, load_parameters
from quire.errors import QuireError
from quire.model_files import read_json
from tests.support.checkpoints import checkpoint

CPU = torch.device("cpu")


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return Path(shutil.copytree(checkpoint("LlamaForCausalLM"), tmp_path / "copy"))


def load(directory: Path, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    config = decoder_config(read_json(directory, "config.json"))
    return load_parameters(directory, config, dtype, CPU, lambda _: None)


def edit_config(directory: Path, **fields: Any) -> None:
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | fields))


def edit_tensors(directory: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    path = sorted(directory.glob("*.safetensors"))[-1]
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


def test_progress_ends_at_one_and_the_target_dtype_is_met(copy: Path) -> None:
    shares: list[float] = []
    config = decoder_config(read_json(copy, "config.json"))
    parameters = load_parameters(copy, config, torch.bfloat16, CPU, shares.append)
    assert shares == sorted(shares)
    assert shares[-1] == 1.0
    assert {tensor.dtype for tensor in parameters.values()} == {torch.bfloat16}


def test_a_single_file_checkpoint_is_the_same_as_a_sharded_one(copy: Path) -> None:
    sharded = load(copy)
    tensors = {
        name: tensor for path in copy.glob("*.safetensors") for name, tensor in load_file(path).items()
    }
    for path in (*copy.glob("model-*"), copy / "model.safetensors.index.json"):
        path.unlink()
    save_file(tensors, copy / "model.safetensors")
    whole = load(copy)
    assert all(torch.equal(whole[name], tensor) for name, tensor in sharded.items())


def break_index(directory: Path) -> None:
    (directory / "model.safetensors.index.json").write_text(
        '{"weight_map": {"a": "../../outside.safetensors"}}'
    )


def only_pickles(directory: Path) -> None:
    for path in (*directory.glob("*.safetensors"), directory / "model.safetensors.index.json"):
        path.unlink()
    (directory / "pytorch_model.bin").write_bytes(b"never read")


def tear(directory: Path) -> None:
    path = sorted(directory.glob("*.safetensors"))[0]
    path.write_bytes(path.read_bytes()[:-100])


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda d: sorted(d.glob("*.safetensors"))[0].unlink(), "is missing"),
        (tear, "cannot be read"),
        (only_pickles, "never read: convert them to safetensors"),
        (break_index, "outside of the checkpoint"),
        (lambda d: edit_tensors(d, lambda t: t.pop(next(iter(t)))), "lacks 1 tensors"),
        (
            lambda d: edit_tensors(d, lambda t: t.update({"model.extra.weight": torch.zeros(1)})),
            "no place for",
        ),
        (lambda d: edit_config(d, hidden_size=128), "has the shape"),
        (lambda d: edit_config(d, architectures=["MambaForCausalLM"]), "MambaForCausalLM is not supported"),
        (lambda d: edit_config(d, architectures=None), "not supported"),
        (lambda d: edit_config(d, hidden_act="gelu"), "gelu"),
        (lambda d: edit_config(d, rope_parameters={"rope_type": "longrope"}), "longrope"),
        (lambda d: edit_config(d, quantization_config={"bits": 4}), "quantised"),
    ],
)
def test_a_damaged_checkpoint_is_one_clear_error(
    copy: Path, damage: Callable[[Path], None], words: str
) -> None:
    damage(copy)
    with pytest.raises(QuireError, match=words):
        load(copy)


def test_dummy_weights_have_the_shapes_and_are_the_same_every_time(copy: Path) -> None:
    config = decoder_config(read_json(copy, "config.json"))
    first, second = (dummy_parameters(config, torch.float32, CPU) for _ in range(2))
    real = load(copy)
    assert {name: tensor.shape for name, tensor in first.items()} == {n: t.shape for n, t in real.items()}
    assert all(torch.equal(first[name], second[name]) for name in first)
