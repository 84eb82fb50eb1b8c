"""Data sets: every kind from every form, problems by line, an index that stays small, changes noticed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from penjing.data.dataset import open_dataset
from penjing.errors import PenjingError

CHAT = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]}
SHAREGPT = {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]}


def jsonl(path: Path, *rows: object) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


@pytest.mark.parametrize(
    ("row", "kind"),
    [
        (CHAT, "chat"),
        (SHAREGPT, "chat"),
        ({"prompt": "p", "chosen": "a", "rejected": "b"}, "preference"),
        (
            {"chosen": CHAT["messages"], "rejected": [*CHAT["messages"][:1], {"role": "assistant", "content": "no"}]},
            "preference",
        ),
        ({"anchor": "a", "positive": "b"}, "pairs"),
        ({"sentence1": "a", "sentence2": "b"}, "pairs"),
        ({"instruction": "i", "input": "x", "output": "o"}, "instruction"),
        ({"instruction": "i", "context": "", "response": "o", "category": "qa"}, "instruction"),
        ({"Question": "i", "Answer": "o"}, "instruction"),
        ({"text": "t", "label": 3}, "classification"),
        ({"dialogue": "A: b", "text": "t"}, "text"),
        ("just a string", "text"),
    ],
)
def test_kinds_are_recognised(tmp_path, row, kind):
    assert open_dataset(jsonl(tmp_path / "a.jsonl", json.dumps(row))).kind == kind


def test_an_instruction_with_its_input_is_a_conversation(tmp_path):
    dataset = open_dataset(
        jsonl(tmp_path / "a.jsonl", {"instruction": "Add.", "input": "1 2", "output": "3", "system": "S"})
    )
    assert [(m["role"], m["content"]) for m in dataset[0].messages] == [
        ("system", "S"), ("user", "Add.\n\n1 2"), ("assistant", "3"),
    ]  # fmt: skip


def test_unknown_columns_are_named_and_can_be_told(tmp_path):
    path = jsonl(tmp_path / "a.jsonl", {"corps": "t", "kind": "x", "head": "h"})
    with pytest.raises(PenjingError, match="corps, kind, head are not recognised"):
        open_dataset(path)
    dataset = open_dataset(path, columns={"text": "head+corps", "label": "kind"})
    assert (dataset.kind, dataset[0].text, dataset[0].labels) == ("classification", "h\n\nt", ("x",))
    with pytest.raises(PenjingError, match="no column 'nothing'"):
        open_dataset(path, columns={"text": "nothing"})
    with pytest.raises(PenjingError, match="no kind of data"):
        open_dataset(path, kind="poem")


def test_problems_are_counted_and_named_by_line(tmp_path):
    good = {"instruction": "i", "output": "o"}
    empty, other = {"instruction": "i", "output": " "}, {"instruction": "i"}
    path = jsonl(tmp_path / "a.jsonl", good, "{broken", "", empty, other, "[1]", {"instruction": "I ", "output": "o"})
    dataset = open_dataset(path)
    assert len(dataset) == 2
    assert dataset.problems.counts == {
        "broken line": 1, "empty answer": 1, "no column output": 1, "not a record": 1, "repeats an earlier record": 1,
    }  # fmt: skip
    assert dataset.problems.left_out == 4
    assert dataset.problems.lines("broken line") == [("a.jsonl", 2)]
    assert dataset.problems.lines("empty answer") == [("a.jsonl", 4)]
    assert dataset.problems.lines("repeats an earlier record") == [("a.jsonl", 7)]
    assert [record.line for record in dataset.records()] == [1, 7]
    with pytest.raises(PenjingError, match="1 × broken line") as caught:
        open_dataset(path, strict=True)
    assert "a.jsonl line 2" in caught.value.where


def test_csv_cells_with_lines_and_offsets(tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes(b'\xef\xbb\xbftext;label\r\n"two\r\nlines; one ""cell""";x\r\nplain;y\r\nshort\r\na;b;c\r\n')
    dataset = open_dataset(path)
    assert [record.text for record in dataset.records([1, 0])] == ["plain", 'two\r\nlines; one "cell"']
    assert [record.line for record in dataset.records()] == [2, 4]
    assert dataset.problems.counts == {"fewer cells than columns": 1, "more cells than columns": 1}
    assert dataset.problems.lines("more cells than columns") == [("a.csv", 6)]


def test_tsv_without_a_header_and_several_labels(tmp_path):
    path = tmp_path / "a.tsv"
    path.write_text('He said "no\t1,0\tid1\nwell\t2\tid2\nbad\t7\tid3\n')
    settings = {"columns": {"text": "1", "label": "2"}, "separator": ",", "label_names": ["joy", "anger", "fear"]}
    dataset = open_dataset(path, **settings)
    assert [(record.text, record.labels) for record in dataset.records()] == [
        ('He said "no', ("anger", "joy")), ("well", ("fear",)),
    ]  # fmt: skip
    assert dataset.label_ids(dataset[0]) == (0, 2)  # of the sorted names anger, fear, joy
    assert dataset.problems.lines("label without a name") == [("a.tsv", 3)]


def test_numbers_sort_as_numbers(tmp_path):
    dataset = open_dataset(jsonl(tmp_path / "a.jsonl", *[{"text": f"t{n}", "label": n} for n in (10, 9, 2)]))
    assert dataset.labels == ("2", "9", "10")


