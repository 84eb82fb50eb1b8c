"""Other packages' quantizers as contestants: each runs in its own environment and leaves dequantized matrices.

Their files are sized as ours would be: the same bits, a float16 scale and a zero point a group, embedding by `rtn`.
"""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from penjing.checkpoint import Checkpoint
from penjing.data.text import Windows
from penjing.format.pack import Layout
from penjing.format.safetensors_file import SafetensorsFile
from penjing.quant import rtn
from penjing.stages.quantize import quantize

PEERS = Path(__file__).resolve().parents[1] / "peers"
GROUP = 64


@dataclass(frozen=True)
class Peer:
    """One run of a package's quantizer for the body; the embedding gets `embed_bits`, symmetric."""

    name: str
    script: str
    bits: int
    embed_bits: int

    @property
    def title(self) -> str:
        return f"{self.name}, {self.bits} bits, embedding {self.embed_bits} by rtn"

    def size_bytes(self, parent: Checkpoint) -> int:
        """Of the matrices, packed in groups of GROUP."""
        return sum(
            Layout(
                kind="codes", rows=rows, cols=cols, group_size=GROUP,
                bits=self.embed_bits if name == "embed" else self.bits, symmetric=name == "embed",
            ).nbytes
            for name, (rows, cols) in parent.architecture.matrix_shapes().items()
        )  # fmt: skip


#: at 4 bits and fewer, where techniques differ; the embedding at 4 bits is near what ours has. auto-round is not among
#: them: on two cores its tuning of a model of two tiny layers took minutes
CONTESTANTS = [
    Peer(name, script, bits, embed_bits)
    for name, script in (
        ("llm-compressor GPTQ", "llmcompressor_gptq.py"),
        ("hqq package", "hqq_weights.py"),
    )
    for bits, embed_bits in ((4, 4), (3, 4), (2, 4))
]


class Peers:
    """Runs them on one parent and one calibration text; what a run leaves in `folder` is used again."""

    def __init__(self, python: str, parent: Checkpoint, calibration: Windows, folder: Path) -> None:
        self._python, self._parent, self._folder = python, parent, folder
        self._tag = f"{parent.digest[:12]}-{calibration.digest[:12]}"
        folder.mkdir(parents=True, exist_ok=True)
        self._tokens = folder / f"{self._tag}.npy"
        np.save(self._tokens, calibration.tokens_WT)

    def weights(self, peer: Peer) -> dict[str, torch.Tensor]:
        """Canonical names to float32, those that the peer and `rtn` changed."""
        stored = self._run(peer)
        found = {}
        for part in self._parent.parts():
            if part.source in stored:
                whole_OI = stored[part.source]
                found[part.name] = whole_OI if part.rows is None else whole_OI[part.rows]
        embed_VH = torch.from_numpy(self._parent.read_part(next(p for p in self._parent.parts() if p.name == "embed")))
        spec = rtn.Spec(bits=peer.embed_bits, group_size=GROUP, symmetric=True)
        return found | {"embed": rtn.quantize(spec, embed_VH).dequantize()}

    def _run(self, peer: Peer) -> dict[str, torch.Tensor]:
        done = self._folder / f"{self._tag}-{Path(peer.script).stem}-{peer.bits}.safetensors"
        if not done.exists():
            partial = done.with_suffix(".partial")
            command = [
                self._python, str(PEERS / peer.script), str(self._hf_folder()), str(partial),
                "--bits", str(peer.bits), "--group-size", str(GROUP), "--tokens", str(self._tokens),
            ]  # fmt: skip
            subprocess.run(command, check=True)
            partial.rename(done)
        stored = SafetensorsFile(done)
        return {name: torch.from_numpy(stored.read(name)) for name in stored.tensors}

    def _hf_folder(self) -> Path:
        """The parent as transformers opens it."""
        folder = self._folder / f"{self._parent.digest[:12]}-hf"
        if not folder.exists():
            quantize(self._parent, folder, method="rtn", spec={"bits": 16})
        return folder
