"""Codebooks: a few signed 8-bit values for a whole matrix, times the scale of each group.

Shapes: O outputs, I inputs, N groups a row, G inputs a group, K entries of a book, B bins of a histogram.
"""

from __future__ import annotations

import torch
from torch import Tensor

from penjing.tensors.groups import Quantized, to_groups
from penjing.tensors.scales import least_squares, stored

LARGEST = 127  # of an entry
_LAST = 0.9677083  # QLoRA's quantile of the largest entry: the mean of 1 - 1/(2·15) and 1 - 1/(2·16)
#: first scales, as fractions of the one with which the book just covers a group
_STARTS = (0.6, 0.7, 0.8, 0.9, 1.0)
#: weights worked on at a time: what stays in a cache is several times faster
_BLOCK = 1 << 16
_BINS = 1 << 13  # of a histogram
_FURTHEST = 2.0 * LARGEST  # where it ends: a scale may be smaller than what covers its group
_SAMPLE = 1 << 17  # weights of a matrix that its book is learned from
#: what `learned` makes of normally distributed weights in groups of 64: where learning begins
_OF_NORMAL = {
    2: (-101, -25, 42, 127),
    3: (-103, -64, -35, -9, 16, 43, 76, 127),
    4: (-111, -86, -67, -51, -37, -25, -13, -2, 9, 20, 31, 43, 57, 73, 95, 127),
}


def first_book(bits: int) -> Tensor:
    """2^bits rising int8 entries that serve normally distributed weights, the largest of a group being 127."""
    return torch.tensor(_OF_NORMAL[bits], dtype=torch.int8)


