"""Layers in fewer passes over memory than their textbook form, put into a model while it is trained.

A layer is exchanged only if the fused form gives its result on the spot, so a family with another norm keeps its own.
What it brings was measured: docs/training.md.

Shapes: N tokens (any leading axes), H hidden size, O outputs, I inputs, R rank.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

Forward = Callable[..., Tensor]


@contextmanager
def fused(model: nn.Module) -> Iterator[int]:
    """Exchange what can be; how many layers. They are themselves again afterwards."""
    exchanged: list[nn.Module] = []
    checked: dict[tuple[str, str], bool] = {}
    for module in model.modules():
        forward = _fused_form(module)
        kind = (type(module).__qualname__, str(getattr(module, "variance_epsilon", "")))
        if forward is None or not checked.setdefault(kind, _is_same(module, forward)):
            continue
        module.forward = forward
        exchanged.append(module)
    rotaries = _rotaries(model)
    for source in rotaries:
        source.apply_rotary_pos_emb = rotate
    try:
        yield len(exchanged)
    finally:
        for module in exchanged:
            del module.forward
        for source, plain in rotaries.items():
            source.apply_rotary_pos_emb = plain


def _fused_form(module: Any) -> Forward | None:
    kind = type(module).__name__
    if kind.endswith("RMSNorm") and hasattr(module, "variance_epsilon") and hasattr(module, "weight"):
        return lambda hidden_states: rms_norm(hidden_states, module.weight, module.variance_epsilon)
    if kind.endswith("MLP") and all(hasattr(module, name) for name in ("gate_proj", "up_proj", "down_proj")):
        return lambda x: module.down_proj(silu_product(module.gate_proj(x), module.up_proj(x)))
    if kind == "Linear" and hasattr(module, "lora_A"):
        return _lora_form(module)
    return None


def _lora_form(module: Any) -> Forward:
    """peft's LoRA on a linear layer; what is more than that (DoRA, several adapters, dropout, …) goes peft's way."""
    plain: Forward = module.forward

    def forward(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        base = module.base_layer
        active = module.active_adapters
        simple = (
            not (args or kwargs or module.disable_adapters or module.merged)
            and len(active) == 1
            and active[0] in module.lora_A
            and (_holds_codes(base) or (type(base) is nn.Linear and not base.weight.requires_grad))
            and not module.lora_variant
            and isinstance(module.lora_dropout[active[0]], nn.Identity)
            and module.lora_B[active[0]].bias is None
        )
        if not simple:
            return plain(x, *args, **kwargs)
        down, up = module.lora_A[active[0]].weight, module.lora_B[active[0]].weight
        return lora_linear(x, base, down, up, module.scaling[active[0]])

    return forward


def _holds_codes(base: Any) -> bool:
    """A frozen layer whose weight is made anew whenever it is asked for (`adapt.qlora`)."""
    return hasattr(base, "dequantized")


@torch.no_grad()
def _is_same(module: Any, forward: Forward) -> bool:
    """Both forms on a few random tokens: they may differ by rounding only."""
    if hasattr(module, "lora_A"):
        return True  # chosen by what it is, tested against peft
    weight = module.weight if hasattr(module, "weight") else module.gate_proj.weight
    size = weight.shape[-1] if hasattr(module, "weight") else module.gate_proj.in_features
    generator = torch.Generator().manual_seed(0)
    x_NH = torch.randn(4, size, generator=generator).to(weight.device, weight.dtype)
    results = []
    half = weight.dtype == torch.bfloat16  # then training is under autocast, and biases may be in float32
    for form in (module.forward, forward):
        with torch.random.fork_rng(), torch.autocast(weight.device.type, torch.bfloat16, enabled=half):
            torch.manual_seed(0)  # the same dropout for both
            results.append(form(x_NH).float())
    wanted, found = results
    epsilon = torch.finfo(weight.dtype).eps
    return bool(torch.allclose(found, wanted, rtol=8 * epsilon, atol=8 * epsilon * float(wanted.abs().max())))


def _rotaries(model: nn.Module) -> dict[Any, Any]:
    """The files of transformers whose attention this model has and that rotate as most do, with what they had."""
    found: dict[Any, Any] = {}
    for name in {type(module).__module__ for module in model.modules() if type(module).__name__.endswith("Attention")}:
        source = sys.modules[name]
        plain = getattr(source, "apply_rotary_pos_emb", None)
        if plain is not None and _rotates_alike(plain):
            found[source] = plain
    return found


@torch.no_grad()
def _rotates_alike(plain: Any) -> bool:
    generator = torch.Generator().manual_seed(0)
    query, key = torch.randn(1, 3, 5, 8, generator=generator), torch.randn(1, 2, 5, 8, generator=generator)
    cos, sin = torch.randn(1, 5, 8, generator=generator), torch.randn(1, 5, 8, generator=generator)

    def alike(rotated: int) -> bool:
        angles = cos[..., :rotated], sin[..., :rotated]
        pairs = zip(rotate(query, key, *angles), plain(query, key, *angles), strict=True)
        return all(torch.allclose(found, other, rtol=1e-5, atol=1e-5) for found, other in pairs)

    try:
        whole = alike(8)
    except (TypeError, RuntimeError):
        return False
    with contextlib.suppress(RuntimeError):  # most cannot turn a part of a head, and are not asked to
        return whole and alike(4)
    return whole


def rotate(
    q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, unsqueeze_dim: int = 1, **rest: Any
) -> tuple[Tensor, Tensor]:
    """Rotary positions (arXiv:2104.09864) on queries and keys, the halves turned in place; as transformers calls it.

    Where `cos` is narrower than a head the rest of the head stays as it is (GPT-NeoX's rotary_pct).
    """
    cos, sin = cos.unsqueeze(unsqueeze_dim), sin.unsqueeze(unsqueeze_dim)
    return _rotate(q, cos, sin), _rotate(k, cos, sin)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    apply: Any = _Rotate.apply
    rotated = cos.shape[-1]
    found: Tensor = apply(x[..., :rotated], cos, sin)
    return found if rotated == x.shape[-1] else torch.cat((found, x[..., rotated:]), dim=-1)


def product_dtype(x: Tensor) -> torch.dtype:
    """What matrix products are computed in: what autocast says, else what x is."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype


def rms_norm(x_NH: Tensor, weight_H: Tensor, epsilon: float) -> Tensor:
    """x / rms(x) * weight, written once in the precision that the next product wants."""
    apply: Any = _RmsNorm.apply
    found: Tensor = apply(x_NH, weight_H, epsilon, product_dtype(x_NH))
    return found


def silu_product(gate_NI: Tensor, up_NI: Tensor) -> Tensor:
    """silu(gate) * up; neither of the two factors is kept, they are made again."""
    apply: Any = _SiluProduct.apply
    found: Tensor = apply(gate_NI, up_NI)
    return found


def lora_linear(x_NI: Tensor, base: Any, down_RI: Tensor, up_OR: Tensor, scaling: float) -> Tensor:
    """x (W + scaling * up down)ᵀ + b of a frozen base with W and b, added up inside the matrix products."""
    apply: Any = _LoraLinear.apply
    found: Tensor = apply(x_NI, base, base.bias, down_RI, up_OR, scaling, product_dtype(x_NI))
    return found


class _RmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_NH: Tensor, weight_H: Tensor, epsilon: float, dtype: torch.dtype) -> Tensor:
        norm_N1 = torch.linalg.vector_norm(x_NH, dim=-1, keepdim=True, dtype=torch.float32)
        inverse_N1 = norm_N1.square_().div_(x_NH.shape[-1]).add_(epsilon).rsqrt_()
        ctx.save_for_backward(x_NH, weight_H, inverse_N1)
        # torch multiplies tensors of one type several times as fast as of two, so it is converted first
        found: Tensor = x_NH.float().mul(inverse_N1).mul_(weight_H).to(dtype)
        return found

    @staticmethod
    def backward(ctx: Any, *incoming: Tensor) -> tuple[Tensor | None, ...]:
        x_NH, weight_H, inverse_N1 = ctx.saved_tensors
        grad_NH, x_type, x_NH = incoming[0].float(), x_NH.dtype, x_NH.float()
        needs_x, needs_weight = ctx.needs_input_grad[:2]
        grad_H = None
        if needs_weight:
            grad_H = (grad_NH * x_NH).mul_(inverse_N1).flatten(0, -2).sum(0).to(weight_H.dtype)
        if not needs_x:
            return None, grad_H, None, None
        scaled_NH = grad_NH * weight_H
        # d/dx of x * r: r * g - x * r³ * mean(g x)
        dot_N1 = torch.linalg.vecdot(scaled_NH, x_NH).unsqueeze(-1)
        pull_N1 = dot_N1 * inverse_N1.pow(3) / x_NH.shape[-1]
        found_NH = scaled_NH.mul_(inverse_N1).addcmul_(x_NH, pull_N1, value=-1.0)
        return found_NH.to(x_type), grad_H, None, None


