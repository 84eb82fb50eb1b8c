"""One round of OpenVINO GenAI on an exported folder: prefill and decode tokens/s. Prints one JSON object.

In an environment of its own, because it pins other versions of torch and transformers:
pip install "optimum-intel[openvino]" openvino-genai
optimum-cli export openvino -m FOLDER --task text-generation-with-past --weight-format int8 OUT
python scripts/peers/openvino_llm.py OUT --threads 2 --prompts 512,2048 --say "The capital of France is"
"""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

import numpy as np
import openvino
import openvino_genai


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--prompts", default="512")
    parser.add_argument("--decode", type=int, default=128)
    parser.add_argument("--say", default="", help="a text whose next token is told, to be checked")
    options = parser.parse_args()
    prompts = [int(prompt) for prompt in options.prompts.split(",")]
    settings = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": options.threads}
    pipeline = openvino_genai.LLMPipeline(options.model, "CPU", settings)
    tokens = np.random.default_rng(0).integers(300, 20000, (1, max(prompts))).astype(np.int64)

    def seconds(num_read: int, num_said: int) -> float:
        config = openvino_genai.GenerationConfig()
        config.max_new_tokens = config.min_new_tokens = num_said
        config.ignore_eos, config.do_sample = True, False
        inputs = openvino.Tensor(tokens[:, :num_read].copy())
        mask = openvino.Tensor(np.ones((1, num_read), np.int64))
        start = time.perf_counter()
        pipeline.generate(openvino_genai.TokenizedInputs(inputs, mask), config)
        return time.perf_counter() - start

    found: dict[str, Any] = {}
    for _ in range(2):  # the first is a warm-up
        for prompt in prompts:
            found[f"prefill_{prompt}"] = prompt / seconds(prompt, 1)
        found["decode"] = options.decode / (seconds(16, options.decode + 1) - seconds(16, 1))
    if options.say:
        config = openvino_genai.GenerationConfig()
        config.max_new_tokens, config.apply_chat_template = 1, False
        found["said"] = str(pipeline.generate(options.say, config))
    print(json.dumps(found))


main()
