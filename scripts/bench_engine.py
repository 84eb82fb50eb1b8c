"""Decode and prefill of the engine on random codes of SmolLM2-135M's shapes, as fractions of this machine's limits.

    python scripts/bench_engine.py [--threads 2] [--bits 4] [--prompt 512] [--sequences 8] [--model FILE.penjing]

Prints one JSON object. Decode is limited by reading every weight once a token, prefill by int8 multiply-adds; both
limits are measured in the same run with the same threads. With --sequences, as many are decoded together and one after
the other in turns, and their logits compared byte for byte before the ratio is given.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time

import numpy as np

from penjing.format.architecture import Architecture, Rope
from penjing.format.container import open_container
from penjing.format.pack import Layout
from penjing.format.safetensors_file import VIEWS
from penjing.runtime import binding
from penjing.runtime.session import Session

SMOLLM2_135M = Architecture(
    model_type="llama",
    vocab_size=49152,
    hidden_size=576,
    intermediate_size=1536,
    num_layers=30,
    num_heads=9,
    num_kv_heads=3,
    head_dim=64,
    max_position_embeddings=8192,
    tied=True,
    attention_scale=64**-0.5,
    ropes=(Rope(inv_freq=tuple(100_000.0 ** (-j / 32) for j in range(32))),),
    layer_rope=(0,) * 30,
    layer_window=(0,) * 30,
)


def random_model(arch: Architecture, bits: int, group_size: int, embed_bits: int):
    """Layouts and tensors of a model with random codes, scaled so that activations stay of order one."""
    rng = np.random.default_rng(0)
    layouts, tensors = {}, {}
    for name, (rows, cols) in arch.matrix_shapes().items():
        width = embed_bits if name == "embed" else bits
        layouts[name] = layout = Layout(kind="codes", rows=rows, cols=cols, bits=width, group_size=group_size)
        for suffix, spec in layout.tensor_specs().items():
            if suffix == "codes":
                tensors[f"{name}.codes"] = rng.integers(0, 256, spec.shape, dtype=np.uint8)
            else:
                tensors[f"{name}.{suffix}"] = np.full(spec.shape, 2.0**-width / np.sqrt(cols), VIEWS[spec.dtype])
    tensors |= {name: np.ones(size, np.float32) for name, size in arch.norm_sizes().items()}
    return layouts, tensors


def seconds(step, *, warmup: int = 3, repeats: int = 15) -> float:
    """Median wall time of step()."""
    times = []
    for i in range(warmup + repeats):
        start = time.perf_counter()
        step()
        if i >= warmup:
            times.append(time.perf_counter() - start)
    return statistics.median(times)


def together(session: Session, tokens_ST: np.ndarray) -> np.ndarray:
    """Logits after the last step of all sequences decoded together; each holds 64 tokens before."""
    sequences = np.arange(len(tokens_ST))
    for sequence in sequences:
        session.truncate(64, sequence=int(sequence))
    for tokens_S in tokens_ST.T:
        logits_SV = session.forward(tokens_S, len(sequences), sequence=sequences)
    return logits_SV


def one_by_one(session: Session, tokens_ST: np.ndarray) -> np.ndarray:
    """The same logits, one sequence after the other."""
    logits = []
    for sequence, tokens_T in enumerate(tokens_ST):
        session.truncate(64, sequence=sequence)
        for token in tokens_T:
            logits_1V = session.forward([token], sequence=sequence)
        logits.append(logits_1V[0])
    return np.stack(logits)


def gain_of_sequences(session: Session, prompt: np.ndarray, decode: int, repeats: int) -> float:
    """How many times faster all sequences are decoded together than one after the other, timed in turns."""
    rng = np.random.default_rng(2)
    tokens_ST = rng.integers(0, session.vocab_size, (session.sequences, decode))
    for sequence in range(session.sequences):
        session.truncate(0, sequence=sequence)
        session.forward(np.roll(prompt, sequence)[:64], sequence=sequence)
    if together(session, tokens_ST).tobytes() != one_by_one(session, tokens_ST).tobytes():
        raise SystemExit("sequences decoded together differ from the same alone")
    ratios = []
    for _ in range(repeats):
        alone_s = seconds(lambda: one_by_one(session, tokens_ST), warmup=0, repeats=1)
        ratios.append(alone_s / seconds(lambda: together(session, tokens_ST), warmup=0, repeats=1))
    return statistics.median(ratios)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--bits", type=int, default=4)
    parser.add_argument("--embed-bits", type=int, default=8)
    parser.add_argument("--group-size", type=int, default=32)
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--decode", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--sequences", type=int, default=1)
    parser.add_argument("--model", help="a packed file instead of random codes: --bits and the like are ignored")
    args = parser.parse_args()

    options = {"context": args.prompt + args.decode, "sequences": args.sequences, "threads": args.threads}
    if args.model:
        layouts = open_container(args.model).layouts
        session = Session(args.model, **options)
    else:
        layouts, tensors = random_model(SMOLLM2_135M, args.bits, args.group_size, args.embed_bits)
        session = Session.from_tensors(SMOLLM2_135M, layouts, tensors, **options)
    tokens = np.random.default_rng(1).integers(0, session.vocab_size, args.prompt)
    nbytes = sum(layout.nbytes for layout in layouts.values())
    with session:

        def prefill() -> None:
            session.truncate(0)
            session.forward(tokens)

        def decode() -> None:
            session.truncate(64)
            for token in tokens[: args.decode]:
                session.forward([token])

        prefill_s = seconds(prefill, warmup=1, repeats=args.repeats)
        decode_s = seconds(decode, warmup=1, repeats=args.repeats) / args.decode
        gain = gain_of_sequences(session, tokens, args.decode, args.repeats) if args.sequences > 1 else None
    read_bytes_per_s = binding.library().pj_probe_read(256 << 20, args.threads, 5)
    int8_per_s = binding.library().pj_probe_int8(args.threads, 5)
    macs = sum(layout.rows * layout.cols for name, layout in layouts.items() if name != "embed")
    result = {
        "isa": binding.isa(),
        "threads": args.threads,
        "bytes_per_token": nbytes,
        "decode_tokens_per_s": 1 / decode_s,
        "prefill_tokens_per_s": args.prompt / prefill_s,
        "decode_of_read_limit": nbytes / read_bytes_per_s / decode_s,
        "prefill_of_int8_limit": macs * args.prompt / int8_per_s / prefill_s,
    }
    if gain:
        result |= {"sequences": args.sequences, "together_over_one_by_one": gain}
    print(json.dumps({key: round(value, 4) if isinstance(value, float) else value for key, value in result.items()}))


if __name__ == "__main__":
    main()