class _Rotate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        half = x.shape[-1] // 2
        out = x * cos
        out[..., :half].addcmul_(x[..., half:], sin[..., :half], value=-1.0)
        out[..., half:].addcmul_(x[..., :half], sin[..., half:])
        return out

    @staticmethod
    def backward(ctx: Any, *incoming: Tensor) -> tuple[Tensor | None, ...]:
        cos, sin = ctx.saved_tensors
        (grad,) = incoming
        half = grad.shape[-1] // 2
        found = grad * cos
        found[..., :half].addcmul_(grad[..., half:], sin[..., half:])
        found[..., half:].addcmul_(grad[..., :half], sin[..., :half], value=-1.0)
        return found, None, None


class _SiluProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate_NI: Tensor, up_NI: Tensor) -> Tensor:
        ctx.save_for_backward(gate_NI, up_NI)
        found: Tensor = functional.silu(gate_NI).mul_(up_NI)
        return found

    @staticmethod
    def backward(ctx: Any, *incoming: Tensor) -> tuple[Tensor, ...]:
        gate_NI, up_NI = ctx.saved_tensors
        (grad_NI,) = incoming
        grad_up_NI = functional.silu(gate_NI).mul_(grad_NI)
        grad_gate_NI: Tensor = torch.ops.aten.silu_backward(grad_NI * up_NI, gate_NI)
        return grad_gate_NI, grad_up_NI