def test_parquet_by_row_groups(tmp_path):
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    table = arrow.table({"text": [f"text {n}" for n in range(10)], "label": [n % 2 for n in range(10)]})
    parquet.write_table(table, tmp_path / "a.parquet", row_group_size=3)
    dataset = open_dataset(tmp_path / "a.parquet")
    assert [dataset[at].text for at in (9, 0, 4, 3)] == ["text 9", "text 0", "text 4", "text 3"]
    assert dataset.labels == ("0", "1")
    (tmp_path / "b.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(PenjingError, match="broken Parquet"):
        open_dataset(tmp_path / "b.parquet")


def test_json_lists_and_objects(tmp_path):
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"17": {"QUESTION": "q", "CONTEXTS": ["c", "d"], "final_decision": "yes"}}))
    dataset = open_dataset(path, columns={"text": "CONTEXTS+QUESTION", "label": "final_decision"})
    assert dataset[0].text == "c\nd\n\nq"
    path.write_text('[{"text": "a"}, 3]')
    assert open_dataset(path).problems.counts == {"not a record": 1}
    path.write_text("[")
    with pytest.raises(PenjingError, match="broken JSON"):
        open_dataset(path)


def test_text_comes_in_blocks_that_join_to_the_whole(tmp_path):
    text = "".join(f"Paragraph {n} ö.\n\n" * (n % 7) + f"line {n}\n" for n in range(4000))
    (tmp_path / "a.txt").write_bytes(text.encode())
    dataset = open_dataset(tmp_path)
    blocks = [record.text for record in dataset.records()]
    assert "".join(blocks) == text
    assert len(blocks) > 5
    assert max(map(len, blocks)) < 3 * 2**14
    assert dataset[3].text == blocks[3]
    assert dataset[1].line == blocks[0].count("\n") + 1


def test_mixed_encodings_are_read_and_named(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes('{"text": "grün"}\n'.encode() + '{"text": "grün – x"}\n'.encode("cp1252"))
    dataset = open_dataset(path)
    assert [record.text for record in dataset.records()] == ["grün", "grün – x"]
    assert dataset.problems.lines("not UTF-8, read as Windows-1252") == [("a.jsonl", 2)]
    assert dataset.problems.left_out == 0
    path.write_bytes('{"text": "a"}\n'.encode("utf-16"))
    with pytest.raises(PenjingError, match="utf-16") as caught:
        open_dataset(path)
    assert "iconv" in caught.value.attempt


def test_preference_problems(tmp_path):
    rows = [
        {"prompt": "p", "chosen": "a", "rejected": "a"},
        {"prompt": "p", "chosen": "a", "rejected": ""},
        {"prompt": "", "chosen": "a", "rejected": "b"},
    ]
    dataset = open_dataset(jsonl(tmp_path / "a.jsonl", *rows))
    assert dataset.problems.counts == {"chosen is rejected": 1, "empty answer": 1}
    assert dataset[0].messages == ()


def test_folders(tmp_path):
    with pytest.raises(PenjingError, match="no data in this folder"):
        open_dataset(tmp_path)
    jsonl(tmp_path / "b.jsonl", {"text": "2"})
    jsonl(tmp_path / "a.jsonl", {"text": "1"})
    dataset = open_dataset(tmp_path)
    assert [(record.file, record.text) for record in dataset.records()] == [("a.jsonl", "1"), ("b.jsonl", "2")]
    jsonl(tmp_path / "my_train.jsonl", {"text": "1"})
    jsonl(tmp_path / "test.jsonl", {"text": "1"})
    with pytest.raises(PenjingError, match="must not be mixed"):
        open_dataset(tmp_path)


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.txt"])
def test_empty_files(tmp_path, name):
    (tmp_path / name).write_text("")
    with pytest.raises(PenjingError, match="no records"):
        open_dataset(tmp_path / name)
    with pytest.raises(PenjingError, match="no such data"):
        open_dataset(tmp_path / "nowhere")


def test_a_file_that_changes_is_noticed(tmp_path):
    path = jsonl(tmp_path / "a.jsonl", {"text": "one"}, {"text": "two"})
    dataset = open_dataset(path)
    digest = dataset.digest
    os.utime(path, (1, 1))  # touched, not changed
    assert dataset[1].text == "two"
    jsonl(path, {"text": "one"}, {"text": "owt"})  # the same size
    os.utime(path, (2, 2))
    with pytest.raises(PenjingError, match="changed since it was opened"):
        dataset[0]
    with pytest.raises(PenjingError, match="changed since it was opened"):
        dataset.check_unchanged()
    assert open_dataset(path).digest != digest


def test_memory_is_bounded_by_records_not_by_bytes(tmp_path):
    """200 MB of data: opened and read at random with less than 60 MB more than before."""
    path = tmp_path / "big.jsonl"
    line = json.dumps({"text": "x" * 200_000}) + "\n"
    with path.open("w") as file:
        file.writelines([line.replace("xx", f"{number:08d}", 1) for number in range(1000)])
    code = (
        "import resource, sys\n"
        "from penjing.data.dataset import open_dataset\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "before = peak()\n"
        "dataset = open_dataset(sys.argv[1])\n"
        "assert len(dataset) == 1000 and dataset[777].text[:8] == '00000777'\n"
        "print(peak() - before)\n"
    )
    # a large row is held a few times over while it is parsed; the first rows are looked at together
    done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 60_000
