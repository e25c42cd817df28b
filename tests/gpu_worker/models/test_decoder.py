"""The one decoder computes what transformers computes, for every RoPE scaling, window, bias and tying."""

from dataclasses import replace

import pytest
import torch

from gpu_worker.kv_cache import KvCache
from gpu_worker.models.architectures import decoder_config
from gpu_worker.models.decoder import AttentionInputs, Decoder
from gpu_worker.models.loader import dummy_parameters, load_parameters
from quire.model_files import read_json
from tests.support.attention_batch import chunks_of
from tests.support.checkpoints import checkpoint
from tests.support.transformers_reference import reference_model

LLAMA3 = (
    ("rope_type", "llama3"),
    ("rope_theta", 10000.0),
    ("factor", 8.0),
    ("low_freq_factor", 1.0),
    ("high_freq_factor", 4.0),
    ("original_max_position_embeddings", 256),
)
YARN = (
    ("rope_type", "yarn"),
    ("rope_theta", 10000.0),
    ("factor", 4.0),
    ("original_max_position_embeddings", 128),
)
CASES = {
    "llama3": ("LlamaForCausalLM", {"rope_parameters": LLAMA3}),
    "linear": (
        "LlamaForCausalLM",
        {"rope_parameters": (("rope_type", "linear"), ("rope_theta", 10000.0), ("factor", 3.0))},
    ),
    "yarn": ("Qwen3ForCausalLM", {"rope_parameters": YARN}),
    "yarn untruncated": (
        "Qwen2ForCausalLM",
        {"rope_parameters": (*YARN, ("truncate", False), ("beta_fast", 16), ("attention_factor", 1.2))},
    ),
    "yarn mscale": (
        "LlamaForCausalLM",
        {"rope_parameters": (*YARN, ("mscale", 0.7), ("mscale_all_dim", 0.4))},
    ),
    "sliding window": ("MistralForCausalLM", {"sliding_window": 40}),
    "some layers slide": (
        "Qwen2ForCausalLM",
        {"use_sliding_window": True, "sliding_window": 33, "max_window_layers": 1},
    ),
    "qwen3 slides": (
        "Qwen3ForCausalLM",
        {"use_sliding_window": True, "sliding_window": 20, "max_window_layers": 2},
    ),
    "biases": ("LlamaForCausalLM", {"attention_bias": True, "mlp_bias": True}),
    "untied": ("Qwen3ForCausalLM", {"tie_word_embeddings": False}),
    "tied": ("LlamaForCausalLM", {"tie_word_embeddings": True}),
    "no grouping": ("LlamaForCausalLM", {"num_key_value_heads": 4}),
    "one kv head": ("MistralForCausalLM", {"num_key_value_heads": 1}),
}


@pytest.mark.parametrize("case", CASES)
def test_logits_equal_transformers_in_one_chunk_and_in_many(case: str) -> None:
    torch.set_num_threads(1)
    architecture, overrides = CASES[case]
    directory = checkpoint(architecture, **overrides)
    config = decoder_config(read_json(directory, "config.json"))
    parameters = load_parameters(directory, config, torch.float32, torch.device("cpu"), lambda _: None)
    decoder = Decoder(config, parameters, 512)
    torch.manual_seed(len(case))
    token_ids = torch.randint(5, 760, (300,))
    with torch.inference_mode():
        wanted = reference_model(directory)(token_ids[None]).logits[0]
        for chunks in ((300,), (1, 16, 33, 250)):
            assert torch.allclose(_logits(decoder, token_ids, chunks), wanted, atol=1e-4)


def _logits(decoder: Decoder, token_ids: torch.Tensor, chunks: tuple[int, ...]) -> torch.Tensor:
    block_size = 16
    cache = KvCache(decoder.config, 32, block_size, torch.float32, torch.device("cpu"))
    table, found, start = torch.randperm(32)[None], [], 0
    for size in chunks:
        positions = torch.arange(start, start + size)
        slots = table[0][positions // block_size] * block_size + positions % block_size
        plan = decoder.plan_attention(table, torch.tensor([start + size]), 0, chunks_of([size], first=0))
        inputs = AttentionInputs(positions, slots, plan)
        found.append(decoder.logits(decoder.forward(token_ids[start : start + size], inputs, cache)))
        start += size
    return torch.cat(found)


def test_the_shallow_decoder_has_as_few_layers_as_have_every_window() -> None:
    directory = checkpoint("LlamaForCausalLM")
    config = decoder_config(read_json(directory, "config.json"))
    parameters = dummy_parameters(replace(config, num_layers=4), torch.float32, torch.device("cpu"))
    windows = (None, None, 64, None)
    mixed = Decoder(replace(config, num_layers=4, windows=windows), parameters, 64).shallow()
    assert (mixed.config.num_layers, mixed.config.windows) == (3, windows[:3])
    alike = Decoder(replace(config, num_layers=4, windows=(None,) * 4), parameters, 64)
    assert alike.shallow().config.num_layers == 1
    assert alike.config.num_layers == 4