def _frozen_weight(base: Any, dtype: torch.dtype) -> Tensor:
    weight_OI: Tensor = base.dequantized() if _holds_codes(base) else base.weight
    return weight_OI.to(dtype)


class _LoraLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x_NI: Tensor,
        base: Any,
        bias_O: Tensor | None,
        down_RI: Tensor,
        up_OR: Tensor,
        scaling: float,
        dtype: torch.dtype,
    ) -> Tensor:
        with torch.autocast(x_NI.device.type, enabled=False):
            shape, x_type = x_NI.shape, x_NI.dtype
            x_NI = x_NI.flatten(0, -2).to(dtype)
            weight_OI, down_RI, up_OR = _frozen_weight(base, dtype), down_RI.to(dtype), up_OR.to(dtype)
            bias_O = None if bias_O is None else bias_O.to(dtype)
            inner_NR = x_NI @ down_RI.T
            out_NO = functional.linear(x_NI, weight_OI, bias_O).addmm_(inner_NR, up_OR.T, alpha=scaling)
        # a weight made of codes is made again, or all of them would be in memory at the end of the forward pass
        ctx.save_for_backward(x_NI, None if _holds_codes(base) else weight_OI, down_RI, up_OR, inner_NR)
        ctx.base, ctx.scaling, ctx.x_type = base, scaling, x_type
        return out_NO.view(*shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *incoming: Tensor) -> tuple[Tensor | None, ...]:
        x_NI, weight_OI, down_RI, up_OR, inner_NR = ctx.saved_tensors
        shape = incoming[0].shape
        with torch.autocast(x_NI.device.type, enabled=False):
            grad_NO = incoming[0].flatten(0, -2).to(x_NI.dtype)
            grad_inner_NR = (grad_NO @ up_OR).mul_(ctx.scaling)
            grad_down_RI = grad_inner_NR.T @ x_NI
            grad_up_OR = (grad_NO.T @ inner_NR).mul_(ctx.scaling)
            grad_NI = None
            if ctx.needs_input_grad[0]:
                weight_OI = _frozen_weight(ctx.base, x_NI.dtype) if weight_OI is None else weight_OI
                grad_NI = (grad_NO @ weight_OI).addmm_(grad_inner_NR, down_RI).view(*shape[:-1], -1).to(ctx.x_type)
        return grad_NI, None, None, grad_down_RI.float(), grad_up_OR.float(), None, None
