"""The generator of chats, its checkers, and the texts and tokens they become."""

from pathlib import Path
from random import Random

import numpy as np
import pytest
from demo_model.chat import ASSISTANT_OPENING, render
from demo_model.evaluation import RETRIEVAL, TASKS, answer_room, held_out, prompt_tokens
from demo_model.mixture import SHORT, draw
from demo_model.packing import Packer
from demo_model.sample import Answer, Check, Sample, answer_from_message, is_right
from tokenizers import Tokenizer
from transformers import AutoTokenizer

DRAWS = 60


def samples(task: str, count: int = DRAWS) -> list[Sample]:
    generate, _ = SHORT[task]
    return [generate(Random(f"test:{task}:{number}")) for number in range(count)]


@pytest.mark.parametrize("task", SHORT)
def test_the_same_seed_makes_the_same_samples(task: str) -> None:
    assert samples(task) == samples(task)


@pytest.mark.parametrize("task", SHORT)
def test_checker_accepts_gold_and_rejects_other_answers(task: str) -> None:
    for sample in samples(task):
        assert is_right(sample.check, sample.gold())
        assert not is_right(sample.check, Answer())
        assert not is_right(sample.check, Answer(content="No idea 7 8"))
        assert not is_right(sample.check, Answer(tool_calls=(("unknown", {}),)))


@pytest.mark.parametrize("task", SHORT)
def test_checker_rejects_gold_with_a_change(task: str) -> None:
    for sample in samples(task):
        gold = sample.gold()
        calls = tuple((name, {**arguments, "extra": 1}) for name, arguments in gold.tool_calls)
        assert not is_right(sample.check, Answer(gold.content + " 5x}", calls, gold.reasoning))


def test_thinking_needs_a_reasoning_section() -> None:
    check = Check("thinking", "12")
    assert is_right(check, Answer("12", reasoning="7 + 5 = 12"))
    assert not is_right(check, Answer("12"))


def test_tool_call_checks_arguments_given_as_text() -> None:
    call = {"id": "1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1, "b": 2}'}}
    answer = answer_from_message({"role": "assistant", "content": None, "tool_calls": [call]})
    assert is_right(Check("tool_calls", [["add", {"a": 1, "b": 2}]]), answer)
    assert not is_right(Check("tool_calls", [["add", {"a": 1, "b": 3}]]), answer)


def test_training_text_is_what_the_chat_template_renders(demo_directory: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(demo_directory)
    rng = Random(5)
    for _ in range(400):
        sample = draw(rng, None)
        for messages, opening in ((sample.messages, False), (sample.prompt(), True)):
            expected = tokenizer.apply_chat_template(
                messages, tools=sample.tools, tokenize=False, add_generation_prompt=opening
            )
            assert render(messages, sample.tools, opening) == expected


def test_template_continues_the_final_message(demo_directory: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(demo_directory)
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hel"}]
    text = tokenizer.apply_chat_template(messages, tokenize=False, continue_final_message=True)
    assert text == f"<|im_start|>user\nHi<|im_end|>\n{ASSISTANT_OPENING}Hel"


def test_template_asks_for_thinking_and_takes_parts(demo_directory: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(demo_directory)
    messages = [
        {"role": "user", "content": [{"type": "text", "text": "1 + "}, {"type": "text", "text": "1"}]}
    ]
    text = tokenizer.apply_chat_template(messages, tokenize=False, enable_thinking=True)
    assert text.startswith("<|im_start|>system\nThink before you answer, inside <think> tags.<|im_end|>\n")
    assert "user\n1 + 1<|im_end|>" in text


def test_texts_round_trip_and_digits_stay_single(demo_tokenizer: Tokenizer) -> None:
    rng = Random(6)
    for _ in range(400):
        sample = draw(rng, None)
        text = render(sample.messages, sample.tools)
        encoding = demo_tokenizer.encode(text)
        assert demo_tokenizer.decode(encoding.ids, skip_special_tokens=False) == text
        assert all(len(token) == 1 for token in encoding.tokens if any(char.isdigit() for char in token))
    every_byte = bytes(range(256)).decode("latin-1") + "\u0900漢🏳️‍🌈"
    assert demo_tokenizer.decode(demo_tokenizer.encode(every_byte).ids) == every_byte


@pytest.mark.parametrize("task", RETRIEVAL)
def test_retrieval_prompts_fill_their_budget(task: str, demo_tokenizer: Tokenizer) -> None:
    for sample in held_out(task, 6, 0, demo_tokenizer):
        length = prompt_tokens(sample, demo_tokenizer)
        assert RETRIEVAL[task] * 0.8 < length <= RETRIEVAL[task] - 40
        assert length + answer_room(sample, demo_tokenizer) <= RETRIEVAL[task] + 40


def test_held_out_samples_depend_on_the_seed_alone(demo_tokenizer: Tokenizer) -> None:
    for task in TASKS:
        if task not in RETRIEVAL:
            assert held_out(task, 3, 1, demo_tokenizer) == held_out(task, 3, 1, demo_tokenizer)
            assert held_out(task, 3, 1, demo_tokenizer) != held_out(task, 3, 2, demo_tokenizer)


def test_packs_hold_whole_chats_and_weigh_only_the_assistant(demo_tokenizer: Tokenizer) -> None:
    packer = Packer(demo_tokenizer, seed=0, total_steps=100, size=4096)
    pack = packer.pack(3, long=False)
    again = packer.pack(3, long=False)
    assert np.array_equal(pack.tokens, again.tokens)
    assert pack.bounds[0] == 0
    assert pack.bounds[-1] == 4096
    assert (np.diff(pack.bounds) <= pack.longest).all()
    begins = pack.bounds[:-1][np.diff(pack.bounds) > 0]
    assert (pack.positions[begins] == 0).all()
    weighed = np.flatnonzero(pack.weights)
    assert (pack.targets[weighed] == pack.tokens[weighed + 1]).all()
    spoken = demo_tokenizer.decode([int(token) for token in pack.targets[weighed]], skip_special_tokens=False)
    assert "<|im_end|>" in spoken
    assert "<|im_start|>" not in spoken
