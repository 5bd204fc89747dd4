"""Markers (stop strings, tags), found in text that arrives in pieces."""

from __future__ import annotations

from collections.abc import Sequence


class MarkerSearch:
    """Passes text through until a marker is complete, however the text is cut into pieces.

    The marker that is *complete first* wins (of two that end together, the one that began first), which makes the result
    independent of the cuts: `"".join(out) + held` is the same for every split. Only the longest suffix that can still become
    a marker is held back, so ordinary text leaves at once.
    """

    def __init__(self, markers: Sequence[str]) -> None:
        """`markers` are not empty strings; none at all is fine."""
        self._markers = tuple(markers)
        self.held = ""
        self.matched: str | None = None
        self.rest = ""  # of the piece that completed the match: what came after the marker

    def feed(self, piece: str) -> str:
        """The text that may leave now. After a match (`matched` is set) everything further is dropped."""
        if not self._markers:
            return piece
        if self.matched is not None:
            return ""
        text = self.held + piece
        best: tuple[int, int, str] | None = None
        for marker in self._markers:
            start = text.find(marker)
            if start >= 0 and (best is None or (start + len(marker), start) < best[:2]):
                best = (start + len(marker), start, marker)
        if best is not None:
            self.matched = best[2]
            self.held = ""
            self.rest = text[best[0] :]
            return text[: best[1]]
        keep = partial_suffix(text, self._markers)
        self.held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def flush(self) -> str:
        """The text still held back, once no more will come."""
        held, self.held = self.held, ""
        return held


def partial_suffix(text: str, markers: Sequence[str]) -> int:
    """Length of the longest suffix of `text` that is a proper prefix of a marker."""
    longest = max((len(marker) for marker in markers), default=0)
    for length in range(min(longest - 1, len(text)), 0, -1):
        suffix = text[-length:]
        if any(len(marker) > length and marker.startswith(suffix) for marker in markers):
            return length
    return 0


class JsonEnd:
    """Finds the end of a JSON value in text that arrives in pieces. The value must be an object, an array or a string."""

    def __init__(self) -> None:
        self._depth = 0
        self._in_string = False
        self._escaped = False
        self.done = False

    def feed(self, piece: str) -> int:
        """How many characters of `piece` belong to the value; with the last of them, `done` is set."""
        for index, char in enumerate(piece):
            if self._in_string:
                if self._escaped:
                    self._escaped = False
                elif char == "\\":
                    self._escaped = True
                elif char == '"':
                    self._in_string = False
            elif char == '"':
                self._in_string = True
            elif char in "{[":
                self._depth += 1
            elif char in "}]":
                self._depth -= 1
            if not self._depth and not self._in_string:
                self.done = True
                return index + 1
        return len(piece)
