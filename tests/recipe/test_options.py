"""Options: sizes are those of the packed layout, losses those of the real error."""

import pytest
import torch

from penjing.checkpoint import open_checkpoint
from penjing.format.pack import Layout
from penjing.quant import apply, technique
from penjing.recipe import options as module
from penjing.recipe.options import group_sizes, options
from penjing.tensors.statistics import Importance


def importances(checkpoint):
    generator = torch.Generator().manual_seed(0)
    return {
        name: Importance(torch.rand(1, rows, generator=generator), torch.rand(1, cols, generator=generator))
        for name, (rows, cols) in checkpoint.architecture.matrix_shapes().items()
    }


def test_every_matrix_has_options_of_the_right_size_and_loss(talker):
    checkpoint = open_checkpoint(talker)
    known = importances(checkpoint)
    found = options(checkpoint, known)
    assert found.keys() == checkpoint.architecture.matrix_shapes().keys()
    for part in checkpoint.parts():
        if part.name not in found:
            continue
        rows, cols = checkpoint.architecture.matrix_shapes()[part.name]
        weight_OI = torch.from_numpy(checkpoint.read_part(part))
        for option in found[part.name]:
            if option.settings["bits"] == 16:
                assert (option.size_bytes, option.error) == (2 * cols * -(-rows // 16) * 16, 0.0)
                continue
            method = technique(module.PRICED_BY)
            quantized = apply(method, method.Spec(**option.settings), weight_OI, known[part.name].mean_input_I())
            assert option.error == pytest.approx(known[part.name].loss(quantized.dequantize() - weight_OI), rel=1e-4)
            layout = Layout(kind="codes", rows=rows, cols=cols, **option.settings)
            assert option.size_bytes == layout.nbytes


def test_a_sample_of_rows_stands_for_all(talker, monkeypatch):
    checkpoint = open_checkpoint(talker)
    known = importances(checkpoint)
    whole = options(checkpoint, known)
    monkeypatch.setattr(module, "_SAMPLE", 1024)  # a half to an eighth of the rows
    sampled = options(checkpoint, known)
    for name, choices in whole.items():
        for option, guess in zip(choices, sampled[name], strict=True):
            assert guess.size_bytes == option.size_bytes
            assert guess.error == pytest.approx(option.error, rel=0.35)


@pytest.mark.parametrize(
    ("cols", "sizes"), [(576, [32, 64]), (128, [32, 64, 128]), (36, [36]), (260, [65]), (254, [127]), (7, [7])]
)
def test_group_sizes_divide_the_row(cols, sizes):
    assert group_sizes(cols) == sizes


def test_more_bits_cost_less_loss(talker):
    checkpoint = open_checkpoint(talker)
    for choices in options(checkpoint, importances(checkpoint)).values():
        by_bits = {o.settings["bits"]: o.error for o in choices if o.settings.get("group_size", 32) == 32}
        errors = [by_bits[bits] for bits in sorted(by_bits)]
        assert errors == sorted(errors, reverse=True)
