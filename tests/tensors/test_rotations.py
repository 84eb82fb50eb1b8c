"""Rotations are orthogonal whatever the size, and Hadamard where a construction is known."""

from __future__ import annotations

import math

import pytest
import torch

from penjing.tensors.rotations import hadamard, rotation

EPS = torch.finfo(torch.float64).eps


@pytest.mark.parametrize("size", [1, 2, 4, 12, 20, 28, 36, 60, 64, 576, 896, 1536])
def test_hadamard_has_entries_of_one_size_and_orthogonal_rows(size):
    found = hadamard(size)
    assert (found.abs() == 1).all()
    assert torch.equal(found @ found.T, size * torch.eye(size, dtype=torch.float64))  # sums of ±1 are exact


@pytest.mark.parametrize("size", [3, 6, 9, 35, 92])
def test_there_is_none_where_no_construction_is_known(size):
    assert hadamard(size) is None


@pytest.mark.parametrize("size", [1, 2, 3, 9, 10, 36, 52, 100, 576])
@pytest.mark.parametrize("seed", [None, 0, 1])
def test_rotations_are_orthogonal_and_spread(size, seed):
    found = rotation(size, seed=seed)
    error = (found @ found.T - torch.eye(size, dtype=torch.float64)).abs().max()
    assert error <= 4 * size * EPS  # dot products of `size` terms whose squares sum to one, cosines rounded once
    odd = size // (size & -size)
    assert found.abs().max() <= math.sqrt(2 / odd) * math.sqrt(odd / size) * (1 + 4 * EPS)


def test_signs_come_from_the_seed():
    assert torch.equal(rotation(36, seed=3), rotation(36, seed=3))
    assert not torch.equal(rotation(36, seed=3), rotation(36, seed=4))
