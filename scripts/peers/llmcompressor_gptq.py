"""The matrices of a model after llm-compressor's GPTQ, dequantized: OUT.safetensors under Hugging Face names.

pip install llmcompressor
python scripts/peers/llmcompressor_gptq.py FOLDER OUT.safetensors --bits 4 --group-size 64 --tokens WINDOWS.npy
"""

from __future__ import annotations

import argparse

import numpy as np
import torch
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from datasets import Dataset
from llmcompressor import oneshot
from llmcompressor.modifiers.quantization import GPTQModifier
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder")
    parser.add_argument("out")
    parser.add_argument("--bits", type=int, required=True)
    parser.add_argument("--group-size", type=int, required=True)
    parser.add_argument("--tokens", required=True, help="int32 [windows, tokens]")
    options = parser.parse_args()
    model = AutoModelForCausalLM.from_pretrained(options.folder, dtype=torch.float32)
    token_WT = np.load(options.tokens)
    rows = {"input_ids": token_WT.tolist(), "attention_mask": np.ones_like(token_WT).tolist()}
    weights = QuantizationArgs(
        num_bits=options.bits, symmetric=False, strategy="group", group_size=options.group_size, actorder="static"
    )
    scheme = QuantizationScheme(targets=["Linear"], weights=weights)
    oneshot(
        model=model, tokenizer=AutoTokenizer.from_pretrained(options.folder), dataset=Dataset.from_dict(rows),
        recipe=GPTQModifier(config_groups={"group_0": scheme}, ignore=["lm_head"]), pipeline="sequential",
        num_calibration_samples=len(token_WT), max_seq_length=token_WT.shape[1], shuffle_calibration_samples=False,
    )  # fmt: skip
    # GPTQ leaves weights on their grid
    quantized = {name: module for name, module in model.named_modules() if hasattr(module, "weight_scale")}
    save_file({f"{name}.weight": module.weight.data.contiguous() for name, module in quantized.items()}, options.out)


main()
