"""Personal data in records, by presidio's pattern recognizers alone: they need no model and no network.

Names and addresses need a model and are not looked for. The check of an e-mail address's domain would fetch a list from
the web: here it uses the one within tldextract.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from penjing.data.records import Record
from penjing.errors import PenjingError

MOST_CHARS = 20_000


@dataclass(frozen=True)
class Finding:
    kind: str
    file: str
    line: int
    text: str


def personal_data(records: Iterable[Record], min_score: float = 0.4) -> list[Finding]:
    """E-mail addresses, card and account numbers, telephone numbers, addresses of computers, social security numbers.

    Raises PenjingError where presidio is not installed.
    """
    recognizers = _recognizers()
    found = []
    for record in records:
        text = "\n".join(record.parts())[:MOST_CHARS]
        for recognizer in recognizers:
            for hit in recognizer.analyze(text, recognizer.supported_entities, None):
                if hit.score >= min_score:
                    found.append(Finding(hit.entity_type, record.file, record.line, text[hit.start : hit.end]))
    return found


def _recognizers() -> list[Any]:
    try:
        import tldextract
        from presidio_analyzer import predefined_recognizers as predefined
    except ImportError as error:
        raise PenjingError("personal data needs presidio", attempt="pip install 'penjing[pii]'") from error
    domains = tldextract.TLDExtract(suffix_list_urls=(), cache_dir=None)

    class Email(predefined.EmailRecognizer):  # type: ignore[misc]
        def validate_result(self, pattern_text: str) -> bool:
            return bool(domains(pattern_text).top_domain_under_public_suffix)

    logging.getLogger("presidio-analyzer").setLevel(logging.ERROR)
    others = ("CreditCardRecognizer", "IbanRecognizer", "IpRecognizer", "PhoneRecognizer", "UsSsnRecognizer")
    return [Email(), *(getattr(predefined, name)() for name in others)]
