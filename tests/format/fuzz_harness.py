"""Damage a `.penjing` file in many ways, and open and run what comes out.

    python tests/format/fuzz_harness.py FILE FOLDER FIRST COUNT

Mutation n depends on n alone. Anything but success or PenjingError ends the process; FOLDER/mutation says which it was.
"""

from __future__ import annotations

import functools
import json
import random
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from penjing.errors import PenjingError
from penjing.format.container import TOKENIZER, open_container

try:
    from penjing.runtime.binding import library
    from penjing.runtime.session import Session

    library()
    ENGINE = True
except PenjingError:  # not built: opening is still tested
    ENGINE = False

HOSTILE: list[Any] = [
    *(0, 1, -1, 2, 3, 7, 16, 255, 1 << 15, 1 << 24, 1 << 31, 1 << 32, 1 << 62, 1 << 63, 1 << 70, 10**400),
    *(0.0, 1.5, -0.5, 1e-45, 1e38, 1e308, float("nan"), float("inf"), -float("inf")),
    *(True, False, None, "", "x", "codes", "f16", "U8", [], [1], [-1], [0] * 9, {}, {"x": 1}),
]
NUMBERS = [b"\x00\x7c", b"\x00\xfc", b"\x01\x7e", b"\xff\xff", b"\x00\x00\x80\x7f", b"\x00\x00\xc0\x7f"]  # inf and NaN


def parse(data: bytes) -> tuple[dict[str, Any], bytes]:
    length = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def build(header: Any, body: bytes) -> bytes:
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + body


def flip(chance: random.Random, data: bytes) -> bytes:
    """A few bytes become others, most often in the header."""
    changed = bytearray(data)
    length = int.from_bytes(data[:8], "little")
    for _ in range(chance.choice([1, 1, 2, 8])):
        end = 8 + length if chance.random() < 0.7 else len(data)
        changed[chance.randrange(end)] = chance.choice([0, 255, ord("9"), ord("]"), ord('"'), chance.randrange(256)])
    return bytes(changed)


def resize(chance: random.Random, data: bytes) -> bytes:
    if chance.random() < 0.2:
        return data + bytes(chance.choice([1, 2, 64, 5000]))
    return data[: chance.choice([0, 1, 7, 8, 9, len(data) - 1, chance.randrange(len(data))])]


def lie_about_length(chance: random.Random, data: bytes) -> bytes:
    true = int.from_bytes(data[:8], "little")
    lie = chance.choice([0, 1, 2, true - 1, true + 1, true + 64, len(data), 1 << 31, 1 << 63, (1 << 64) - 1])
    return lie.to_bytes(8, "little") + data[8:]


def edit_tensor(chance: random.Random, data: bytes) -> bytes:
    """An entry of the header says something else, or is gone, doubled or renamed."""
    header, body = parse(data)
    name = chance.choice([key for key in header if key != "__metadata__"])
    entry = header[name]
    other = header[chance.choice([key for key in header if key != "__metadata__"])]
    act = chance.randrange(7)
    if act == 0:
        del header[name]
    elif act == 1:
        header[name + chance.choice([".bias", "x", ".zeros"])] = header.pop(name)
    elif act == 2:
        header[name] = dict(other)
    elif act == 3:
        entry["dtype"] = chance.choice(["F32", "F16", "BF16", "U8", "I8", "I64", "F64", "U16", "x", None])
    elif act == 4:
        entry[chance.choice(["shape", "data_offsets"])] = chance.choice(HOSTILE)
    else:
        key = chance.choice(["shape", "data_offsets"])
        place = chance.randrange(len(entry[key]))
        entry[key][place] = chance.choice([chance.choice(HOSTILE), entry[key][place] + chance.choice([-16, -1, 1, 16])])
    return build(header, body)


def swap_tensors(chance: random.Random, data: bytes) -> bytes:
    """Two entries change places: sound as safetensors, wrong as a model."""
    header, body = parse(data)
    first, second = chance.sample([key for key in header if key != "__metadata__"], 2)
    header[first], header[second] = header[second], header[first]
    return build(header, body)


