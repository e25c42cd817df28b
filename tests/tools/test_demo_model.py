"""The training model against transformers, its checkpoints, and what the bundled checkpoint answers."""

from pathlib import Path

import pytest
import torch
from demo_model.engine import TransformersEngine
from demo_model.evaluation import held_out
from demo_model.export import to_transformers
from demo_model.model import DRAFT, TINY, DemoModel, Shape, parameters_in
from demo_model.optimizer import orthogonal
from demo_model.sample import is_right
from demo_model.training import Plan, Trainer
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM


@pytest.mark.parametrize("shape", [TINY, DRAFT])
def test_packed_logits_equal_those_of_transformers(shape: Shape, demo_tokenizer: Tokenizer) -> None:
    torch.manual_seed(0)
    model = DemoModel(shape, torch.float32)
    for weight in model.parameters():
        torch.nn.init.normal_(weight, mean=0.0 if weight.dim() == 2 else 1.0, std=0.1)
    reference = to_transformers(model, demo_tokenizer).eval()
    first, second = torch.randint(0, 2048, (31,)), torch.randint(0, 2048, (17,))
    positions = torch.cat([torch.arange(31), torch.arange(17)])
    with torch.no_grad():
        packed = model(
            torch.cat([first, second]), positions, torch.tensor([0, 31, 48, 48], dtype=torch.int32), 64
        )
        torch.testing.assert_close(packed[:31], reference(first[None]).logits[0], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(packed[31:], reference(second[None]).logits[0], rtol=1e-4, atol=1e-4)


def test_orthogonal_update_has_singular_values_near_one() -> None:
    torch.manual_seed(0)
    for size in ((2, 24, 64), (2, 64, 24)):
        values = torch.linalg.svdvals(orthogonal(torch.randn(size)))
        assert (values > 0.6).all()
        assert (values < 1.3).all()


def test_training_stops_resumes_and_learns(tmp_path: Path, demo_tokenizer: Tokenizer) -> None:
    demo_tokenizer.save(str(tmp_path / "tokenizer.json"))

    def trainer(minutes: float) -> Trainer:
        plan = Plan(
            shape="tiny", tokenizer=tmp_path / "tokenizer.json", checkpoint=tmp_path / "tiny.pt", steps=3,
            size=1024, seed=0, workers=1, minutes=minutes, compile=False,
        )  # fmt: skip
        return Trainer(plan)

    assert not trainer(minutes=0).run()
    resumed = trainer(minutes=10)
    assert resumed.step == 1
    before = resumed.model.model.embed_tokens.weight.clone()
    assert resumed.run()
    assert not torch.equal(before, resumed.model.model.embed_tokens.weight)


def test_bundled_models_keep_their_size_limits(demo_directory: Path) -> None:
    for directory, limit in (
        (demo_directory, 12_000_000),
        (demo_directory.with_name("demo-draft"), 2_000_000),
    ):
        model = AutoModelForCausalLM.from_pretrained(directory)
        assert parameters_in(model) <= limit
        assert model.dtype == torch.bfloat16
        assert sum(file.stat().st_size for file in directory.glob("*.safetensors")) <= 25_000_000
        assert model.config.num_attention_heads > model.config.num_key_value_heads
        assert model.config.max_position_embeddings >= 4096


@pytest.mark.parametrize(
    "task", ["retrieval_512", "echo", "arithmetic", "json", "tool_call", "memory", "thinking"]
)
def test_bundled_model_answers_right(task: str, demo_directory: Path, demo_tokenizer: Tokenizer) -> None:
    engine = TransformersEngine(demo_directory, "cpu", "float32")
    chosen = held_out(task, 6, 77, demo_tokenizer)
    right = [
        is_right(sample.check, answer) for sample, answer in zip(chosen, engine.answers(chosen), strict=True)
    ]
    assert sum(right) >= 5
