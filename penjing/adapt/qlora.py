"""QLoRA: LoRA over a base that stays quantized in memory (arXiv:2305.14314).

Each matrix is dequantized when it is used, forward and again backward, so what is held is its codes. `CodesLinear`
takes the place of the base's linear layers before the adapter is added. The codes are what penjing quantized it to.

Shapes: O outputs, I inputs, N groups a row, G inputs a group, B whatever comes before inputs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from penjing.adapt import Adapted, Plan
from penjing.adapt._lora import lora_model
from penjing.errors import PenjingError
from penjing.tensors.groups import Quantized


@dataclass(frozen=True, kw_only=True)
class Spec:
    """parts: of every layer, such as q,v; all: every matrix of the layers."""

    rank: int = 16
    alpha: float = 32.0
    dropout: float = 0.0
    parts: str = "all"


def prepare(spec: Spec, model: Any, plan: Plan) -> Adapted:
    if not any(isinstance(module, CodesLinear) for module in model.modules()):
        raise PenjingError(
            "its base is not quantized", where="qlora", attempt="penjing quantize first, or --method lora"
        )
    return Adapted(model=lora_model(model, plan, **vars(spec)))


class CodesLinear(nn.Linear):
    """A frozen linear layer that holds codes, two to a byte where they have four bits at most.

    peft and transformers take it for a linear layer; `weight` is made anew whenever it is asked for.
    """

    def __init__(self, quantized: Quantized, bias_O: Tensor | None = None) -> None:
        nn.Module.__init__(self)  # a linear layer without its weight
        self.out_features, groups, self.group_size = quantized.code_ONG.shape
        self.in_features = groups * self.group_size
        self.bits, self.levels = quantized.bits, quantized.levels
        self._packs = self.bits <= 4 and self.in_features % 2 == 0
        code_OI = quantized.code_ONG.flatten(1)
        code = code_OI[:, ::2] | (code_OI[:, 1::2] << 4) if self._packs else code_OI
        self.register_buffer("code", code.contiguous(), persistent=False)
        self.register_buffer("scale_ON", quantized.scale_ON, persistent=False)
        self.register_buffer("zero_ON", quantized.zero_ON, persistent=False)
        self.register_buffer("book_K", quantized.book_K, persistent=False)
        self.register_parameter("bias", None if bias_O is None else nn.Parameter(bias_O, requires_grad=False))

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """Rounded to half: whoever asks wants to know its type and place. Products use float32 or autocast's type."""
        return self.dequantized().half()

    def dequantized(self) -> Tensor:
        """The weights in float32 that the engine would compute with."""
        code_OI: Any = self.code
        if self._packs:
            code_OI = torch.stack([code_OI & 15, code_OI >> 4], 2).flatten(1)
        quantized = Quantized(
            code_ONG=code_OI.view(self.out_features, -1, self.group_size),
            scale_ON=self.scale_ON,  # type: ignore[arg-type]
            zero_ON=self.zero_ON,  # type: ignore[arg-type]
            bits=self.bits,
            levels=self.levels,
            book_K=self.book_K,  # type: ignore[arg-type]
        )
        return quantized.dequantize()

    def forward(self, x_BI: Tensor) -> Tensor:
        kind = x_BI.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else torch.float32
        y_BO: Tensor = _Product.apply(x_BI.to(dtype), self)  # type: ignore[no-untyped-call]
        return y_BO if self.bias is None else y_BO + self.bias


class _Product(torch.autograd.Function):
    """x Wᵀ that keeps neither x nor W for the way back."""

    @staticmethod
    def forward(ctx: Any, x_BI: Tensor, layer: CodesLinear) -> Tensor:
        ctx.layer = layer
        return x_BI @ layer.dequantized().to(x_BI.dtype).T

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (grad_BO,) = grads
        return grad_BO @ ctx.layer.dequantized().to(grad_BO.dtype), None