def edit_metadata(chance: random.Random, data: bytes) -> bytes:
    header, body = parse(data)
    metadata = header["__metadata__"]
    key = chance.choice(list(metadata))
    act = chance.randrange(4)
    if act == 0:
        del metadata[key]
    elif act == 1:
        metadata[key] = chance.choice(["", "null", "[]", "{}", "1e999", "[" * 50_000, '"x"', "NaN", "9" * 6000])
    elif act == 2:
        metadata[key] = chance.choice(HOSTILE)
    else:
        metadata[key] = metadata[key][: chance.randrange(len(metadata[key]) + 1)]
    return build(header, body)


def edit_inside(chance: random.Random, data: bytes) -> bytes:
    """A value somewhere in architecture or layouts becomes a hostile one, or its neighbour's."""
    header, body = parse(data)
    metadata = header["__metadata__"]
    key = chance.choice(["architecture", "architecture", "layouts"])
    root = json.loads(metadata[key])
    for _ in range(chance.choice([1, 1, 2])):
        place: Any = root
        while True:
            step = chance.choice(list(place) if isinstance(place, dict) else list(range(len(place))))
            inner = place[step]
            if not isinstance(inner, (dict, list)) or not inner or chance.random() < 0.15:
                break
            place = inner
        near = inner + chance.choice([-1, 1, inner]) if isinstance(inner, int) else chance.choice(HOSTILE)
        place[step] = chance.choice([chance.choice(HOSTILE), near])
        if not isinstance(root, dict) or not root:
            break
    metadata[key] = json.dumps(root)
    return build(header, body)


def poison(chance: random.Random, data: bytes) -> bytes:
    """NaN, infinity or noise in the bytes of a tensor."""
    header, _ = parse(data)
    start = 8 + int.from_bytes(data[:8], "little")
    name = chance.choice([key for key in header if key != "__metadata__"])
    begin, end = (start + offset for offset in header[name]["data_offsets"])
    changed = bytearray(data)
    value = chance.choice([*NUMBERS, chance.randbytes(8)])[: end - begin]
    place = begin + chance.randrange((end - begin - len(value)) // 2 + 1) // 2 * 4
    place = min(place, end - len(value))
    changed[place : place + len(value)] = value
    return bytes(changed)


@functools.cache
def bomb() -> bytes:
    return zlib.compress(bytes(300 << 20), 1)


def replace_tokenizer(chance: random.Random, data: bytes) -> bytes:
    header, body = parse(data)
    begin, end = header[TOKENIZER]["data_offsets"]
    text = chance.choice([b"", b"x", zlib.compress(b"\xff\xff"), zlib.compress(b"{}")[:-2]])
    if chance.random() < 0.05:
        text = bomb()
    for entry in header.values():
        offsets = entry.get("data_offsets", [0, 0])
        if offsets[0] >= end:
            entry["data_offsets"] = [offset + len(text) - (end - begin) for offset in offsets]
    header[TOKENIZER] = {"dtype": "U8", "shape": [len(text)], "data_offsets": [begin, begin + len(text)]}
    return build(header, body[:begin] + text + body[end:])


MUTATIONS: list[Callable[[random.Random, bytes], bytes]] = [
    *(flip, resize, lie_about_length, edit_tensor, edit_tensor, swap_tensors),
    *(edit_metadata, edit_inside, edit_inside, edit_inside, poison, poison, replace_tokenizer),
]


def use(path: Path) -> None:
    """What a person would do with it."""
    with open_container(path) as container:
        parts = container.bytes_by_part()
        assert sum(parts.values()) == container.file_bytes
        assert min(parts.values()) >= 0
        if ENGINE:
            session = Session(container, context=8, threads=1)
            try:
                session.forward([1, 2, 3], num_logits=3)
            finally:
                session.close()
        container.tokenizer_json()


def main() -> None:
    source, folder, first, count = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
    data = source.read_bytes()
    use(source)  # sound before it is damaged
    opened = refused = 0
    for number in range(first, first + count):
        (folder / "mutation").write_text(str(number))
        chance = random.Random(number)
        path = folder / "damaged.penjing"
        path.write_bytes(chance.choice(MUTATIONS)(chance, data))
        try:
            use(path)
            opened += 1
        except PenjingError:
            refused += 1
    print("opened", opened)
    print("refused", refused)


if __name__ == "__main__":
    main()
