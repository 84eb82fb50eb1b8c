"""A GGUF file quantized by llama.cpp itself, for types that the gguf package cannot write (Q4_K_M and the like).

pip install llama-cpp-python    (compiled from source: five minutes on two cores)
python scripts/peers/gguf_quantize.py IN.gguf OUT.gguf Q4_K_M
"""

from __future__ import annotations

import argparse

import llama_cpp


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("source")
    parser.add_argument("target")
    parser.add_argument("kind", choices=["Q2_K", "Q3_K_M", "Q4_0", "Q4_K_M", "Q8_0"])
    options = parser.parse_args()
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{options.kind}")
    params.allow_requantize = True  # the packaged model is already Q4_1
    status = llama_cpp.llama_model_quantize(options.source.encode(), options.target.encode(), params)
    if status:
        raise SystemExit(f"llama_model_quantize: {status}")


main()
