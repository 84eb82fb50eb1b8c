"""What the quantize stage gives its techniques: importances, Hessians, or whole blocks to learn from."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from penjing.checkpoint import Checkpoint
from penjing.data.text import Windows
from penjing.errors import PenjingError
from penjing.format.pack import Layout
from penjing.quant import BlockTechnique, Technique, learns, prepares, uses_hessian, uses_importance
from penjing.stages.blocks import ReadPart, Walk, block_of
from penjing.tensors.groups import Quantized
from penjing.tensors.precision import fast_products
from penjing.tensors.statistics import Importance


@dataclass(frozen=True)
class Choice:
    """How one matrix is quantized."""

    method: Technique
    spec: Any
    layout: Layout


class Weighing:
    """What errors in the matrices of a block are weighed by, and the codes of matrices that are learned together."""

    def __init__(
        self,
        parent: Checkpoint,
        chosen: Mapping[str, Choice],
        importances: Mapping[str, Importance],
        calibration: Windows | None,
        read_child: ReadPart,
        seed: int,
    ) -> None:
        self._importances, self._seed = importances, seed
        self._hidden_size = parent.architecture.hidden_size
        self._hessians: Mapping[str, torch.Tensor] = {}
        self._codes: dict[str, Quantized] = {}
        self._prepared: dict[tuple[int, Any], Any] = {}
        self._learned = learned_together(chosen, parent.architecture.num_layers)
        self._walk: Walk | None = None
        self._asking = asking(chosen, importances, parent.architecture.num_layers)
        if self._learned and calibration is None:
            raise PenjingError("it learns from text, and none was given", where="--method", attempt="--data FILE")
        if calibration is not None and (self._asking or self._learned):
            self._walk = Walk(parent, calibration, read_child, learning=bool(self._learned))

    def enter(self, block: int) -> None:
        """All blocks before this one are finished."""
        self._codes, self._prepared = {}, {}
        if self._walk is None:
            return
        self._hessians = {}  # before others are found: those of one block at a time
        if block in self._asking:
            # in layer 3 of SmolLM2, codes of 3 and 4 bits found with bfloat16 products err at most 0.2% more under the
            # exact H; learning wants its inputs and targets exact
            with fast_products(None if not self._learned else False):
                self._hessians = self._walk.hessians(block)
        for method, choices in self._learned.get(block, []):
            lesson = self._walk.lesson(block)
            self._codes |= method.quantize_block(
                {name: choice.spec for name, choice in choices.items()},
                lesson.weights,
                {name: self._importance(name, choice.layout.cols) for name, choice in choices.items()},
                lesson.forward,
                lesson.inputs,
                lesson.targets,
                self._seed + block,
            )

    def _importance(self, name: str, cols: int) -> torch.Tensor:
        """Of each input; all alike where nothing is known."""
        known = self._importances.get(name)
        return torch.ones(cols) if known is None else known.mean_input_I()

    def learned(self, name: str, rows: slice) -> Quantized | None:
        """Rows of a matrix that was learned with its block."""
        found = self._codes.get(name)
        if found is None:
            return None
        zero_ON = None if found.zero_ON is None else found.zero_ON[rows]
        return dataclasses.replace(found, code_ONG=found.code_ONG[rows], scale_ON=found.scale_ON[rows], zero_ON=zero_ON)

    def of(self, name: str, choice: Choice) -> dict[str, Any]:
        """Arguments of `quant.apply` for any rows of a matrix that is not learned."""
        found: dict[str, Any] = self._errors(name)
        hessian_II = found["hessian_II"]
        if hessian_II is not None and prepares(choice.method):
            key = id(hessian_II), choice.spec  # matrices with the same inputs have the same tensor
            if key not in self._prepared:
                self._prepared[key] = hessian_II, choice.method.prepare(choice.spec, hessian_II)  # type: ignore[attr-defined]
            found["prepared"] = self._prepared[key][1]
        return found

    def _errors(self, name: str) -> dict[str, torch.Tensor | None]:
        """Of a lookup without a Hessian the importance stands on the diagonal, all alike where it is not known."""
        known, hessian_II = self._importances.get(name), self._hessians.get(name)
        if known is not None:
            importance_I = known.mean_input_I()
            hessian_II = hessian_II if known.hessian_II is None else known.hessian_II
        elif hessian_II is not None:
            importance_I = hessian_II.diagonal()
        elif name == "embed" and self._walk is not None:
            importance_I = torch.ones(self._hidden_size)
        else:
            return {"importance_I": None, "hessian_II": None}
        if hessian_II is None and name == "embed":
            hessian_II = torch.diag(importance_I)
        return {"importance_I": importance_I, "hessian_II": hessian_II}


def asking(chosen: Mapping[str, Choice], importances: Mapping[str, Importance], num_layers: int) -> set[int]:
    """Blocks with matrices to be weighed by what is not known yet; a lookup's inputs are not, nor what is learned."""
    found = set()
    for name, choice in chosen.items():
        known, block = importances.get(name), block_of(name, num_layers)
        wants = uses_hessian(choice.method) and (known is None or known.hessian_II is None)
        wants = wants or (uses_importance(choice.method) and known is None)
        if wants and block > 0 and (block > num_layers or not learns(choice.method)):
            found.add(block)
    return found


def learned_together(
    chosen: Mapping[str, Choice], num_layers: int
) -> dict[int, list[tuple[BlockTechnique, dict[str, Choice]]]]:
    """For each layer the techniques that learn, with the matrices they learn together."""
    found: dict[int, dict[Any, dict[str, Choice]]] = defaultdict(lambda: defaultdict(dict))
    for name, choice in chosen.items():
        block = block_of(name, num_layers)
        if learns(choice.method) and 0 < block <= num_layers:
            found[block][choice.method][name] = choice
    return {block: list(by_method.items()) for block, by_method in found.items()}
