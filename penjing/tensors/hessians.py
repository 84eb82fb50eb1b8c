"""Second moments of a matrix's inputs, added up as activations stream by: how errors meet in the outputs.

With errors e of one output's weights the output is off by x e; summed over tokens, its square is e H e^T, H = X^T X.

Shapes: T tokens, I inputs.
"""

from __future__ import annotations

from torch import Tensor


class Moments:
    """X^T X by the name of the matrix. Matrices that read the same tensor, one after another, share one sum."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._shared: dict[str, str] = {}
        self._last: tuple[str, Tensor] | None = None

    def add(self, name: str, x_TI: Tensor) -> None:
        """Count the inputs of more tokens."""
        if name in self._sums:
            self._sums[name].addmm_(x_TI.T, x_TI)
        elif self._last is not None and self._last[1] is x_TI:
            self._shared[name] = self._last[0]
            return
        else:
            self._sums[name] = x_TI.T @ x_TI
        self._last = name, x_TI

    def hessians(self) -> dict[str, Tensor]:
        """H of every matrix that was shown; shared ones are the same tensor."""
        return self._sums | {name: self._sums[first] for name, first in self._shared.items()}
