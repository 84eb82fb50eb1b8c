"""Sensitivity: what is told of a part is what a model has that differs in this part alone."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from penjing.checkpoint import open_checkpoint
from penjing.data.text import Windows
from penjing.errors import PenjingError
from penjing.measure import torch_decoder
from penjing.measure.quality import quality
from penjing.recipe.sensitivity import EVERYTHING, draw_sensitivity, sensitivity
from penjing.stages.quantize import quantize


def held_out(vocab, length=24):
    return Windows(np.random.default_rng(0).integers(0, vocab, (3, length), dtype=np.int32), 200)


@pytest.mark.parametrize("by", ["block", "kind", "matrix"])
@pytest.mark.parametrize("family", ["llama", "llama-tied-biased", "gpt_neox"])
def test_parts_have_the_kl_of_a_child_that_differs_there_alone(tiny_model, tmp_path, family, by):
    parent = open_checkpoint(tiny_model(family).path)
    windows = held_out(parent.architecture.vocab_size)
    settings = {"group_size": 4}
    parts = sensitivity(parent, windows, bits=[2, 3], by=by, settings=settings)
    assert parts[-1].pattern == EVERYTHING
    scored = torch_decoder.scorer(parent)
    for number, part in enumerate(parts[:: max(1, len(parts) // 5)]):
        child = tmp_path / f"child-{number}"
        patterns = [("*", {"bits": 16}), (part.pattern, {"bits": part.bits})]
        quantize(parent, child, spec=settings, overrides=patterns)
        found = quality(torch_decoder.scorer(open_checkpoint(child)), windows, parent=scored)
        assert part.kl == pytest.approx(found.kl_to_parent, rel=1e-3, abs=1e-6)
        assert part.top1_agreement == pytest.approx(found.top1_agreement)
        assert 0 < part.size_bytes <= part.float_bytes  # of groups of 4 the scales are half


def test_patterns_cover_every_matrix_once_and_bits_help(talker):
    parent = open_checkpoint(talker)
    parts = sensitivity(parent, held_out(parent.architecture.vocab_size), bits=[3, 8])
    assert [part.pattern for part in parts[::2]] == ["embed", "layers.0.*", "layers.1.*", EVERYTHING]
    assert sum(part.float_bytes for part in parts[:-2]) == sum(part.float_bytes for part in parts[-2:])
    assert all(few.kl > 4 * many.kl for few, many in zip(parts[::2], parts[1::2], strict=True))


def test_what_cannot_be_is_said(talker):
    parent = open_checkpoint(talker)
    windows = held_out(parent.architecture.vocab_size)
    with pytest.raises(PenjingError, match="no such parts"):
        sensitivity(parent, windows, bits=[3], by="head")
    with pytest.raises(PenjingError, match="needs text"):
        sensitivity(parent, windows, bits=[3], method="scale_search")
    with pytest.raises(PenjingError, match="whole block"):
        sensitivity(parent, windows, bits=[3], method="autoround")
    with pytest.raises(PenjingError):
        sensitivity(parent, windows, bits=[7])


def test_a_picture_is_written_even_where_nothing_hurts(talker, tmp_path):
    pytest.importorskip("matplotlib")
    parent = open_checkpoint(talker)
    parts = sensitivity(parent, held_out(parent.architecture.vocab_size), bits=[2, 3])
    draw_sensitivity(parts, tmp_path / "a.svg")
    drawn = (tmp_path / "a.svg").read_text()
    assert drawn.count("<!-- layers.1.* -->") == 1
    assert drawn.count("<!-- 2 bits -->") == 1
    assert "<!-- * -->" not in drawn
    draw_sensitivity([dataclasses.replace(part, kl=0.0) for part in parts], tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
