"""That what is timed is right: our logits beside the numpy reference, a peer's next word beside its weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from penjing.checkpoint import Checkpoint
from penjing.data.text import load_tokenizer
from penjing.format.container import open_container
from penjing.format.pack import dequantize
from penjing.measure import torch_decoder
from penjing.runtime.reference import Decoder, usual_cache
from penjing.runtime.session import Session

#: its next word is beyond doubt: where two are as likely, rounding of activations decides, differently in each engine
TEXT = "One, two, three, four, five, six, seven, eight. One, two, three, four, five,"


def check_packed(path: Path) -> float:
    """The engine's distance from the reference, as a multiple of what rounding activations to 8 bits does anyway.

    Two roundings that are as good as independent differ by sqrt(2) times that (tests/runtime/random_models.py). Raises
    SystemExit above 1.6: then no speed of this file is printed.
    """
    container = open_container(path)
    arch, layouts = container.architecture, container.layouts
    weights = {name: dequantize(layout, container.matrix(name)) for name, layout in layouts.items()}
    vectors = [name for name, spec in container.tensors.items() if spec.dtype == "F32" and len(spec.shape) == 1]
    weights |= {name: container.tensor(name) for name in vectors}
    rounded = {name: layout.group_size for name, layout in layouts.items() if layout.kind == "codes"}
    tokens_T = np.random.default_rng(1).integers(arch.vocab_size, size=12)
    near = Decoder(arch, weights, dtype=np.float32, rounded=rounded, kv=usual_cache(weights)).forward(tokens_T)
    smooth = Decoder(arch, weights, dtype=np.float32).forward(tokens_T)
    with Session(container, context=16, threads=2, kv="auto") as session:
        got = session.forward(tokens_T, len(tokens_T))
    error, effect = (float(np.sqrt(np.mean((logits - near) ** 2))) for logits in (got, smooth))
    floor = 1e-4 * float(np.sqrt(np.mean(near**2)))  # float weights: nothing is rounded but the sums
    if not error < max(1.6 * effect, floor):
        raise SystemExit(f"{path}: logits differ from the reference by {error:.3g}: no speed is printed")
    return error / max(effect, floor)


def check_said(name: str, said: str, checkpoint: Checkpoint) -> None:
    """A peer's next word after TEXT must be the likeliest of its weights in float32; else no speed is printed."""
    tokenizer = load_tokenizer(checkpoint.tokenizer_json or "", where=checkpoint.name)
    tokens_T = np.array(tokenizer.encode(TEXT, add_special_tokens=False).ids, np.int32)
    last_V = [row for chunk in torch_decoder.scorer(checkpoint).logits(tokens_T) for row in chunk][-1]
    expected = tokenizer.decode([int(last_V.argmax())])
    if said.strip() != expected.strip() or not expected.strip():
        raise SystemExit(f"{name} goes on with {said!r}, not {expected!r}: no speed is printed")
