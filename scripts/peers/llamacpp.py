"""One round of llama.cpp on a GGUF file: prefill and decode tokens/s by its own clock. Prints one JSON object.

pip install xllamacpp
python scripts/peers/llamacpp.py MODEL.gguf --threads 2 --prompts 512,2048 --decode 128 --say "The capital of France is"
"""

from __future__ import annotations

import argparse
import json
import random
from typing import Any

import xllamacpp


def completion(server: xllamacpp.Server, prompt: list[int] | str, num_predicted: int) -> dict[str, Any]:
    """The server's answer to one greedy completion that reads every token anew."""
    answers: list[Any] = []
    request = {
        "prompt": prompt, "n_predict": num_predicted, "cache_prompt": False, "temperature": 0.0, "ignore_eos": True,
    }  # fmt: skip
    server.handle_completions(request, lambda answer: answers.append(answer))
    answer = answers[-1]
    return json.loads(answer) if isinstance(answer, str | bytes) else answer


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--prompts", default="512")
    parser.add_argument("--decode", type=int, default=128)
    parser.add_argument("--say", default="", help="a text whose next token is told, to be checked")
    options = parser.parse_args()
    prompts = [int(prompt) for prompt in options.prompts.split(",")]
    params = xllamacpp.CommonParams()
    params.model.path = options.model
    params.n_ctx = max(prompts) + options.decode + 64
    params.n_parallel = 1
    params.n_gpu_layers = 0
    params.warmup = True
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = options.threads
    server = xllamacpp.Server(params)
    tokens = [random.Random(0).randrange(300, 20000) for _ in range(max(prompts))]
    found: dict[str, Any] = {}
    for _ in range(2):  # the first is a warm-up
        for prompt in prompts:
            found[f"prefill_{prompt}"] = completion(server, tokens[:prompt], 1)["timings"]["prompt_per_second"]
        found["decode"] = completion(server, tokens[:16], options.decode)["timings"]["predicted_per_second"]
    if options.say:
        answer = completion(server, options.say, 1)
        found["said"] = answer["content"] if "content" in answer else answer["choices"][0]["text"]
    print(json.dumps(found))


main()
