"""Perplexity by llama.cpp of a GGUF file on windows of tokens, each from a fresh start. Prints one JSON object.

pip install llama-cpp-python
python scripts/peers/llamacpp_quality.py MODEL.gguf WINDOWS.json     (a list of lists of tokens)
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import llama_cpp
import numpy as np


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("windows", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    windows = json.loads(options.windows.read_text())
    llama = llama_cpp.Llama(
        options.model, n_ctx=max(map(len, windows)), n_threads=options.threads, logits_all=True, verbose=False
    )
    loss, count = 0.0, 0
    for token_T in windows:
        llama.reset()
        llama.eval(token_T)
        logit_TV = llama.scores[: len(token_T) - 1].astype(np.float64)
        top_T = logit_TV.max(axis=1)
        total_T = top_T + np.log(np.exp(logit_TV - top_T[:, None]).sum(axis=1))
        loss += float((total_T - logit_TV[np.arange(len(top_T)), token_T[1:]]).sum())
        count += len(top_T)
    print(json.dumps({"perplexity": float(np.exp(loss / count)), "tokens": count}))


main()
