"""The one error a user sees: what is wrong, where, and what to try."""

from __future__ import annotations


class PenjingError(Exception):
    """A problem told in up to three lines: the fact, the place, the remedy.

    Anything else that escapes penjing is a bug in penjing.
    """

    def __init__(self, fact: str, *, where: str = "", attempt: str = "") -> None:
        super().__init__(fact)
        self.fact = fact
        self.where = where
        self.attempt = attempt

    def __str__(self) -> str:
        lines = [self.fact]
        if self.where:
            lines.append(f"  where: {self.where}")
        if self.attempt:
            lines.append(f"  try:   {self.attempt}")
        return "\n".join(lines)
