"""The matrices of a model as the package hqq rounds them, dequantized: OUT.safetensors under Hugging Face names.

pip install hqq torch transformers safetensors
python scripts/peers/hqq_weights.py FOLDER OUT.safetensors --bits 4 --group-size 64
"""

from __future__ import annotations

import argparse

import torch
from hqq.core.quantize import Quantizer
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder")
    parser.add_argument("out")
    parser.add_argument("--bits", type=int, required=True)
    parser.add_argument("--group-size", type=int, required=True)
    parser.add_argument("--tokens", help="calibration windows, which it does not need")
    options = parser.parse_args()
    model = AutoModelForCausalLM.from_pretrained(options.folder, dtype=torch.float32)
    found = {}
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and module is not model.get_output_embeddings():
            code, meta = Quantizer.quantize(
                module.weight.data, nbits=options.bits, group_size=options.group_size, axis=1, bitpack=False,
                compute_dtype=torch.float32, device="cpu",
            )  # fmt: skip
            found[f"{name}.weight"] = Quantizer.dequantize(code, meta).reshape(module.weight.shape).contiguous()
    save_file(found, options.out)


main()
