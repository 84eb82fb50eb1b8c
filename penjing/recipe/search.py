"""Which settings for each part, under a limit of bytes: the least total error that fits.

A multiple-choice knapsack. A Lagrange multiplier prices a byte (Everett 1963): each part then chooses alone, and
bisection finds the price at which the choice just fits. That leaves a gap of less than one part's step, which single
upgrades fill, the best error per byte first.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from penjing.errors import PenjingError

_BISECTIONS = 100


@dataclass(frozen=True)
class Option:
    """One way to store a part. `error` is a non-negative number that adds up over parts."""

    settings: Mapping[str, Any]
    size_bytes: int
    error: float


def allocate(options: Mapping[str, Sequence[Option]], max_bytes: int) -> dict[str, Option]:
    """Choose one option for each part so that sizes sum to at most `max_bytes` and errors to little.

    Raises PenjingError, with the smallest possible size, where nothing fits.
    """
    best = {part: min(choices, key=lambda o: (o.size_bytes, o.error)) for part, choices in options.items()}
    if size(best.values()) > max_bytes:
        raise PenjingError(
            f"the smallest choice needs {size(best.values()):,} bytes, {max_bytes:,} are left for it",
            attempt="more bytes, or fewer bits among the choices",
        )
    cheapest, dearest = 0.0, _highest_price(options)
    for _ in range(_BISECTIONS):
        price = (cheapest + dearest) / 2
        chosen = _choose(options, price)
        if size(chosen.values()) <= max_bytes:
            best, dearest = chosen, price
        else:
            cheapest = price
    return _fill(best, options, max_bytes)


def size(options: Iterable[Option]) -> int:
    return sum(option.size_bytes for option in options)


def _highest_price(options: Mapping[str, Sequence[Option]]) -> float:
    """Error per byte beyond which every part takes its smallest option: sizes differ by a byte at least."""
    return 1 + 2 * max((option.error for choices in options.values() for option in choices), default=0.0)


def _choose(options: Mapping[str, Sequence[Option]], price: float) -> dict[str, Option]:
    return {
        part: min(choices, key=lambda o: (o.error + price * o.size_bytes, o.size_bytes))
        for part, choices in options.items()
    }


def _fill(chosen: dict[str, Option], options: Mapping[str, Sequence[Option]], max_bytes: int) -> dict[str, Option]:
    """Upgrade parts one by one while an upgrade fits."""
    chosen = dict(chosen)
    while True:
        left = max_bytes - size(chosen.values())
        upgrades = [
            ((now.error - option.error) / max(1, option.size_bytes - now.size_bytes), part, option)
            for part, now in chosen.items()
            for option in options[part]
            if option.error < now.error and option.size_bytes - now.size_bytes <= left
        ]
        if not upgrades:
            return chosen
        _, part, option = max(upgrades, key=lambda upgrade: upgrade[0])
        chosen[part] = option
