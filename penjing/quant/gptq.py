"""GPTQ: inputs are rounded one after another, and those still to come make up for the error (arXiv:2210.17323).

What is kept small is sum_O e_O H e_O^T for the rows e of the error: with H = X^T X that of the layer's outputs, with
the Fisher's H (`tensors.statistics`) that of the loss. Inputs are taken by descending diagonal ("activation order").
Scales are searched first, on the weights as they are and by the same diagonal, so that groups stay runs of neighbours
whatever the order. Then `sweeps` times: scales by least squares under the whole H for the codes found, and each code
anew, given all others (coordinate descent, as in arXiv:2309.01885): each step can only make the error smaller.

Levels may be even steps, ternary, or a book of values that is learned for the matrix first (`tensors.books`).

Shapes: O outputs, I inputs, N groups a row, G inputs a group, B inputs of a block, K levels.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor

from penjing.tensors.books import level, nearest
from penjing.tensors.groups import Quantized, to_groups
from penjing.tensors.rounding import rounded
from penjing.tensors.scales import stored

#: inputs whose error is handed on among themselves first, then to all others by one product of matrices
_BLOCK = 64


@dataclass(frozen=True, kw_only=True)
class Spec:
    """bits: 2, 3, 4, 5, 6 or 8. group_size: inputs that share a scale, a divisor of the row.

    levels: what codes stand for: uniform (even steps), book (learned values, 2 to 4 bits) or ternary (2 bits).
    scale_bits: 16, or 8, which are exact enough for codes of up to 4 bits (format/scales.py).
    damping: added to the diagonal of H, as a fraction of its mean. sweeps: rounds of refinement.
    """

    bits: int = 4
    group_size: int = 64
    symmetric: bool = True
    levels: str = "uniform"
    scale_bits: int = 16
    damping: float = 0.1
    sweeps: int = 1


@dataclass(frozen=True)
class Prepared:
    """What all rows of all matrices under one Hessian share; the cube of I is spent here, once."""

    damped_II: Tensor  # noqa: N815
    order_I: Tensor  # noqa: N815
    upper_II: Tensor  # noqa: N815 - its row i says who makes up for the error of the i-th input taken


def prepare(spec: Spec, hessian_II: Tensor) -> Prepared:
    """`hessian_II`: symmetric, finite, no negative eigenvalue. Takes 20 bytes a value of H while it works, 8 after.

    H^-1 = U^T U with an upper U. With inputs in the opposite order H = L L^T, and U is the inverse of L turned back:
    one factor and one inverse in float64, where Cholesky, inverse and Cholesky again take twice the memory.
    """
    damped_II = _damped(hessian_II, spec.damping)
    order_I = damped_II.diagonal().argsort(descending=True, stable=True)
    backward_I = order_I.flip(0)
    lower_II = damped_II[backward_I[:, None], backward_I].double().mT  # columns in a row: LAPACK works in place
    torch.linalg.cholesky(lower_II, out=lower_II)
    inverse_II = torch.eye(len(order_I), dtype=torch.float64).mT
    torch.linalg.solve_triangular(lower_II, inverse_II, upper=False, out=inverse_II)
    del lower_II
    return Prepared(damped_II, order_I, inverse_II.float().flip(0, 1))


#: of memory that `prepare` leaves for each value of H
PREPARED_BYTES = 8


def work_bytes(spec: Spec, rows: int, cols: int) -> int:
    """Memory beside the weights, their Hessian and what is prepared: preparing, or rounding that many rows."""
    groups = cols // spec.group_size
    return max(12 * cols * cols, 44 * rows * cols + 24 * rows * groups * groups)


def quantize(
    spec: Spec,
    weight_OI: Tensor,
    hessian_II: Tensor,
    prepared: Prepared | None = None,
    book_K: Tensor | None = None,
) -> Quantized:
    """Quantize float32 weights, all finite, for errors that H weighs. `prepared`: of this spec and H."""
    start = rounded(
        weight_OI,
        hessian_II.diagonal(),
        bits=spec.bits,
        group_size=spec.group_size,
        symmetric=spec.symmetric,
        levels=spec.levels,
        scale_bits=spec.scale_bits,
        book_K=book_K,
    )
    known = prepared or prepare(spec, hessian_II)
    grid = _Grid(start, spec.group_size)
    step_IO = _round_in_order(weight_OI.T, grid, known)
    for _ in range(spec.sweeps):
        grid.fit(weight_OI, step_IO, known.damped_II)
        step_IO = _round_each_anew(weight_OI.T, grid, step_IO, known)
    if spec.sweeps:
        grid.fit(weight_OI, step_IO, known.damped_II)
    return grid.quantized(step_IO)


def error(weight_OI: Tensor, quantized: Quantized, hessian_II: Tensor) -> float:
    """What is kept small."""
    error_OI = quantized.dequantize() - weight_OI
    return float(((error_OI @ hessian_II) * error_OI).sum())


def _damped(hessian_II: Tensor, damping: float) -> Tensor:
    """Positive definite; an input that was never seen costs as much as the damping says, or 1 where none was."""
    mean = float(hessian_II.diagonal().mean())
    damped_II = hessian_II.clone()
    damped_II.diagonal().add_(damping * mean if mean > 0 else 1.0)
    return damped_II


class _Grid:
    """The values that each weight may take: steps times a scale, a step being code - zero or the code's level."""

    def __init__(self, start: Quantized, group_size: int) -> None:
        self._start, self._group_size = start, group_size
        self._level_K = _levels(start)
        self._scale_ON = start.scale_ON.float()
        zero_ON = torch.full_like(self._scale_ON, 1 << (start.bits - 1)) if start.zero_ON is None else start.zero_ON
        self._low_NO = -zero_ON.T.float()
        self._high_NO = self._low_NO + (1 << start.bits) - 1
        self._scale_NO = self._scale_ON.T.contiguous()

    def scale(self, index: int) -> Tensor:
        """Of an input, [O]."""
        return self._scale_NO[index // self._group_size]

    def steps(self, index: int, weight_O: Tensor) -> Tensor:
        """Of the nearest values for one input."""
        group = index // self._group_size
        step_O = weight_O / self._scale_NO[group]
        if self._level_K is not None:
            return level(step_O, (self._level_K[1:] + self._level_K[:-1]) / 2, self._level_K)
        return step_O.round_().clamp_(self._low_NO[group], self._high_NO[group])

    def values(self, step_IO: Tensor) -> Tensor:
        return step_IO * self._scale_NO.repeat_interleave(self._group_size, dim=0)

    def fit(self, weight_OI: Tensor, step_IO: Tensor, hessian_II: Tensor) -> None:
        """The scales of each row that are best together: sum_M (c_N H c_M) s_M = c_N H w, with c_N a group's steps."""
        step_OI = step_IO.T.contiguous()
        step_ONG = to_groups(step_OI, self._group_size)
        target_ON = (to_groups(weight_OI @ hessian_II, self._group_size) * step_ONG).sum(-1)
        matrix_ONN, product_OI = weight_OI.new_empty(*target_ON.shape, target_ON.shape[1]), torch.empty_like(step_OI)
        for n, rows_GI in enumerate(torch.split(hessian_II, self._group_size)):  # in place: pieces between large
            torch.matmul(step_ONG[:, n], rows_GI, out=product_OI).mul_(step_OI)  # temporaries would tear the heap
            matrix_ONN[:, n] = to_groups(product_OI, self._group_size).sum(-1)
        diagonal_ON = matrix_ONN.diagonal(dim1=1, dim2=2)
        empty_ON = diagonal_ON <= 0  # a group of zeros: any scale will do
        matrix_ONN = matrix_ONN.double() + torch.diag_embed(empty_ON.double())
        fitted_ON = torch.linalg.solve(matrix_ONN, target_ON.double()).float()
        stored_ON = stored(fitted_ON, self._start.scale_bits)
        self._scale_ON = torch.where(empty_ON | ~fitted_ON.isfinite(), self._scale_ON, stored_ON)
        self._scale_NO = self._scale_ON.T.contiguous()

    def quantized(self, step_IO: Tensor) -> Quantized:
        if self._level_K is not None:
            code_IO = nearest(step_IO, self._level_K)
        else:
            code_IO = step_IO - self._low_NO.repeat_interleave(self._group_size, dim=0)
        code_ONG = to_groups(code_IO.T.to(torch.uint8).contiguous(), self._group_size)
        return dataclasses.replace(self._start, code_ONG=code_ONG, scale_ON=self._scale_ON.half())


def _levels(start: Quantized) -> Tensor | None:
    """Rising levels by code; None: even steps."""
    if start.levels == "uniform":
        return None
    return torch.tensor([-1.0, 0.0, 1.0]) if start.book_K is None else start.book_K.float()


def _round_in_order(weight_IO: Tensor, grid: _Grid, prepared: Prepared) -> Tensor:
    """GPTQ proper: steps of each weight."""
    order_I, upper_II = prepared.order_I, prepared.upper_II
    work_IO = weight_IO[order_I]  # indexing copies
    step_IO = torch.empty_like(work_IO)
    index = order_I.tolist()
    for begin in range(0, len(index), _BLOCK):
        end = min(begin + _BLOCK, len(index))
        error_BO = torch.empty_like(work_IO[begin:end])
        for i in range(begin, end):
            step_IO[i] = grid.steps(index[i], work_IO[i])
            error_BO[i - begin] = (work_IO[i] - step_IO[i] * grid.scale(index[i])) / upper_II[i, i]
            work_IO[i + 1 : end].addr_(upper_II[i, i + 1 : end], error_BO[i - begin], alpha=-1)
        work_IO[end:] -= upper_II[begin:end, end:].T @ error_BO
    found_IO = torch.empty_like(step_IO)
    found_IO[order_I] = step_IO
    return found_IO


def _round_each_anew(weight_IO: Tensor, grid: _Grid, step_IO: Tensor, prepared: Prepared) -> Tensor:
    """Coordinate descent: the best step of each weight given all others of its row."""
    order_I, damped_II = prepared.order_I, prepared.damped_II
    pull_IO = (damped_II @ (weight_IO - grid.values(step_IO)))[order_I]
    value_IO, ordered_IO = grid.values(step_IO)[order_I], step_IO[order_I]
    index = order_I.tolist()
    for begin in range(0, len(index), _BLOCK):
        end = min(begin + _BLOCK, len(index))
        rows_BI = damped_II[order_I[begin:end]][:, order_I]  # a copy of all in this order would take as much as H
        change_BO = torch.empty_like(pull_IO[begin:end])
        for i in range(begin, end):
            row_I = rows_BI[i - begin]
            ordered_IO[i] = grid.steps(index[i], value_IO[i] + pull_IO[i] / row_I[i])
            change_BO[i - begin] = ordered_IO[i] * grid.scale(index[i]) - value_IO[i]
            pull_IO[i + 1 : end].addr_(row_I[i + 1 : end], change_BO[i - begin], alpha=-1)
        pull_IO[end:] -= rows_BI[:, end:].T @ change_BO
    found_IO = torch.empty_like(step_IO)
    found_IO[order_I] = ordered_IO
    return found_IO
