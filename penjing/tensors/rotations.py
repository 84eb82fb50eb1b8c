"""Rotations that spread what a few channels hold over all of them, for any size: Hadamard matrices where one is known.

A Hadamard matrix has entries of one size only, so each new channel takes equally from all old ones. Sizes 4·k exist by
Paley's two constructions (J. Math. and Phys. 12, 1933) where k fits a prime, and products of two are one again: 576 =
16·36, 896 = 32·28, 1536 = 128·12. What is left odd (or without a construction) is mixed by an orthonormal cosine
transform (DCT-II), whose entries are at most sqrt(2 / size).

Shapes: N channels.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def rotation(size: int, *, seed: int | None = None) -> Tensor:
    """An orthogonal float64 matrix [N, N]; with `seed` its rows have random signs (QuIP#, arXiv:2402.04396)."""
    rotation_NN = _spread(size)
    if seed is None:
        return rotation_NN
    sign_N = torch.randint(0, 2, (size,), generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 2 - 1
    return sign_N.unsqueeze(1) * rotation_NN


def hadamard(size: int) -> Tensor | None:
    """A Hadamard matrix of entries ±1, float64, or None where no construction here gives one."""
    if size in (1, 2):
        return torch.ones(1, 1, dtype=torch.float64) if size == 1 else _SMALL
    if size % 4:
        return None
    found = _paley(size)
    if found is not None:
        return found
    half = hadamard(size // 2)
    return None if half is None else torch.kron(_SMALL, half)


_SMALL = torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64)


def _spread(size: int) -> Tensor:
    found = hadamard(size)
    if found is not None:
        return found / math.sqrt(size)
    twos = size & -size  # the largest power of two that divides it
    power = hadamard(twos)
    assert power is not None
    return torch.kron(power / math.sqrt(twos), _cosines(size // twos))


def _cosines(size: int) -> Tensor:
    """The orthonormal DCT-II."""
    index_N = torch.arange(size, dtype=torch.float64)
    found_NN = torch.cos(math.pi / size * (index_N + 0.5) * index_N.unsqueeze(1)) * math.sqrt(2 / size)
    found_NN[0] /= math.sqrt(2)
    return found_NN


def _paley(size: int) -> Tensor | None:
    """From quadratic residues: order q + 1 for a prime q = 3 (mod 4), 2 (q + 1) for a prime q = 1 (mod 4)."""
    if _is_prime(size - 1):  # size is a multiple of 4, so q = 3 (mod 4)
        first = _conference(size - 1)
        return first + torch.eye(size, dtype=torch.float64)
    q = size // 2 - 1
    if q % 4 == 1 and _is_prime(q):
        identity = torch.eye(q + 1, dtype=torch.float64)
        corner = torch.tensor([[1.0, -1.0], [-1.0, -1.0]], dtype=torch.float64)
        return torch.kron(_conference(q), _SMALL) + torch.kron(identity, corner)
    return None


def _conference(q: int) -> Tensor:
    """[q + 1, q + 1]: zeros on the diagonal, ±1 elsewhere, rows orthogonal. Skew for q = 3 (mod 4), else symmetric."""
    square = {n * n % q for n in range(1, q)}
    kind_N = torch.tensor([0.0, *(1.0 if n in square else -1.0 for n in range(1, q))], dtype=torch.float64)
    index_N = torch.arange(q)
    inner = kind_N[(index_N.unsqueeze(1) - index_N) % q]
    edge = torch.ones(1, q, dtype=torch.float64)
    column = edge.T if q % 4 == 1 else -edge.T
    return torch.cat([torch.cat([torch.zeros(1, 1, dtype=torch.float64), edge], 1), torch.cat([column, inner], 1)])


def _is_prime(number: int) -> bool:
    return number > 1 and all(number % divisor for divisor in range(2, math.isqrt(number) + 1))
