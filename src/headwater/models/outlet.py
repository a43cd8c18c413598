"""How generated tokens leave as text: none that may yet be part of a stop string, and free only up to an opening."""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterator, Sequence

from headwater.models.backend import FinishReason, Piece, TokenLogprob
from headwater.models.structured import opening_pattern
from headwater.models.tokenizer import Tokenizer


class Opening:
    """Watches a free answer for the opening after which it has to follow a grammar."""

    def __init__(self, tokenizer: Tokenizer, opening: str) -> None:
        self._tokenizer = tokenizer
        self._pattern = re.compile(opening_pattern(opening).encode())
        self._said = b""

    def take(self, tokens: list[int], likely: list[TokenLogprob]) -> tuple[list[int], list[TokenLogprob], bool]:
        """Tokens that go on with the answer, cut where the opening ends, and whether it is there.

        A token that reaches beyond the opening is replaced by those of the part before its end.
        """
        before, self._said = self._said, self._said + b"".join(self._tokenizer.bytes_of(token) for token in tokens)
        found = self._pattern.search(self._said)
        if found is None:
            return tokens, likely, False
        kept, at = 0, len(before)
        while kept < len(tokens) and at + len(self._tokenizer.bytes_of(tokens[kept])) <= found.end():
            at += len(self._tokenizer.bytes_of(tokens[kept]))
            kept += 1
        try:
            rest = self._tokenizer.tokenize(self._said[at : found.end()].decode(), control=False)
        except UnicodeDecodeError:  # the token begins inside a character: the answer stays free
            return tokens, likely, False
        return [*tokens[:kept], *rest], [*likely[:kept], *(likely[kept : kept + 1] * len(rest))], True


class Outlet:
    """Lets tokens out as text once they can no longer be part of a stop string; whole tokens only."""

    def __init__(self, stops: tuple[bytes, ...]) -> None:
        self._stops = stops
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._held: list[tuple[int, bytes, tuple[TokenLogprob, ...]]] = []
        self.stopped = False

    def take(self, token: int, data: bytes, likely: Sequence[TokenLogprob] = ()) -> Iterator[Piece]:
        """Pieces that may leave now that `token` has come."""
        self._held.append((token, data, tuple(likely)))
        held = b"".join(data for _, data, _ in self._held)
        found = [at for at in (held.find(stop) for stop in self._stops) if at >= 0]
        if found:
            self.stopped = True
            yield from self._leave(min(found))
            self._held.clear()
            return
        at_risk = max(
            (
                size
                for stop in self._stops
                for size in range(1, min(len(stop), len(held) + 1))
                if held.endswith(stop[:size])
            ),
            default=0,
        )
        yield from self._release(len(held) - at_risk)

    def release(self) -> Iterator[Piece]:
        """Whatever was held back."""
        yield from self._release(sum(len(data) for _, data, _ in self._held))

    def finish(self, reason: FinishReason) -> Iterator[Piece]:
        """Whatever was held back, then the last piece."""
        yield from self.release()
        yield Piece(self._decoder.decode(b"", final=True), (), reason)

    def _release(self, safe: int) -> Iterator[Piece]:
        """Tokens that end within the first `safe` bytes held."""
        while self._held and len(self._held[0][1]) <= safe:
            token, data, likely = self._held.pop(0)
            safe -= len(data)
            yield Piece(self._decoder.decode(data), (token,), logprobs=likely)

    def _leave(self, size: int) -> Iterator[Piece]:
        """The first `size` bytes held; a token cut by the stop string stays, with the text before the cut."""
        for token, data, likely in self._held:
            if size <= 0:
                return
            yield Piece(self._decoder.decode(data[:size]), (token,), logprobs=likely)
            size -= len(data)
