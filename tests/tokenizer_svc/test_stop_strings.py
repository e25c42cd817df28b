"""Stop strings are found across any splits, and text waits only while it may begin one."""

from hypothesis import given
from hypothesis import strategies as st

from tokenizer_svc.stop_strings import StopStrings

letters = st.text("ab", max_size=20)
stops = st.lists(st.text("ab", min_size=1, max_size=4), min_size=1, max_size=3, unique=True)


def naive(text: str, given_stops: list[str], include: bool) -> tuple[str, str]:
    """Text before (or through) the earliest stop string, and that string."""
    hits = [(text.find(stop), order) for order, stop in enumerate(given_stops) if stop in text]
    if not hits:
        return text, ""
    at, order = min(hits)
    return text[: at + len(given_stops[order]) if include else at], given_stops[order]


@given(text=letters, given_stops=stops, include=st.booleans())
def test_one_push_is_the_definition(text: str, given_stops: list[str], include: bool) -> None:
    watch = StopStrings(given_stops, include=include)
    shown = watch.push(text)
    shown += "" if watch.found else watch.flush()
    assert (shown, watch.found) == naive(text, given_stops, include)


@given(parts=st.lists(st.text("ab", max_size=4), max_size=8), stop=st.text("ab", min_size=1, max_size=4))
def test_splits_change_nothing(parts: list[str], stop: str) -> None:
    watch = StopStrings([stop], include=False)
    shown = "".join(watch.push(part) for part in parts)
    shown += "" if watch.found else watch.flush()
    assert (shown, watch.found) == naive("".join(parts), [stop], include=False)


@given(parts=st.lists(st.text("ab", max_size=3), max_size=8), given_stops=stops)
def test_no_more_is_held_back_than_may_begin_a_stop_string(parts: list[str], given_stops: list[str]) -> None:
    watch = StopStrings(given_stops, include=False)
    sent = ""
    for end in range(1, len(parts) + 1):
        sent += watch.push(parts[end - 1])
        if watch.found:
            return
        held = "".join(parts[:end])[len(sent) :]
        assert held == "" or any(stop.startswith(held) for stop in given_stops)
