"""Languages of records, by py3langid: its model is within the package, nothing is fetched."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from penjing.data.records import Record
from penjing.errors import PenjingError

#: shorter texts tell too little of their language
MIN_CHARS = 20
MOST_CHARS = 2000


def languages(records: Iterable[Record]) -> dict[str, int]:
    """How many records are in which language, most first; "too short" for those that cannot tell."""
    try:
        import py3langid
    except ImportError as error:
        raise PenjingError("languages need py3langid", attempt="pip install 'penjing[fit]'") from error
    counted: Counter[str] = Counter()
    for record in records:
        text = "\n".join(record.parts())[:MOST_CHARS]
        counted["too short" if len(text) < MIN_CHARS else str(py3langid.classify(text)[0])] += 1
    return dict(counted.most_common())
