"""The table's rows: what was asked for, what was found, whether that is enough. Arithmetic only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

#: of what reading alone gains from a second thread, where that is less than the bar
_OF_READING = 0.95
Numbers = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Row:
    """`value` None: not measured, `note` says why. `least` must be reached, `aim` is hoped for."""

    what: str
    value: float | None
    unit: Literal["×", "%", "MB", "s"]
    least: float
    aim: float
    note: str = ""
    less_is_better: bool = False

    @property
    def verdict(self) -> str:
        if self.value is None:
            return "not measured"
        reached = [self.value <= bar if self.less_is_better else self.value >= bar for bar in (self.least, self.aim)]
        return "aim met" if reached[1] else "met" if reached[0] else "missed"

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"verdict": self.verdict}


def ratio(what: str, found: Numbers, ours: str | None, peer: str, key: str, bars: tuple[float, float]) -> Row:
    """Ours over a peer's."""
    if ours is None or ours not in found or peer not in found:
        return Row(what, None, "×", *bars, note=f"no {peer}" if peer not in found else "no file of ours is as good")
    mine, theirs = found[ours][key], found[peer][key]
    return Row(what, mine / theirs, "×", *bars, note=f"{ours}: {mine:.0f}, {peer}: {theirs:.0f} tokens/s")


def fastest_peer(what: str, found: Numbers, ours: str, peers: list[str], key: str) -> Row:
    there = [peer for peer in peers if peer in found]
    if not there:
        return Row(what, None, "×", 1.3, 2.0, note="no peer")
    return ratio(what, found, ours, max(there, key=lambda peer: found[peer][key]), key, (1.3, 2.0))


def of_read_limit(found: Numbers, best: str) -> Row:
    others = [
        f"{name}: {100 * mine['of_read_limit']:.0f}%"
        for name, mine in found.items()
        if "of_read_limit" in mine and name != best
    ]
    return Row("decode, of the read limit", 100 * found[best]["of_read_limit"], "%", 80, 90, ", ".join([best, *others]))


def decode_by_threads(mine: Mapping[str, Any], best: str) -> Row:
    """The bars hold where bandwidth allows them: nothing that reads all weights gains more than reading alone does, and
    both are measured with a spread of several percent."""
    reading = mine["reading_by_threads"]
    gain = mine["decode"] / mine["one_thread_decode"]
    note = f"{best}; reading alone {reading:.2f}×"
    return Row("1 → 2 threads, decode", gain, "×", min(1.7, _OF_READING * reading), min(1.9, reading), note=note)


def rows(
    found: Numbers, chosen: Mapping[str, str], eight: str, peers: list[str], fresh: Mapping[str, Any]
) -> list[Row]:
    """found: medians by contestant. chosen: llama.cpp's type to our file that is as good. fresh: of new processes."""
    best = chosen.get("llama.cpp Q4_0") or chosen.get("llama.cpp Q4_K_M") or eight
    mine = found[best]
    prompts = sorted((key for key in mine if key.startswith("prefill_")), key=lambda key: int(key.split("_")[1]))
    as_good = [
        ratio(f"decode, as good as {peer}", found, chosen.get(peer), peer, "decode", bars)
        for peer, bars in (("llama.cpp Q4_K_M", (1.6, 2.2)), ("llama.cpp Q4_0", (1.8, 2.5)))
    ]
    return [
        *as_good,
        ratio("decode, 8-bit body and head", found, eight, "llama.cpp Q8_0", "decode", (1.25, 1.5)),
        *(fastest_peer(f"prefill {key.split('_')[1]}", found, best, peers, key) for key in prompts),
        of_read_limit(found, best),
        decode_by_threads(mine, best),
        Row("1 → 2 threads, prefill", mine[prompts[0]] / mine[f"one_thread_{prompts[0]}"], "×", 1.7, 1.9, note=best),
        Row("8 sequences together", mine.get("together"), "×", 3.5, 5.0, note="over one after the other"),
        Row("4 threads on 2 cores, of 2 threads", 100 * mine["twice_the_threads_decode"] / mine["decode"], "%", 70, 70),
        Row("memory over the file, context 2048", fresh["over_file_mb"], "MB", 60, 40, best, less_is_better=True),
        Row("import, open, first token", fresh["first_token_s"], "s", 0.4, 0.2, best, less_is_better=True),
        Row("wheel", fresh["wheel_mb"], "MB", 4, 2, fresh["wheel_note"], less_is_better=True),
    ]
