"""A copy of a GGUF file with its matrices rounded to another type by the gguf package, for peers that run GGUF files.

    python scripts/peers/gguf_copy.py IN.gguf OUT.gguf Q4_0

Embeddings and vectors keep their types unless they are larger than the one asked for, as llama.cpp's own
quantizer does for a tied embedding of rows that its k-quants cannot hold.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType, GGUFReader, GGUFValueType, GGUFWriter
from gguf.constants import Keys
from gguf.quants import dequantize, quantize

_SKIPPED = ("GGUF.version", "GGUF.tensor_count", "GGUF.kv_count", Keys.General.ARCHITECTURE, Keys.General.FILE_TYPE)


def copy(source: Path, target: Path, kind: GGMLQuantizationType) -> None:
    reader = GGUFReader(source)
    architecture = reader.fields[Keys.General.ARCHITECTURE].contents()
    writer = GGUFWriter(target, architecture)
    for name, field in reader.fields.items():
        if name not in _SKIPPED:
            item = field.types[-1] if field.types[0] == GGUFValueType.ARRAY else None
            writer.add_key_value(name, field.contents(), field.types[0], sub_type=item)
    for tensor in reader.tensors:
        if len(tensor.shape) < 2 or tensor.name.startswith("token_embd"):
            writer.add_tensor(tensor.name, np.array(tensor.data), raw_dtype=tensor.tensor_type)
        else:
            weights = dequantize(tensor.data, tensor.tensor_type)
            writer.add_tensor(tensor.name, quantize(weights, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("kind", choices=["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "F16"])
    options = parser.parse_args()
    copy(options.source, options.target, GGMLQuantizationType[options.kind])


main()
