"""Random requests fit the model, are of every kind, and the same for the same seed."""

from random import Random

from benchmarks.gpu_proof.agreement import cut
from benchmarks.gpu_proof.requests import Ask, RequestSource


def source(seed: int) -> RequestSource:
    return RequestSource([[20, 21, 22], [30] * 400], 2048, 512, Random(seed))


def drawn(seed: int, count: int = 300) -> list[Ask]:
    requests = source(seed)
    requests.ended.append([40] * 500)
    return [requests.draw() for _ in range(count)]


def test_every_request_fits() -> None:
    for ask in drawn(1):
        assert 0 < len(ask.prompt) <= 512 - ask.sampling.max_tokens
        assert all(0 <= token < 2048 for token in ask.prompt)


def test_there_are_all_kinds() -> None:
    asks = drawn(2)
    assert {ask.sampling.temperature for ask in asks} >= {0.0, 1.0}
    assert {1, 2, 3, 4} == {ask.n for ask in asks}
    assert any(ask.cancel_after is not None for ask in asks)
    assert any(not ask.is_judged for ask in asks)
    assert any(ask.sampling.HasField("logprobs") for ask in asks)
    greedy = [ask for ask in asks if ask.sampling.temperature == 0]
    assert len(greedy) > len(asks) / 2
    assert all(ask.is_judged for ask in greedy)


def test_a_seed_gives_the_same_requests() -> None:
    assert drawn(3) == drawn(3)
    assert drawn(3) != drawn(4)


def test_chunks_add_up() -> None:
    rng = Random(0)
    for length in (1, 2, 17, 1000):
        pieces = cut(length, 100, rng)
        assert sum(pieces) == length
        assert all(0 < piece <= 100 for piece in pieces)
