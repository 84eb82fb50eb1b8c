"""A packed batch gives every document the hidden states and gradients that it has alone, in every family."""

from __future__ import annotations

import peft
import pytest
import torch
import transformers
from conftest import _COMMON, CASES

from penjing.errors import PenjingError
from penjing.train.batch import document, pack, stack
from penjing.train.forward import flatten, head, hidden_states, targets
from penjing.train.vocabulary import logits

SIZES = ([5, 23, 22, 1], [9, 9], [17, 2, 3])


def packed():
    gen = torch.Generator().manual_seed(0)
    rows = [[document(torch.randint(3, 100, (size,), generator=gen).numpy()) for size in row] for row in SIZES]
    return [entry for row in rows for entry in row], stack([pack(row) for row in rows])


@pytest.mark.parametrize("case", CASES)
def test_documents_do_not_see_each_other(case):
    config, kind, settings = CASES[case]
    torch.manual_seed(0)
    model = getattr(transformers, kind)(getattr(transformers, config)(**{**_COMMON, **settings})).eval()
    documents, batch = packed()
    flat = flatten(batch)
    found_NH = hidden_states(model, flat)
    found_NV = logits(found_NH, head(model).weight_VH, head(model))
    wanted = [model(torch.from_numpy(entry.token_T).long()[None], use_cache=False).logits[0] for entry in documents]
    wanted_NV = torch.cat(wanted)
    # sums over at most 52 inputs in 5 layers, in other orders
    tolerance = 5 * 52 * torch.finfo(torch.float32).eps * float(wanted_NV.abs().max())
    torch.testing.assert_close(found_NV, wanted_NV, rtol=0, atol=tolerance)
    assert model.config._attn_implementation == "sdpa" or model.config._attn_implementation == "eager"


@pytest.mark.parametrize("sizes", [[7, 7, 7], [16, 3, 1], [40]])
def test_gradients_are_those_of_documents_alone(tiny, sizes):
    documents = [document(range(3, 3 + size)) for size in sizes]
    flat = flatten(pack(documents))
    weight_NH = torch.randn(sum(sizes), 40)
    (hidden_states(tiny, flat) * weight_NH).sum().backward()
    found = {name: p.grad.clone() for name, p in tiny.named_parameters() if p.grad is not None}
    tiny.zero_grad()
    alone = [tiny.model(torch.from_numpy(entry.token_T).long()[None]).last_hidden_state[0] for entry in documents]
    (torch.cat(alone) * weight_NH).sum().backward()
    for name, parameter in tiny.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(
                found[name], parameter.grad, rtol=1e-4, atol=1e-5 * float(parameter.grad.abs().max())
            )


def test_after_a_prompt_the_head_is_left_alone(tiny):
    """Of one position a row torch copies the whole head for every row: 3 times slower with SmolLM2."""
    config = peft.PromptTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM")
    model = peft.get_peft_model(tiny, config).eval()
    documents, batch = packed()
    multiplied = []
    hook = tiny.get_output_embeddings().register_forward_hook(lambda _, __, out: multiplied.append(out.numel()))
    found_NH = hidden_states(model, flatten(batch))
    assert not any(multiplied)
    hook.remove()
    found_NV = logits(found_NH, head(model).weight_VH, head(model))
    wanted_NV = torch.cat([model(input_ids=torch.from_numpy(e.token_T).long()[None]).logits[0, 3:] for e in documents])
    torch.testing.assert_close(found_NV, wanted_NV, rtol=1e-4, atol=1e-5 * float(wanted_NV.abs().max()))


def test_filling_is_left_out():
    _, batch = packed()
    flat = flatten(batch)
    assert len(flat.token_N) == sum(map(sum, SIZES)) == batch.num_tokens
    assert flat.size_D.tolist() == [size for row in SIZES for size in row]


def test_targets_are_predicted_from_the_token_before():
    at, token, weight = targets(flatten(pack([document([5, 6, 7], answer_from=2), document([8, 9])])))
    assert (at.tolist(), token.tolist(), weight.tolist()) == ([1, 3], [7, 9], [1, 1])


def test_a_head_that_is_no_matrix_is_an_error(tiny):
    tiny.lm_head = torch.nn.Sequential(tiny.lm_head)
    with pytest.raises(PenjingError, match="Sequential"):
        head(tiny)
