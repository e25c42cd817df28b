"""Generates from prompts and from chats without a server: `python docs/examples/offline.py [MODEL]`."""

import sys

from quire import LLM, SamplingParams

greedy = SamplingParams(temperature=0, max_tokens=40)
with LLM(*sys.argv[1:2], progress=False) as llm:
    # Prompts: texts or token ids, any number of them; the engine batches.
    for output in llm.generate(["Quire is", "The worker"], greedy):
        print(f"{output.prompt!r} -> {output.text!r}")

    # Chats, in OpenAI's message format, each with parameters of its own.
    questions = ["What is Quire?", "What is 2 + 2?"]
    chats = [[{"role": "user", "content": question}] for question in questions]
    for question, output in zip(questions, llm.chat(chats, [greedy, greedy]), strict=True):
        print(f"{question} {output.text}")

    # Several samples of one prompt, reproducible by their seed, with log-probabilities.
    (output,) = llm.generate("Quire is", SamplingParams(n=2, seed=7, max_tokens=4, logprobs=1))
    for sequence in output.outputs:
        assert sequence.logprobs is not None
        print(
            sequence.finish_reason, sequence.token_ids, [round(item.logprob, 2) for item in sequence.logprobs]
        )
