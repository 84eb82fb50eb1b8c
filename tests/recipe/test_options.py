"""Options: sizes are those of the packed layout, losses those of the real error."""

from collections import Counter

import pytest
import torch

from penjing.checkpoint import open_checkpoint
from penjing.quant import apply, layout_for, technique
from penjing.recipe import options as module
from penjing.recipe.options import group_sizes, options
from penjing.recipe.search import allocate, size
from penjing.stages import quantize
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
    levels, method = Counter(), technique(module.METHOD)
    for part in checkpoint.parts():
        if part.name not in found:
            continue
        rows, cols = checkpoint.architecture.matrix_shapes()[part.name]
        weight_OI = torch.from_numpy(checkpoint.read_part(part))
        for option in found[part.name]:
            if option.settings.get("bits") == 16:
                assert (option.size_bytes, option.error) == (2 * cols * -(-rows // 16) * 16, 0.0)
                continue
            layout = layout_for(method.Spec(**option.settings), rows, cols)
            assert option.size_bytes == layout.nbytes
            levels[layout.levels] += 1
            importance_I = known[part.name].mean_input_I()
            hessian_II = torch.diag(importance_I)  # under which gptq can only round, once scales are searched
            quantized = apply(method, method.Spec(**option.settings, sweeps=0), weight_OI, importance_I, hessian_II)
            shipped = known[part.name].loss(quantized.dequantize() - weight_OI)
            # a book is learned for the matrix: options take that of normally distributed weights
            assert option.error == pytest.approx(shipped, rel=0.2 if layout.levels == "book" else 1e-4)
    assert levels["ternary"] >= len(found)
    assert levels["book"] >= 3 * len(found)
    assert levels["uniform"] >= 3 * len(found)


def test_weights_beyond_small_scales_keep_float16(talker):
    checkpoint = open_checkpoint(talker)
    name, (rows, cols) = next(iter(checkpoint.architecture.matrix_shapes().items()))
    importance = importances(checkpoint)[name]
    weight_OI = torch.randn(rows, cols, generator=torch.Generator().manual_seed(0))

    def scale_bits(largest):
        scaled_OI = weight_OI * (largest / weight_OI.abs().max())
        found = {}
        for way in module.options_of(rows, scaled_OI, importance, slice(None), largest):
            if way.settings["bits"] <= module.MOST_BITS_WITH_SMALL_SCALES:
                found[way.settings["levels"]] = way.settings.get("scale_bits", 16)
                assert way.error < 0.5 * importance.loss(scaled_OI, slice(None))  # no scale was cut off
        return found

    assert scale_bits(0.1) == {"book": 8, "ternary": 8}
    assert scale_bits(3.0) == {"book": 8, "ternary": 16}
    assert scale_bits(1000.0) == {"book": 16, "ternary": 16}


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
    ("cols", "sizes"),
    [
        (576, [32, 64, 192]),
        (1536, [32, 64, 128, 192]),
        (128, [32, 64, 128]),
        (36, [36]),
        (260, [130]),
        (254, [127]),
        (7, [7]),
    ],
)
def test_group_sizes_divide_the_row(cols, sizes):
    assert group_sizes(cols) == sizes


def test_ternary_is_chosen_where_two_bits_do_not_fit(tmp_path):
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        hidden_size=192, intermediate_size=384, num_hidden_layers=1, num_attention_heads=3, vocab_size=101
    )
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path)
    checkpoint = open_checkpoint(tmp_path)
    possible = options(checkpoint, importances(checkpoint))
    least = sum(
        min(way.size_bytes for way in ways if way.settings.get("levels") != "ternary") for ways in possible.values()
    )
    chosen = allocate(possible, int(0.9 * least))
    assert size(chosen.values()) <= 0.9 * least
    overrides = [(name, dict(way.settings)) for name, way in chosen.items()]
    assert any(settings.get("levels") == "ternary" for _, settings in overrides)
    choices = quantize.choices(checkpoint, module.METHOD, {}, overrides)
    assert sum(choice.layout.nbytes for choice in choices.values()) == size(chosen.values())


def test_more_bits_cost_less_loss(talker):
    checkpoint = open_checkpoint(talker)
    for choices in options(checkpoint, importances(checkpoint)).values():
        by_bits = {
            1.6 if o.settings.get("levels") == "ternary" else o.settings["bits"]: o.error
            for o in choices
            if o.settings.get("group_size", 32) == 32
        }
        errors = [by_bits[bits] for bits in sorted(by_bits)]
        assert errors == sorted(errors, reverse=True)
