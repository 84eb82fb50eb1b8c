"""One round of llama.cpp on a GGUF file: prefill and decode tokens/s by its own clock. Prints one JSON object.

pip install xllamacpp
python scripts/peers/llamacpp.py MODEL.gguf --threads 2 --prompt 512 --decode 128
"""

from __future__ import annotations

import argparse
import json
import random

import xllamacpp


def completion(server: xllamacpp.Server, tokens: list[int], num_predicted: int) -> dict[str, float]:
    """The server's timings of one greedy completion that reads every token anew."""
    answers: list[str] = []
    request = {
        "prompt": tokens, "n_predict": num_predicted, "cache_prompt": False, "temperature": 0.0, "ignore_eos": True,
    }  # fmt: skip
    server.handle_completions(request, lambda answer: answers.append(answer))
    answer = answers[-1]
    return (json.loads(answer) if isinstance(answer, str | bytes) else answer)["timings"]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--decode", type=int, default=128)
    options = parser.parse_args()
    params = xllamacpp.CommonParams()
    params.model.path = options.model
    params.n_ctx = options.prompt + options.decode + 64
    params.n_parallel = 1
    params.n_gpu_layers = 0
    params.warmup = True
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = options.threads
    server = xllamacpp.Server(params)
    prompt = [random.Random(0).randrange(300, 20000) for _ in range(options.prompt)]
    for _ in range(2):  # the first is a warm-up
        prefill = completion(server, prompt, 1)
        decode = completion(server, prompt[:16], options.decode)
    print(
        json.dumps(
            {
                "prefill_tokens_per_s": prefill["prompt_per_second"],
                "decode_tokens_per_s": decode["predicted_per_second"],
            }
        )
    )


main()
