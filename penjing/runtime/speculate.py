"""Tokens evaluated before they are drawn, where the text seems to repeat itself: speculation without a second model.

What followed the last few tokens when they occurred before is proposed (prompt lookup, arXiv:2304.04487) and evaluated
together with the token at hand: the weights are read once for all. Then tokens are drawn from those logits in order, as
they would be without it, and from the first that was not proposed on the rest is forgotten. The engine's logits do not
depend on how many tokens go in at once, so the text is the same to the byte, whatever the sampler does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

#: tokens whose last occurrence is looked up, longest first
SIZES: Final = (4, 3, 2)
#: tokens proposed at once: a block of 16 columns with the one at hand
MOST: Final = 15
#: how much of the balance of seconds a forward pass forgets: it looks back some ten of them
FORGET: Final = 0.1
#: tokens without proposals after they cost more than they saved, at first and when that happens again and again
REST, LONGEST_REST = 16, 1024


class Decoder(Protocol):
    """The part of `Session` that is used here."""

    def forward(self, tokens: Sequence[int], num_logits: int = 1) -> NDArray[np.float32]: ...
    def truncate(self, length: int) -> None: ...


class Lookup:
    """A growing text that knows where its last few tokens occurred before."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self._next: dict[tuple[int, ...], int] = {}  # the end of some tokens to the place of what followed them last

    def add(self, token: int) -> None:
        for size in SIZES:
            if len(self.tokens) >= size:
                self._next[tuple(self.tokens[-size:])] = len(self.tokens)
        self.tokens.append(token)

    def propose(self, most: int) -> list[int]:
        """Up to `most` tokens that may follow."""
        for size in SIZES:
            place = self._next.get(tuple(self.tokens[-size:])) if len(self.tokens) >= size else None
            if place is not None:
                return self.tokens[place : place + max(most, 0)]
        return []


class Balance:
    """Whether proposals pay: seconds that plain steps would have taken for the same tokens, less the seconds taken."""

    def __init__(self) -> None:
        self._plain_s = 0.0
        self._saved_s = 0.0
        self._resting = self._next_rest = REST
        self._most = 2

    @property
    def most(self) -> int:
        """How many tokens to propose now."""
        return 0 if self._resting else self._most

    def plain(self, seconds: float) -> None:
        """A step without proposals took so long. Quick ones count more: others were disturbed."""
        known = self._plain_s or seconds
        self._plain_s = min(seconds, (1 - FORGET) * known + FORGET * seconds)
        self._resting = max(0, self._resting - 1)

    def tried(self, proposed: int, drawn: int, seconds: float) -> None:
        """A step with proposals took so long, and so many of them were drawn."""
        self._most = min(MOST, 2 * proposed) if drawn == proposed else max(1, drawn)
        self._saved_s = (1 - FORGET) * self._saved_s + (1 + drawn) * self._plain_s - seconds
        if self._saved_s >= 0:
            self._next_rest = REST
            return
        self._resting, self._next_rest = self._next_rest, min(LONGEST_REST, 2 * self._next_rest)
        self._saved_s = 0.0


class Speculation:
    """Feeds a session one token at a time, evaluating some before they come.

    held: the tokens that the session holds; kept up to date, without what was evaluated ahead.
    """

    def __init__(self, session: Decoder, held: list[int], *, clock: Callable[[], float]) -> None:
        self._session, self._held, self._clock = session, held, clock
        self._lookup = Lookup()
        for token in held:
            self._lookup.add(token)
        self._balance = Balance()
        self._ahead: list[int] = []  # in the session, not yet drawn
        self._logits: NDArray[np.float32] = np.empty((0, 0), np.float32)  # after the token at hand and those ahead
        self._proposed, self._seconds = 0, 0.0  # of the last forward pass
        self.num_drawn_ahead = 0

    def feed(self, token: int, room: int) -> NDArray[np.float32]:
        """Append a token; logits_V after it. room: how many more could follow."""
        if self._ahead and self._ahead[0] == token:
            del self._ahead[0]
            self.num_drawn_ahead += 1
            self._lookup.add(token)
        else:
            self.settle()
            self._lookup.add(token)
            self._forward(token, self._lookup.propose(min(self._balance.most, room)))
        self._held.append(token)
        logits_V: NDArray[np.float32] = self._logits[len(self._logits) - 1 - len(self._ahead)]
        return logits_V

    def settle(self) -> None:
        """Forget what was evaluated ahead and not drawn."""
        if self._ahead:
            self._session.truncate(len(self._held))
        if self._proposed:
            self._balance.tried(self._proposed, self._proposed - len(self._ahead), self._seconds)
        self._ahead, self._proposed = [], 0

    def _forward(self, token: int, proposals: list[int]) -> None:
        start = self._clock()
        self._logits = self._session.forward([token, *proposals], num_logits=1 + len(proposals))
        self._seconds = self._clock() - start
        self._ahead, self._proposed = list(proposals), len(proposals)
        if not proposals:
            self._balance.plain(self._seconds)
