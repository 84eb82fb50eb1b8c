"""Documents one a row, and documents that belong together."""

from __future__ import annotations

import pytest
import torch

from penjing.errors import PenjingError
from penjing.train.batch import NO_LABEL, document, pack, stack
from penjing.train.groups import GroupedBatches
from penjing.train.padded import padded


def test_documents_of_all_rows_in_order():
    rows = [pack([document([1, 2, 3], label=5), document([4])]), pack([document([6, 7], answer_from=9, label=8)])]
    found = padded(stack(rows), fill=9)
    assert found.token_DT.tolist() == [[1, 2, 3], [4, 9, 9], [6, 7, 9]]
    assert found.real_DT.tolist() == [[True] * 3, [True, False, False], [True, True, False]]
    assert found.weight_DT.tolist() == [[0, 1, 1], [0, 0, 0], [0, 0, 0]]
    assert found.label_D.tolist() == [5, NO_LABEL, 8]
    assert padded(pack([document([1]), document([2])])).label_D.tolist() == [NO_LABEL] * 2


def test_groups_stay_together_and_each_comes_once_an_epoch():
    groups = [[document([2 * n, 1]), document([2 * n + 1, 1, 1])] for n in range(7)]
    batches = GroupedBatches(groups, rows=1, groups_per_row=2, seed=1)
    assert batches.steps_per_epoch == 3
    seen = []
    for step in range(3):
        (batch,) = batches.at(step)
        firsts = batch.token_BT[batch.position_BT == 0].tolist()
        assert len(firsts) == 4
        assert firsts[1::2] == [first + 1 for first in firsts[::2]]
        seen += firsts[::2]
    assert len(set(seen)) == 6
    assert torch.equal(
        batches.at(1)[0].token_BT, GroupedBatches(groups, rows=1, groups_per_row=2, seed=1).at(1)[0].token_BT
    )
    assert batches.digest != GroupedBatches(groups, rows=1, groups_per_row=2, seed=2).digest
    with pytest.raises(PenjingError, match="do not fill a row"):
        GroupedBatches(groups[:1], rows=1, groups_per_row=2)
