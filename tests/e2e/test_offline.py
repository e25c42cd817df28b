"""The offline API: the same tokens as over HTTP, in scripts and under running event loops, errors as exceptions."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest

from quire import LLM, SamplingParams
from quire.errors import InvalidRequest, NotFound
from quire.launcher import LaunchError
from tests.support.checkpoints import VOCAB_SIZE
from tests.support.server import REPOSITORY

pytestmark = pytest.mark.e2e

GREEDY = SamplingParams(temperature=0, max_tokens=12)
PROMPTS = ["message Session", [5, 300, 42, 7], "// A stream of tokens, and then some more of them"]


@pytest.fixture(scope="module")
def llm(llama: Path) -> Iterator[LLM]:
    with LLM(str(llama), progress=False, threads=1, max_rows=16) as made:
        yield made


def test_greedy_tokens_are_those_of_the_server(llm: LLM, client: openai.OpenAI) -> None:
    ours = llm.generate(PROMPTS, GREEDY)
    for prompt, output in zip(PROMPTS, ours, strict=True):
        theirs = client.completions.create(
            model="tiny", prompt=prompt, temperature=0, max_tokens=12, extra_body={"return_token_ids": True}
        )
        (choice,), usage = theirs.choices, theirs.usage
        assert output.prompt == prompt
        assert output.text == choice.text
        assert output.outputs[0].token_ids == choice.token_ids
        assert output.outputs[0].finish_reason == choice.finish_reason
        assert usage is not None
        assert output.num_prompt_tokens == usage.prompt_tokens


def test_a_chat_is_rendered_as_the_server_renders_it(llm: LLM, client: openai.OpenAI) -> None:
    messages = [{"role": "user", "content": "one two three"}]
    theirs = client.chat.completions.create(model="tiny", messages=messages, temperature=0, max_tokens=12)
    (output,) = llm.chat(messages, GREEDY)
    assert output.prompt == messages
    assert output.text == (theirs.choices[0].message.content or "")
    both = llm.chat([messages, messages], GREEDY)
    assert [one.text for one in both] == [output.text] * 2


def test_one_prompt_of_each_kind_gives_one_output(llm: LLM) -> None:
    assert len(llm.generate("one", GREEDY)) == len(llm.generate([1, 2, 3], GREEDY)) == 1
    assert llm.generate([], GREEDY) == []


def test_every_prompt_may_have_parameters_of_its_own(llm: LLM) -> None:
    lengths = [1, 5, 3]
    params = [SamplingParams(temperature=0, max_tokens=length, ignore_eos=True) for length in lengths]
    outputs = llm.generate(PROMPTS, params)
    assert [len(output.outputs[0].token_ids) for output in outputs] == lengths
    with pytest.raises(InvalidRequest, match="2 sampling parameters for 3 prompts"):
        llm.generate(PROMPTS, params[:2])


def test_samples_come_in_order_with_log_probabilities(llm: LLM) -> None:
    params = SamplingParams(n=3, seed=1, max_tokens=6, ignore_eos=True, logprobs=2)
    (output,) = llm.generate("one", params)
    assert [sequence.index for sequence in output.outputs] == [0, 1, 2]
    assert len({tuple(sequence.token_ids) for sequence in output.outputs}) == 3
    for sequence in output.outputs:
        assert sequence.logprobs is not None
        assert [item.token_id for item in sequence.logprobs] == sequence.token_ids
        assert all(len(item.top) == 2 and item.logprob <= 0 for item in sequence.logprobs)
    assert llm.generate("one", params)[0].outputs == output.outputs


def test_a_repeated_prompt_is_found_in_the_cache(llm: LLM) -> None:
    prompt = [[number % 500 for number in range(100)]]
    first, second = llm.generate(prompt, GREEDY), llm.generate(prompt, GREEDY)
    assert (first[0].num_cached_tokens, second[0].num_cached_tokens) == (0, 96)
    assert second[0].text == first[0].text


def test_what_ended_a_sequence_is_told(llm: LLM) -> None:
    (free,) = llm.generate("one", SamplingParams(temperature=0, max_tokens=6, ignore_eos=True))
    token = free.outputs[0].token_ids[2]
    (stopped,) = llm.generate("one", SamplingParams(temperature=0, max_tokens=6, stop_token_ids=[token]))
    assert stopped.outputs[0].finish_reason == "stop"
    assert stopped.outputs[0].stop_reason == token


def test_the_first_error_is_raised_and_the_next_call_works(llm: LLM) -> None:
    with pytest.raises(InvalidRequest, match=r"prompt 1: .*context"):
        llm.generate(["fine", [1] * 5000, "fine too"], GREEDY)
    with pytest.raises(InvalidRequest, match=f"prompt 1: .*{VOCAB_SIZE - 1}"):
        llm.generate([[1], [VOCAB_SIZE + 5]], GREEDY)
    with pytest.raises(InvalidRequest, match="temperature"):
        llm.generate("one", SamplingParams(temperature=-1.0))
    assert len(llm.generate(["one"] * 3, GREEDY)) == 3


async def test_it_may_be_called_under_a_running_event_loop(llm: LLM) -> None:
    assert len(llm.generate(PROMPTS, GREEDY)) == 3


def test_a_progress_bar_counts_prompts(llm: LLM, capsys: pytest.CaptureFixture[str]) -> None:
    llm.generate(PROMPTS, GREEDY, progress=True)
    assert "3/3" in capsys.readouterr().err


def test_a_service_that_cannot_start_says_why(llama: Path) -> None:
    with pytest.raises(LaunchError, match="max-rows"):
        LLM(str(llama), progress=False, max_rows="many")


def test_a_model_that_is_not_there_fails_before_anything_starts(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=r"config\.json"):
        LLM(str(tmp_path))


def test_the_documented_script_runs_and_needs_no_main_guard() -> None:
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-W", "error", "docs/examples/offline.py"],
        cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "What is Quire? Quire is a server for large language models." in done.stdout
    assert done.stdout.count("\n") == 6


def test_after_close_nothing_runs_and_calls_are_refused(llama: Path) -> None:
    llm = LLM(str(llama), progress=False, threads=1)
    folder = llm._background._services._folder  # type: ignore[union-attr]
    llm.close()
    llm.close()
    assert not folder.exists()
    with pytest.raises(InvalidRequest, match="closed"):
        llm.generate("one")


def test_a_script_that_never_closes_ends_by_itself_and_leaves_nothing(llama: Path) -> None:
    code = f"from quire import LLM; llm = LLM({str(llama)!r}, progress=False, threads=1)\n"
    code += "print(llm._background._services._folder, *llm._background._services.pids.values())"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "Traceback" not in done.stderr
    folder, *pids = done.stdout.split()
    assert not Path(folder).exists()
    assert len(pids) == 3
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)
