"""Packing: every token once an epoch, nothing across documents, any step at any time."""

from __future__ import annotations

import os
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from penjing.errors import PenjingError
from penjing.train.batch import NO_LABEL, Batch, PackedBatches, document, fill_rows, pack, stack, windows


@given(st.lists(st.integers(1, 20), min_size=1, max_size=60), st.integers(20, 40))
def test_rows_hold_every_document_once_and_are_nearly_as_few_as_can_be(sizes, length):
    rows = fill_rows(sizes, length)
    assert sorted(index for row in rows for index in row) == list(range(len(sizes)))
    assert all(sum(sizes[index] for index in row) <= length for row in rows)
    assert (
        len(rows) <= 11 / 9 * np.ceil(sum(sizes) / length) + 1 or max(sizes) > length / 3
    )  # Johnson's bound on volume
    # two rows that would fit into one are never left
    fill = sorted(sum(sizes[index] for index in row) for row in rows)
    assert len(fill) < 2 or fill[0] + fill[1] > length


def test_a_row_says_where_documents_begin_and_what_is_predicted():
    row = pack([document([5, 6, 7], answer_from=2), document([8]), document([9, 9], label=4)])
    assert row.token_BT.tolist() == [[5, 6, 7, 8, 9, 9]]
    assert row.position_BT.tolist() == [[0, 1, 2, 0, 0, 1]]
    assert row.document_BT.tolist() == [[0, 0, 0, 1, 2, 2]]
    assert row.weight_BT.tolist() == [[0, 0, 1, 0, 0, 1]]
    assert row.label_BD.tolist() == [[NO_LABEL, NO_LABEL, 4]]


def test_a_first_token_is_never_a_target():
    entry = document([5, 6])
    entry.target_T[:] = True
    assert pack([entry, entry]).weight_BT.tolist() == [[0, 1, 0, 1]]


def test_rows_are_filled_up_with_what_counts_for_nothing():
    both = stack([pack([document([5, 6, 7])]), pack([document([8], label=1)])])
    assert both.document_BT.tolist() == [[0, 0, 0], [0, -1, -1]]
    assert both.weight_BT[1].tolist() == [0, 0, 0]
    assert both.label_BD.tolist() == [[NO_LABEL], [1]]
    assert both.num_tokens == 4
    assert both.rows(1, 2).label_BD.tolist() == [[1]]
    assert both.to("cpu").num_tokens == 4


def documents(num: int = 50):
    return [document(np.full(1 + index % 13, index)) for index in range(num)]


def tokens(batch: Batch) -> Counter:
    return Counter(batch.token_BT[batch.document_BT >= 0].tolist())


@pytest.mark.parametrize(("num_tokens", "sizes"), [(1, [1, 1, 1, 1, 1]), (8, [2, 2, 1]), (100, [5])])
def test_pieces_are_all_rows_in_order(num_tokens, sizes):
    batch = stack([pack([document(np.arange(4) + 10 * row)]) for row in range(5)])
    pieces = batch.pieces(num_tokens)
    assert [len(piece.token_BT) for piece in pieces] == sizes
    assert torch.equal(torch.cat([piece.token_BT for piece in pieces]), batch.token_BT)
    assert torch.equal(torch.cat([piece.weight_BT for piece in pieces]), batch.weight_BT)


def test_every_epoch_sees_every_token_once_in_another_order():
    batches = PackedBatches(documents(), rows=1, length=16)
    steps = batches.rows_per_epoch
    wanted = Counter(int(token) for entry in documents() for token in entry.token_T)
    epochs = [[batches.at(epoch * steps + step)[0] for step in range(steps)] for epoch in range(2)]
    for epoch in epochs:
        assert sum((tokens(batch) for batch in epoch), Counter()) == wanted
    assert any(tokens(a) != tokens(b) for a, b in zip(*epochs, strict=True))
    assert 0.9 < batches.fullness <= 1


def test_a_step_is_the_same_whenever_it_is_asked_for():
    one, other = (PackedBatches(documents(), rows=2, length=16, accumulate=2, seed=3) for _ in range(2))
    for step in (40, 0, 7):
        for a, b in zip(one.at(step), other.at(step), strict=True):
            assert torch.equal(a.token_BT, b.token_BT)
            assert torch.equal(a.position_BT, b.position_BT)
    assert len(one.at(0)) == 2
    assert one.digest == other.digest


@pytest.mark.parametrize("change", [{"seed": 1}, {"rows": 1}, {"length": 32}, {"accumulate": 3}])
def test_the_digest_knows_how_it_is_packed(change):
    settings = {"rows": 2, "length": 16}
    assert PackedBatches(documents(), **settings).digest != PackedBatches(documents(), **settings | change).digest


def test_the_digest_knows_tokens_targets_and_labels():
    kinds = [document([1, 2, 3]), document([1, 2, 4]), document([1, 2, 3], answer_from=2), document([1, 2, 3], label=0)]
    assert len({PackedBatches([kind], rows=1, length=4).digest for kind in kinds}) == 4


@pytest.mark.parametrize("sizes", [[], [0], [4, 17]])
def test_documents_that_cannot_be_packed_are_an_error(sizes):
    with pytest.raises(PenjingError):
        PackedBatches([document(np.ones(size)) for size in sizes], rows=1, length=16)


def test_a_file_that_changes_is_an_error(tmp_path):
    file = tmp_path / "data.txt"
    file.write_text("before")
    batches = PackedBatches(documents(), rows=1, length=16, files=[file])
    batches.at(0)
    os.utime(file, ns=(1, 1))
    with pytest.raises(PenjingError, match="changed"):
        batches.at(1)
    file.unlink()
    with pytest.raises(PenjingError, match="went away"):
        batches.at(1)


def test_a_text_is_cut_into_windows():
    assert [entry.token_T.tolist() for entry in windows(np.arange(8), 3)] == [[0, 1, 2], [3, 4, 5], [6, 7]]
    assert [entry.token_T.tolist() for entry in windows(np.arange(7), 3)] == [[0, 1, 2], [3, 4, 5]]
    assert windows(np.arange(3), 3)[0].target_T.tolist() == [False, True, True]
