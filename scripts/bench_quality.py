"""Quality per byte: penjing's fit, uniform rounding, llama.cpp's types, other packages; one text, one code.

    python scripts/bench_quality.py --calibration FILE --held-out FILE [-o docs/results/quality.md]

`fit` chooses, quantizes and packs for each size as the main job does, calibrated on one text and judged on the other;
what overlaps is refused. With --tuning-text and sizes such as 48:30 it also tunes for 30 minutes. `rtn` and `hqq` are
uniform, embedding included: of all bits and group sizes the largest file that is no larger, its tensors' bytes counted
and what the packed file holds beside tensors added. llama.cpp's types are written by its own quantizer
(--llamacpp-python has llama-cpp-python); --peer-python is an interpreter that has hqq and llmcompressor. All
perplexities are of the dequantized weights in the same float32 torch code.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

import torch
from quality.contest import Contest, Size
from quality.page import Row, page, picture, table
from quality.texts import read_texts, two_texts

from penjing.checkpoint import open_checkpoint
from penjing.data.text import Windows, check_disjoint
from penjing.evidence import device
from penjing.measure.compare import WINDOW, held_out_windows
from penjing.recipe.fit import CALIBRATION_WINDOWS
from penjing.runtime import binding

PARENT = "smollm2-135m"
ABOUT = "SmolLM2-135M-Instruct as packaged; its weights already lie on a 4-bit grid"
KINDS = "Q8_0,Q4_K_M,Q3_K_M,Q4_0,Q2_K"


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=PARENT, help="the parent of all files")
    parser.add_argument("--about", default=ABOUT, help="what the page says of the parent")
    parser.add_argument("--calibration", type=Path, required=True)
    parser.add_argument("--held-out", type=Path, required=True)
    parser.add_argument("--tuning-text", type=Path, help="for sizes with minutes")
    parser.add_argument("--hard", type=float, default=0.0, help="tuning: share of the text's own loss beside the KL")
    parser.add_argument("--sizes", default="76,60,48,38", help="MB, or MB:MINUTES of tuning")
    parser.add_argument("--windows", type=int, default=8, help="held-out windows of 512 tokens")
    parser.add_argument("--calibration-windows", type=int, default=CALIBRATION_WINDOWS)
    parser.add_argument("--peer-python", help="has hqq and llmcompressor")
    parser.add_argument("--llamacpp-python", help="has llama-cpp-python")
    parser.add_argument("--kinds", default=KINDS, help="llama.cpp's types")
    parser.add_argument("--folder", type=Path, default=Path("build/quality"), help="keeps what takes long")
    parser.add_argument("-o", "--out", type=Path, help="Markdown; JSON and a picture go beside it")
    return parser


def main(words: Sequence[str] | None = None) -> None:
    words = sys.argv[1:] if words is None else words
    asked = arguments().parse_args(words)
    parent = open_checkpoint(asked.model)
    calibration, held_out = two_texts(
        parent, asked.calibration, asked.calibration_windows, asked.held_out, asked.windows
    )
    learnt = None
    if asked.tuning_text is not None:
        learnt = read_texts(asked.tuning_text)
        check_disjoint(held_out_windows(parent, learnt, WINDOW, None), held_out)
    sizes = [Size.read(text) for text in asked.sizes.split(",")]

    def report(rows: Sequence[Row]) -> None:
        print(rows[-1], file=sys.stderr, flush=True)
        if asked.out is not None:
            write(asked, words, rows, calibration, held_out)

    contest = Contest(parent, calibration, held_out, asked.folder / parent.digest[:12], report)
    contest.fits(sizes, learnt, asked.hard)
    if asked.llamacpp_python is not None:
        contest.llamacpp(asked.kinds.split(","), asked.llamacpp_python)
    for method in ("rtn", "hqq"):
        contest.uniform(method, sizes)
    if asked.peer_python is not None:
        contest.packages(asked.peer_python)
    print(table(contest.rows))


def write(
    asked: argparse.Namespace, words: Sequence[str], rows: Sequence[Row], calibration: Windows, held_out: Windows
) -> None:
    """The page, the picture, and the record that both are drawn from."""
    record: dict[str, Any] = {
        "about": asked.about,
        "texts": (
            f"Calibrated on {len(calibration.tokens_WT)} windows of {WINDOW} tokens of {asked.calibration.name}, "
            f"judged on {len(held_out.tokens_WT)} windows of {asked.held_out}."
        ),
        "command": f"python scripts/bench_quality.py {' '.join(words)}",
        "device": device(binding.isa()),
        "versions": {"python": platform.python_version(), "torch": str(torch.__version__)},
        "calibration": calibration.digest,
        "held_out": held_out.digest,
        "rows": [vars(row) for row in rows],
    }
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    asked.out.write_text(page(rows, record), encoding="utf-8")
    asked.out.with_suffix(".json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    if len(rows) > 2:
        picture(rows, asked.out.with_suffix(".png"))


if __name__ == "__main__":
    main()
