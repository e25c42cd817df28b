"""`best_of`: of the choices computed for a prompt, those that are returned."""

from collections.abc import Sequence
from dataclasses import replace
from math import fsum, inf

from gateway.answer import ChoiceDelta


def best_choices(choices: Sequence[ChoiceDelta], *, computed: int, returned: int) -> list[ChoiceDelta]:
    """The `returned` likeliest of each prompt's `computed` choices, likeliest first, and numbered anew.

    `choices` are whole, in order, with the log-probabilities of their tokens; likeliest is, as in OpenAI's API, the one
    with the highest mean log-probability per token, and of equals the first.
    """
    best: list[ChoiceDelta] = []
    for first in range(0, len(choices), computed):
        ranked = sorted(choices[first : first + computed], key=_mean_logprob, reverse=True)
        best += ranked[:returned]
    return [replace(choice, index=index) for index, choice in enumerate(best)]


def _mean_logprob(choice: ChoiceDelta) -> float:
    logprobs = [item.logprob for item in choice.logprobs]
    return fsum(logprobs) / len(logprobs) if logprobs else -inf