def learned_book(
    weight_OI: Tensor, importance_I: Tensor, *, bits: int, group_size: int, turns: int = 2, scale_bits: int = 16
) -> Tensor:
    """The book for a matrix, from a sample of its rows."""
    sample_OI = weight_OI[:: max(1, weight_OI.numel() // _SAMPLE)]
    first_K = first_book(bits)
    return learned(sample_OI, importance_I, first_K, group_size=group_size, turns=turns, scale_bits=scale_bits)


def nearest(value: Tensor, book_K: Tensor) -> Tensor:
    """The index of the entry nearest to each value; entries rise."""
    book_K = book_K.float()
    return level(value, (book_K[1:] + book_K[:-1]) / 2, torch.arange(len(book_K))).long()


def level(value: Tensor, border_K: Tensor, level_K: Tensor) -> Tensor:
    """The level of the cell that each float32 value lies in: whole numbers, the first one up to the first border.

    Comparisons that add up: a tenth of the time that `torch.bucketize` takes for 4 levels, an eighth for 16.
    """
    found, above = torch.full_like(value, float(level_K[0])), torch.empty_like(value)
    for border, step in zip(border_K.tolist(), level_K.float().diff().tolist(), strict=True):
        found.add_(torch.gt(value, border, out=above), alpha=step)
    return found


def search(
    weight_OI: Tensor, importance_I: Tensor, book_K: Tensor, *, bits: int, group_size: int, scale_bits: int = 16
) -> Quantized:
    """The scale of each group for which the book's values cost least, errors weighed by the input's importance."""
    importance_NG = _floored(importance_I, group_size)
    rows = max(1, _BLOCK // weight_OI.shape[1])
    found = [
        _search(to_groups(block_OI, group_size), importance_NG, book_K, scale_bits)
        for block_OI in torch.split(weight_OI, rows)
    ]
    code_ONG, scale_ON, _ = (torch.cat(pieces) for pieces in zip(*found, strict=True))
    return Quantized(
        code_ONG=code_ONG.to(torch.uint8),
        scale_ON=scale_ON.half(),
        bits=bits,
        levels="book",
        book_K=book_K,
        scale_bits=scale_bits,
    )


def learned(
    weight_OI: Tensor, importance_I: Tensor, book_K: Tensor, *, group_size: int, turns: int, scale_bits: int = 16
) -> Tensor:
    """Weighted k-means from a first book, on weights over their group's scale, which is fitted anew each turn.

    It works on a histogram, with 16 bins between neighbouring entries that 8 bits can tell apart. The best book that
    was seen is kept.
    """
    importance_NG = _floored(importance_I, group_size)
    best_K, least = book_K, torch.inf
    for turn in range(turns + 1):
        cost = 0.0
        mass_B, moment_B = torch.zeros(_BINS, dtype=torch.float64), torch.zeros(_BINS, dtype=torch.float64)
        for block_OI in torch.split(weight_OI, max(1, _BLOCK // weight_OI.shape[1])):
            weight_ONG = to_groups(block_OI, group_size)
            _, scale_ON, error_ON = _search(weight_ONG, importance_NG, book_K, scale_bits)
            scale_ON1 = scale_ON.unsqueeze(-1)
            cost += float(error_ON.sum())
            value_ONG = weight_ONG / scale_ON1
            felt = (importance_NG * scale_ON1.square()).flatten().double()
            value = value_ONG.flatten().double()
            bin_ = ((value / (2 * _FURTHEST) + 0.5) * _BINS).long().clamp(0, _BINS - 1)
            mass_B.index_add_(0, bin_, felt)
            moment_B.index_add_(0, bin_, felt * value)
        if cost < least:
            best_K, least = book_K, cost
        if turn < turns:
            book_K = _centres(mass_B, moment_B, book_K)
    return best_K


def normal_book(bits: int) -> Tensor:
    """2^bits rising int8 entries at equal shares of a normal distribution, zero and 127 among them (2305.14314)."""
    half = 1 << (bits - 1)
    above = torch.special.ndtri(torch.linspace(_LAST, 0.5, half + 1, dtype=torch.float64)[:-1])
    below = -torch.special.ndtri(torch.linspace(_LAST, 0.5, half, dtype=torch.float64)[:-1])
    value_K = torch.cat([above, torch.zeros(1, dtype=torch.float64), below]).sort().values
    return (value_K / value_K.abs().max() * LARGEST).round().to(torch.int8)


def _centres(mass_B: Tensor, moment_B: Tensor, book_K: Tensor) -> Tensor:
    """Lloyd's steps until the book stays, then its largest entry made 127; entries stay apart by one at least."""
    middle_B = ((torch.arange(_BINS, dtype=torch.float64) + 0.5) / _BINS - 0.5) * 2 * _FURTHEST
    centre_K = book_K.double()
    for _ in range(200):
        code_B = torch.bucketize(middle_B, (centre_K[1:] + centre_K[:-1]) / 2)
        mass_K = torch.zeros(len(centre_K), dtype=torch.float64).index_add_(0, code_B, mass_B)
        moment_K = torch.zeros(len(centre_K), dtype=torch.float64).index_add_(0, code_B, moment_B)
        moved_K = torch.where(mass_K > 0, moment_K / mass_K.clamp_min(1e-300), centre_K).sort().values
        if torch.equal(moved_K, centre_K):
            break
        centre_K = moved_K
    largest = float(centre_K.abs().max())
    entry_K = (centre_K * (LARGEST / largest if largest > 0 else 1.0)).round().clamp(-LARGEST, LARGEST).long()
    for k in range(1, len(entry_K)):
        entry_K[k] = max(int(entry_K[k]), int(entry_K[k - 1]) + 1)
    for k in range(len(entry_K) - 1, -1, -1):
        entry_K[k] = min(int(entry_K[k]), LARGEST - (len(entry_K) - 1 - k))
    return entry_K.to(torch.int8)


def _floored(importance_I: Tensor, group_size: int) -> Tensor:
    """[N, G]; inputs that calibration never saw count a little."""
    importance_NG = to_groups(importance_I[None], group_size)[0]
    return importance_NG + importance_NG.mean().clamp_min(1e-30) * 1e-3


def _search(
    weight_ONG: Tensor, importance_NG: Tensor, book_K: Tensor, scale_bits: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Codes, scales and errors: several first scales, each improved by least squares, the best kept."""
    book_K = book_K.float()
    most_ON = weight_ONG.abs().amax(-1) / float(book_K.abs().max())
    # the entry without a mirror image serves the larger side where the scale has that sign
    sign_ON = torch.where(weight_ONG.amax(-1) >= -weight_ONG.amin(-1), 1.0, -1.0) * (
        1 if book_K[-1] >= -book_K[0] else -1
    )
    best: tuple[Tensor, Tensor, Tensor] | None = None
    for part in _STARTS:
        scale_ON = stored(part * most_ON * sign_ON, scale_bits)
        step_ONG = book_K[nearest(weight_ONG / scale_ON.unsqueeze(-1), book_K)]
        scale_ON = least_squares(weight_ONG, step_ONG, scale_ON, importance_NG, scale_bits)
        code_ONG = nearest(weight_ONG / scale_ON.unsqueeze(-1), book_K)
        error_ONG = book_K[code_ONG] * scale_ON.unsqueeze(-1) - weight_ONG
        error_ON = (error_ONG.square() * importance_NG).sum(-1)
        if best is None:
            best = code_ONG, scale_ON, error_ON
            continue
        wins_ON = error_ON < best[2]
        best = (
            torch.where(wins_ON.unsqueeze(-1), code_ONG, best[0]),
            torch.where(wins_ON, scale_ON, best[1]),
            torch.where(wins_ON, error_ON, best[2]),
        )
    assert best is not None
    return best
