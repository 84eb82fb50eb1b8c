"""transformers + peft as their documentation trains, one step when told to: {"loss"} for every line of stdin.

    python peft_train.py MODEL_FOLDER TOKENS.npy --method lora|full [--autocast] [--threads 2]

TOKENS.npy: [steps, rows, length]. The first line it prints says that it is ready, the last its peak memory.
"""

import argparse
import json
import resource
import sys
from contextlib import nullcontext

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("tokens")
    parser.add_argument("--method", choices=["lora", "full"], default="lora")
    parser.add_argument("--autocast", action="store_true")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--learning-rate", type=float, default=1e-4)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32)
    torch.manual_seed(0)
    if options.method == "lora":
        model = get_peft_model(model, LoraConfig(r=16, lora_alpha=32, target_modules="all-linear"))
    model.train()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=options.learning_rate, betas=(0.9, 0.95), weight_decay=0.0)
    print(json.dumps({"ready": True}), flush=True)
    for tokens in np.load(options.tokens):
        sys.stdin.readline()
        ids = torch.from_numpy(tokens.astype(np.int64))
        with torch.autocast("cpu", torch.bfloat16) if options.autocast else nullcontext():
            loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        print(json.dumps({"loss": loss.item()}), flush=True)
    print(json.dumps({"peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}), flush=True)


main()
