"""Text that a model writes itself, to calibrate on where there is no other: zero-shot quantization.

As LLM-QAT does it (arXiv:2305.17888, section 2.1): a document begins with a token drawn evenly from the vocabulary, the
next few are the likeliest ones, so that it finds a theme, and the rest are drawn from what the model predicts. The
engine decodes several documents together and gives the same bits everywhere: the same seed, the same text.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np

from penjing.checkpoint import Checkpoint
from penjing.data.text import Corpus, load_tokenizer
from penjing.errors import PenjingError
from penjing.runtime.sampling import Sampler
from penjing.runtime.session import Session
from penjing.stages import Progress
from penjing.stages.pack import pack

DOCUMENT = 512  # tokens at most
_LIKELIEST = 4  # tokens after the first
_TOGETHER = 8  # documents
_WITHOUT_TEXT = 100  # documents in a row that come to nothing


def generated_text(parent: Checkpoint, *, num_tokens: int, seed: int = 0, progress: Progress | None = None) -> Corpus:
    """Documents of `num_tokens` or some more. Raises PenjingError for a model that has no tokenizer or no words."""
    if parent.tokenizer_json is None:
        raise PenjingError("no tokenizer, so it can write no text", where=parent.name, attempt="--data FILE")
    tokenizer = load_tokenizer(parent.tokenizer_json, where=parent.name)
    documents: list[str] = []
    written = empty = 0
    with tempfile.TemporaryDirectory(prefix="penjing-") as folder:
        path = _packed(parent, Path(folder))
        random = np.random.default_rng(seed)
        with Session(path, context=DOCUMENT + 2, sequences=_TOGETHER) as session:
            while written < num_tokens:
                for ids in _documents(session, parent, random):
                    text = tokenizer.decode(ids, skip_special_tokens=True)
                    empty = 0 if text.strip() else empty + 1
                    if empty > _WITHOUT_TEXT:
                        raise PenjingError("the model writes nothing", where=parent.name, attempt="--data FILE")
                    if text.strip():
                        documents.append(text)
                        written += len(ids)
                if progress is not None:
                    progress("writing its own text, tokens", min(written, num_tokens), num_tokens)
    return Corpus(tuple(documents))


def _packed(parent: Checkpoint, folder: Path) -> Path:
    if parent.path.suffix == ".penjing":
        return parent.path
    pack(parent, folder / "model.penjing")
    return folder / "model.penjing"


def _documents(session: Session, parent: Checkpoint, random: np.random.Generator) -> list[list[int]]:
    """Token ids of one document for each of the session's sequences, without what begins and ends them."""
    vocab_size, eos = session.vocab_size, set(parent.architecture.eos_token_ids)
    bos = parent.architecture.bos_token_id
    begin = [] if bos is None else [bos]
    found = [[int(token)] for token in random.integers(vocab_size, size=session.sequences)]
    likeliest = Sampler()
    drawn = [Sampler(temperature=1.0, seed=int(seed)) for seed in random.integers(1 << 31, size=session.sequences)]
    going = list(range(session.sequences))
    for sequence in going:
        session.truncate(0, sequence=sequence)
        if begin:
            session.forward(begin, sequence=sequence)
    for length in range(1, DOCUMENT):
        logits_SV = session.forward([found[s][-1] for s in going], len(going), sequence=going)
        said = {
            s: (drawn[s] if length > _LIKELIEST else likeliest)(logits_V, ())
            for s, logits_V in zip(going, logits_SV, strict=True)
        }
        going = [s for s in going if said[s] not in eos]
        for sequence in going:
            found[sequence].append(said[sequence])
        if not going:
            break
    return found
