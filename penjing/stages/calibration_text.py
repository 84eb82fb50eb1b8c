"""Text to learn from, and windows of it to calibrate on, or why it will not do."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

from penjing.checkpoint import Checkpoint
from penjing.data.text import SELF, Corpus, Windows, as_corpus
from penjing.errors import PenjingError
from penjing.measure.compare import held_out_windows
from penjing.stages import Progress
from penjing.stages.generated_text import generated_text

_LEAST_WINDOWS = 4  # with fewer, GPTQ under the Fisher's Hessian learns them by heart
_PIECES, _PIECE_CHARS = 16, 2000  # whose language is told
_MOST_FOREIGN = 0.5  # of the pieces


def text_to_learn(
    parent: Checkpoint,
    data: str | Path | Corpus,
    *,
    num_tokens: int,
    seed: int = 0,
    progress: Progress | None = None,
) -> Corpus:
    """The text of a file or folder, or, for SELF, `num_tokens` that the model writes."""
    if data != SELF:
        return as_corpus(data)
    return generated_text(parent, num_tokens=num_tokens, seed=seed, progress=progress)


def calibration_windows(parent: Checkpoint, corpus: Corpus, *, length: int, count: int) -> Windows:
    """`count` windows, or fewer where the text has no more.

    Raises PenjingError for a text that is too short, or in a language that the model does not say it knows.
    """
    _check_language(parent, corpus)
    found = held_out_windows(parent, corpus, length, count)
    least = min(count, _LEAST_WINDOWS)
    if len(found.tokens_WT) < least:
        raise PenjingError(
            f"the calibration text has {found.tokens_WT.size} tokens: {least} windows of {length} are the least",
            where=f"{len(corpus.documents)} documents, {corpus.num_bytes} bytes",
            attempt=f"more text like that of your work: {count * length} tokens are used where they are there",
        )
    return found


def model_languages(checkpoint: Checkpoint) -> list[str]:
    """What the model says it knows, as ISO 639-1 codes: in its config, or on its card. Empty: it does not say."""
    said = checkpoint.config.get("language")
    if said is None:
        card = checkpoint.path / "README.md"
        text = card.read_text(encoding="utf-8", errors="replace")[:10_000] if card.is_file() else ""
        front = re.match(r"---\n(.*?)\n---", text, re.DOTALL)
        entry = front and re.search(r"^languages?:[ \t]*(.*(?:\n[ \t]*-.*)*)", front[1], re.MULTILINE)
        said = re.findall(r"\b[a-z]{2}\b", entry[1]) if entry else []
    return [said] if isinstance(said, str) else [str(code) for code in said]


def _check_language(parent: Checkpoint, corpus: Corpus) -> None:
    known = model_languages(parent)
    if not known:
        return
    try:
        import py3langid
    except ImportError:
        return  # nothing can be said
    pieces = [
        document[start : start + _PIECE_CHARS]
        for document in corpus.documents
        for start in range(0, len(document), _PIECE_CHARS)
    ]
    count = min(_PIECES, len(pieces))
    sample = [pieces[n * len(pieces) // count] for n in range(count)]
    foreign = Counter(code for code in (str(py3langid.classify(piece)[0]) for piece in sample) if code not in known)
    if foreign.total() > _MOST_FOREIGN * len(sample):
        raise PenjingError(
            f"{foreign.total()} of {len(sample)} pieces of the calibration text are not in a language of this model, "
            f"most of them in {foreign.most_common(1)[0][0]!r}",
            where=f"{parent.name} says that it knows {', '.join(known)}",
            attempt='text in these languages; if the model knows more, name them in its config.json: "language"',
        )
