"""Stop strings, found in text that arrives in pieces."""

from __future__ import annotations

from collections.abc import Sequence


class StopMatcher:
    """Passes text through until a stop string is complete, however the text is cut into pieces.

    The stop string that is *complete first* wins (of two that end together, the one that began first), which makes the result
    independent of the cuts: `"".join(out) + rest` is the same for every split. Only the longest suffix that can still become
    a stop string is held back, so ordinary text leaves at once.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        """`stops` are not empty strings; none at all is fine."""
        self._stops = tuple(stops)
        self._longest = max((len(stop) for stop in self._stops), default=0)
        self._held = ""
        self.matched: str | None = None

    def feed(self, piece: str) -> str:
        """The text that may leave now. After a match (`matched` is set) everything further is dropped."""
        if not self._stops:
            return piece
        if self.matched is not None:
            return ""
        text = self._held + piece
        best: tuple[int, int, str] | None = None
        for stop in self._stops:
            start = text.find(stop)
            if start >= 0 and (best is None or (start + len(stop), start) < best[:2]):
                best = (start + len(stop), start, stop)
        if best is not None:
            self.matched = best[2]
            self._held = ""
            return text[: best[1]]
        keep = self._could_begin(text)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def flush(self) -> str:
        """The text still held back, once no more will come."""
        held, self._held = self._held, ""
        return held

    def _could_begin(self, text: str) -> int:
        """Length of the longest suffix of `text` that is a proper prefix of a stop string."""
        for length in range(min(self._longest - 1, len(text)), 0, -1):
            suffix = text[-length:]
            if any(len(stop) > length and stop.startswith(suffix) for stop in self._stops):
                return length
        return 0
