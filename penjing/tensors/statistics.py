"""How much the loss minds an error in each weight: the diagonal of the Fisher information, as an outer product.

Changing W by dW raises KL(model ‖ changed model), in nats a token, by about

    0.5 * sum_OI F_OI dW_OI^2,      F_OI = E[(d(negative log likelihood of a window) / dW_OI)^2] / tokens of a window,

with labels drawn from the model itself. F is kept as its row and column sums: F_OI ~ row_O * column_I / sum. A tied
matrix is a lookup as well as a head, which adds a second product.

The square is of the whole window's gradient: W serves every position, and errors at positions that one label looks back
on add up. Taking E[g_O^2] E[x_I^2] of single positions instead (K-FAC, arXiv:1503.05671) was measured on SmolLM2-135M
with 4- and 5-bit weights in one kind of matrix at a time: it told the KL of down projections 3.9 times too high and of
query projections 1.7 times too low. This form was within 1.3 times for all kinds except 5-bit keys and queries (1.5).

What errors of several inputs cost together is kept beside it where asked for, averaged over the outputs: the sum over
windows of G^T G, G = d(loss of a window) / dW, which is what counts but comes from few samples, and over tokens of
|g|^2 x^T x, g and x being a token's gradient and input, which leaves out how tokens meet but comes from many. GPTQ with
the first alone gave SmolLM2-135M's body at 4 bits in groups of 32 a KL of 0.076, with both 0.072, with X^T X 0.103. A
lookup puts out its rows, so g^T g stands for the latter there; a tied matrix has the sum of both: the same model's
embedding alone, 3 bits in groups of 32, had a KL of 0.084 so, of 0.176 with the diagonal.

Shapes: W windows, T tokens a window, O outputs, I inputs, K products that add up.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from penjing.errors import PenjingError

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Importance:
    """importance_OI = sum_K output_KO x input_KI, all non-negative."""

    output_KO: Tensor  # noqa: N815
    input_KI: Tensor  # noqa: N815
    #: of inputs together, up to a factor, where it was asked for
    hessian_II: Tensor | None = None  # noqa: N815

    def mean_input_I(self) -> Tensor:  # noqa: N802
        """The importance of an input, averaged over the outputs."""
        return self.output_KO.mean(dim=1) @ self.input_KI

    def total(self, rows: slice = slice(None)) -> float:
        """The sum over some rows."""
        return float(self.output_KO[:, rows].sum(dim=1) @ self.input_KI.sum(dim=1))

    def loss(self, error_OI: Tensor, rows: slice = slice(None)) -> float:
        """Expected rise of KL in nats a token for these errors of some rows."""
        cost_KO = self.input_KI @ error_OI.square().T
        return 0.5 * float((cost_KO * self.output_KO[:, rows]).sum())


def importances(
    model: Any, tokens_WT: Tensor, *, hessians: bool = False, seed: int = 0, progress: Progress | None = None
) -> dict[str, Importance]:
    """The importance of every linear layer and embedding, by the name of its weight; a tied weight has one entry.

    `model` is a transformers causal language model in float32; it is left as it was found. Takes about four forward
    passes a window; memory is one window's activations and one matrix's gradient at a time. With `hessians` it takes
    about six passes, and I x I floats for each matrix.
    """
    collector = _Collector(model, hessians=hessians)
    generator = torch.Generator().manual_seed(seed)
    wanted = {name: p.requires_grad for name, p in model.named_parameters()}
    try:
        model.requires_grad_(False)
        for done, tokens_T in enumerate(tokens_WT, 1):
            _backward_of_sampled_labels(model, tokens_T, generator)
            if progress is not None:
                progress("importance", done, len(tokens_WT))
    finally:
        collector.remove()
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(wanted[name])
    return collector.importances(num_tokens=tokens_WT.numel())


def _backward_of_sampled_labels(model: Any, tokens_T: Tensor, generator: torch.Generator) -> None:
    logit_TV = model(input_ids=tokens_T[None], use_cache=False).logits[0]
    if not logit_TV.isfinite().all():
        raise PenjingError(
            "logits that are not finite: the model overflows or holds NaN",
            where=f"calibration, first in what {_first_not_finite(model, tokens_T)} puts out",
            attempt="repair or train the model again there, or other calibration text",
        )
    with torch.no_grad():
        label_T = torch.multinomial(logit_TV.softmax(dim=-1), 1, generator=generator)[:, 0]
    nll = nn.functional.cross_entropy(logit_TV, label_T, reduction="sum")
    nll.backward()  # type: ignore[no-untyped-call]


def _first_not_finite(model: Any, tokens_T: Tensor) -> str:
    """The first matrix whose outputs are NaN or infinite; "none" where it is what comes after them."""
    found: list[str] = []

    def look(name: str, output: Tensor) -> None:
        if not found and not output.isfinite().all():
            found.append(name)

    names = weight_names(model)
    handles = [
        module.register_forward_hook(lambda _, __, output, name=name: look(name, output))
        for module, name in names.items()
    ]
    try:
        model(input_ids=tokens_T[None], use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return found[0] if found else "none of its matrices"


def dead_inputs(found: Mapping[str, Importance]) -> dict[str, int]:
    """Matrices with inputs that were zero or felt by nothing in the whole text, and how many they are."""
    counts = {name: int((importance.input_KI.sum(dim=0) == 0).sum()) for name, importance in found.items()}
    return {name: count for name, count in counts.items() if count}


class _Collector:
    """Adds up row and column sums of squared weight gradients, with hooks; no gradient outlives its layer."""

    def __init__(self, model: Any, *, hessians: bool) -> None:
        self._sums: dict[Any, tuple[Tensor, Tensor]] = {}
        self._names = weight_names(model)
        inputs = {name: module.weight.shape[1] for module, name in self._names.items()}
        self._hessians = {name: torch.zeros(size, size) for name, size in inputs.items() if hessians}
        self._handles = []
        for module in self._names:
            rows, cols = module.weight.shape
            self._sums[module] = (torch.zeros(rows), torch.zeros(cols))
            hook = self._embedding_hook if isinstance(module, nn.Embedding) else self._linear_hook
            self._handles.append(module.register_forward_hook(hook))

    def _linear_hook(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        x_TI = inputs[0].detach().flatten(0, -2)

        def add(gradient: Tensor) -> None:
            gradient_OI = gradient.flatten(0, -2).T @ x_TI
            self._add_together(module, gradient_OI, x_TI * gradient.flatten(0, -2).norm(dim=1, keepdim=True))
            self._add(module, gradient_OI)

        output.register_hook(add)  # type: ignore[no-untyped-call]

    def _embedding_hook(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        token_N, row_T = torch.unique(inputs[0], return_inverse=True)

        def add(gradient: Tensor) -> None:
            gradient_TI = gradient.flatten(0, -2)
            seen_NI = torch.zeros(len(token_N), gradient_TI.shape[1]).index_add_(0, row_T.flatten(), gradient_TI)
            self._add_together(module, seen_NI, gradient_TI)
            self._add(module, seen_NI, rows=token_N)

        output.requires_grad_(True)  # weights are frozen: this starts the graph
        output.register_hook(add)  # type: ignore[no-untyped-call]

    def _add_together(self, module: nn.Module, gradient_OI: Tensor, felt_TI: Tensor) -> None:
        hessian_II = self._hessians.get(self._names[module])
        if hessian_II is not None:
            hessian_II.addmm_(gradient_OI.T, gradient_OI).addmm_(felt_TI.T, felt_TI)

    def _add(self, module: nn.Module, gradient_OI: Tensor, rows: Tensor | slice = slice(None)) -> None:
        row_sum_O, column_sum_I = self._sums[module]
        square_OI = gradient_OI.square_()
        row_sum_O[rows] += square_OI.sum(dim=1)
        column_sum_I += square_OI.sum(dim=0)

    def remove(self) -> None:
        for handle in self._handles:
            handle.remove()

    def importances(self, num_tokens: int) -> dict[str, Importance]:
        found: dict[str, Importance] = {}
        for module, (row_sum_O, column_sum_I) in self._sums.items():
            name = self._names[module]
            total = row_sum_O.sum().clamp_min(torch.finfo(torch.float32).tiny)
            output_KO, input_KI = _floored(row_sum_O)[None] / num_tokens, column_sum_I[None] / total
            if name in found:  # tied
                output_KO = torch.cat([found[name].output_KO, output_KO])
                input_KI = torch.cat([found[name].input_KI, input_KI])
            found[name] = Importance(output_KO, input_KI, self._hessians.get(name))
        return found


def _floored(row_sum_O: Tensor) -> Tensor:
    """A row that no window needed, such as a token that was not seen, may be needed yet: a hundredth of the mean."""
    return row_sum_O.clamp_min(0.01 * float(row_sum_O.mean()))


def weight_names(model: Any) -> dict[Any, str]:
    """The name under which each module's weight is stored: that of the first module that has it."""
    first: dict[int, str] = {}
    return {
        module: first.setdefault(id(module.weight), f"{name}.weight")
        for name, module in model.named_modules()
        if isinstance(module, (nn.Linear, nn.Embedding))
    }
