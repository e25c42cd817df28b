"""Stop strings across token boundaries, with text held back only while it may be the beginning of one."""

from collections.abc import Sequence


class StopStrings:
    """Watches the text of one sequence."""

    def __init__(self, stops: Sequence[str], *, include: bool) -> None:
        self._stops = tuple(stops)
        self._include = include
        self._firsts = frozenset(stop[0] for stop in stops)
        self._longest = max((len(stop) for stop in stops), default=0)
        self._held = ""
        self.found = ""
        """The stop string that ended the sequence; empty until then."""

    def push(self, text: str) -> str:
        """Text that is certainly before a stop string. After one is found: the rest of it, then nothing."""
        if self.found:
            return ""
        text = self._held + text
        # Earliest in the text; of those that begin together, the one given first.
        hits = [(at, order) for order, stop in enumerate(self._stops) if (at := text.find(stop)) >= 0]
        if hits:
            at, order = min(hits)
            self.found, self._held = self._stops[order], ""
            return text[: at + len(self.found)] if self._include else text[:at]
        cut = self._first_possible(text)
        self._held = text[cut:]
        return text[:cut]

    def flush(self) -> str:
        """What was held back, when the sequence has ended otherwise."""
        held, self._held = self._held, ""
        return held

    def _first_possible(self, text: str) -> int:
        """Where the longest suffix that begins a stop string starts; the length of the text if none does."""
        for at in range(max(0, len(text) - self._longest + 1), len(text)):
            if text[at] in self._firsts and any(stop.startswith(text[at:]) for stop in self._stops):
                return at
        return len(text)
