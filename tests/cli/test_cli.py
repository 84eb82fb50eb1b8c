"""How the program ends and what it prints, whichever verb it is."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time

import pytest
from typer.testing import CliRunner, Result

from penjing.cli._app import PANELS, application, verbs

PROGRAM = [sys.executable, "-m", "penjing"]


def penjing(*arguments, check: int | None = 0, **options) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"COLUMNS": "80", "NO_COLOR": "1"}
    done = subprocess.run(
        [*PROGRAM, *map(str, arguments)], capture_output=True, text=True, timeout=120, env=environment, **options
    )
    assert check is None or done.returncode == check, done.stderr
    assert "Traceback" not in done.stderr
    return done


def here(*arguments) -> Result:
    """The same in this process, where torch is imported once."""
    done = CliRunner().invoke(application(), list(map(str, arguments)), catch_exceptions=False)
    assert done.exit_code == 0, done.stderr
    return done


def last_json(done: subprocess.CompletedProcess[str] | Result) -> dict:
    """The last line of stdout, read as strictly as any other language would."""

    def refuse(name: str) -> None:
        raise ValueError(name)

    return json.loads(done.stdout.splitlines()[-1], parse_constant=refuse)


def test_every_file_is_a_verb_with_a_help():
    shown = penjing("--help").stdout
    for verb in verbs():
        assert f"│ {verb} " in shown
    assert all(panel in shown for panel in PANELS)


@pytest.mark.parametrize("verb", verbs())
def test_help_of_a_verb(verb):
    assert "Usage: penjing " + verb in penjing(verb, "--help").stdout


@pytest.mark.parametrize(
    ("given", "then"),
    [({}, "10000"), ({"GOMP_SPINCOUNT": "5"}, "5"), ({"OMP_WAIT_POLICY": "active"}, "None")],
)
def test_threads_of_torch_wait_briefly_unless_the_user_says_how(given, then):
    program = (
        "import os, sys\nfrom penjing.cli import main\nsys.argv = ['penjing', '--version']\n"
        "try:\n    main()\nfinally:\n    print(os.environ.get('GOMP_SPINCOUNT'))"
    )
    environment = {
        name: value for name, value in os.environ.items() if name not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
    }
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        timeout=60,
        env=environment | given,
        check=False,
    )
    assert done.stdout.split()[-1] == then


def test_help_loads_nothing_slow():
    program = (
        "import sys\nfrom penjing.cli._app import application\n"
        "try:\n    application()(['fit', '--help'])\nexcept SystemExit:\n    pass\n"
        "slow = ['torch', 'transformers', 'numpy', 'tokenizers', 'jinja2', 'safetensors']\n"
        "print([name for name in slow if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_version():
    assert penjing("--version").stdout.startswith("penjing ")


@pytest.mark.parametrize(
    "arguments",
    [["nonsense"], ["inspect"], ["inspect", "a", "b"], ["run", "m", "p", "--max-tokens", "0"], ["fit", "m", "o"]],
)
def test_usage_is_exit_2(arguments):
    assert "Usage: penjing" in penjing(*arguments, check=2).stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ["inspect", "no/such/model"],
        ["list", "nowhere"],
        ["quantize", "nothing", "out", "--set", "bits"],
        ["fit", "nothing", "out.penjing", "--data", "nothing.txt", "--max-bytes", "80XB"],
        ["fit", "nothing", "out.penjing", "--data", "nothing.txt"],
        ["measure", "nothing", "--text", "nothing.txt"],
        ["run", "nothing", "hello"],
    ],
)
def test_a_penjing_error_is_three_lines_and_exit_1(arguments, tmp_path):
    done = penjing(*arguments, check=1, cwd=tmp_path)
    what, where, attempt = done.stderr.splitlines()
    assert what
    assert not what.startswith(" ")
    assert where.startswith("  where: ")
    assert attempt.startswith("  try:   ")
    assert done.stdout == ""


def test_inspect_accounts_for_every_byte(talker, packed_talker):
    for model in (talker, packed_talker):
        found = last_json(penjing("inspect", model, "--json"))
        assert sum(found["bytes_by_part"].values()) == found["bytes"]
        assert all(num_bytes >= 0 for num_bytes in found["bytes_by_part"].values())
        assert found["bits_per_weight"] == pytest.approx(8 * found["bytes"] / found["weights"])
        assert found["architecture"]["hidden_size"] == 32
    shown = penjing("inspect", packed_talker).stdout
    assert "bits/weight" in shown
    assert max(map(len, shown.splitlines())) <= 80


def test_list_reads_docstrings():
    found = last_json(penjing("list", "quant", "--json"))
    assert "rtn" in found["quant"]
    assert all(line.endswith((".", "…")) or line for line in found["quant"].values())


def test_quantize_pack_measure_compare(talker, tmp_path):
    pytest.importorskip("torch")
    child, packed = tmp_path / "child", tmp_path / "child.penjing"
    settings = ["--set", "bits=4", "--set", "group_size=32", "--set", "embed:bits=8", "--set", "layers.*.down:bits=6"]
    found = last_json(here("quantize", talker, child, *settings, "--json"))
    assert found["settings"]["overrides"] == [["embed", {"bits": 8}], ["layers.*.down", {"bits": 6}]]
    assert last_json(here("pack", child, packed, "--json"))["after"]["bytes"] == packed.stat().st_size
    layouts = last_json(here("inspect", packed, "--json"))["layouts"]
    assert layouts == {"4 bits, groups of 32": 12, "6 bits, groups of 32": 2, "8 bits, groups of 32": 1}
    text = tmp_path / "text.txt"
    text.write_text("Some words to predict. " * 40)
    arguments = ["--what", "quality", "--text", text, "--window-length", 64, "--windows", 2, "--json"]
    measured = last_json(here("measure", packed, "--parent", talker, *arguments))
    assert set(measured) == {"model", "bytes", "bits_per_weight", "quality"}
    assert measured["quality"]["kl_to_parent"] > 0
    picture = tmp_path / "front.png"
    compared = last_json(here("compare", packed, talker, "--plot", picture, *arguments))["models"]
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert [row["model"] for row in compared] == ["child", "talker"]
    assert compared[0]["quality"]["perplexity"] == pytest.approx(measured["quality"]["perplexity"])


def test_quantize_says_what_it_will_take_and_keeps_within_a_budget(talker, tmp_path):
    settings = ["--set", "group_size=4", "--method", "scale_search", "--by-block", "--data", tmp_path / "text.txt"]
    (tmp_path / "text.txt").write_text("the cat sat on the mat, and it saw a rat. " * 400)
    done = here("quantize", talker, tmp_path / "child", *settings, "--windows", 4, "--json")
    assert "quantizing will take about" in done.stderr
    found = last_json(done)
    assert found["predicted"]["seconds"] > 0
    assert found["settings"]["by_block"] is True
    assert not (tmp_path / "child.importance.safetensors").exists()  # the whole model's, which was not asked for
    for limit in (["--max-memory", "1MB"], ["--max-minutes", "0"]):
        refused = penjing("quantize", talker, tmp_path / "other", *settings, *limit, check=1)
        lines = refused.stderr.splitlines()[-3:]
        assert "allowed" in lines[0]
        assert "where:" in lines[1]
        assert "try:" in lines[2]
        assert not list(tmp_path.glob("other*"))


def test_what_hurts_and_what_calibrates_is_measured_before_anything_is_quantized(talker, tmp_path):
    pytest.importorskip("torch")
    text = tmp_path / "text.txt"
    text.write_text("".join(f"{hashlib.sha256(b'%d' % n).hexdigest()}\n" for n in range(1200)))  # nothing repeats
    data = ["--text", text, "--bits", "2,4", "--window-length", 32, "--windows", 2, "--json"]
    parts = last_json(here("measure", talker, "--what", "sensitivity", *data))["sensitivity"]
    assert [part["bits"] for part in parts] == [2, 4] * (len(parts) // 2)
    assert all(few["kl"] > many["kl"] for few, many in zip(parts[::2], parts[1::2], strict=True))
    data = ["--data", text, "--windows", "4,8", "--window-length", "32", "--layers", 1]
    rows = last_json(here("measure", talker, "--what", "calibration", *data, "--json"))["calibration"]
    assert [row["windows"] for row in rows] == [4, 8]
    assert all(row["kl"][str(text)] > 0 for row in rows)
    refused = penjing("measure", talker, "--what", "calibration", check=1)
    assert "no text to calibrate on" in refused.stderr
    refused = penjing("measure", talker, "--plot", "a.png", check=1)
    assert "options of what helps to choose" in refused.stderr


def test_a_picture_without_quality_is_refused_before_anything_is_measured(talker, tmp_path):
    for arguments in (["--plot", tmp_path / "a.png"], ["--text", "python-docs", "--plot", tmp_path / "a.jpg"]):
        done = penjing("compare", talker, talker, *arguments, check=1)
        assert "--plot" in done.stderr
    assert not list(tmp_path.iterdir())


def test_export(talker, tmp_path):
    found = last_json(here("export", talker, tmp_path / "out", "--to", "hf", "--json"))
    assert found["bytes"] == sum(path.stat().st_size for path in (tmp_path / "out").glob("*.safetensors"))
    assert found["types"] == {"float32": 15}
    assert "compressed-tensors, gguf, hf" in penjing("export", talker, tmp_path / "x", "--to", "onnx", check=1).stderr


def test_out_is_never_overwritten_without_force(talker, tmp_path):
    out = tmp_path / "out.penjing"
    penjing("pack", talker, out)
    before = out.read_bytes()
    assert "--force" in penjing("pack", talker, out, check=1).stderr
    assert out.read_bytes() == before
    penjing("pack", talker, out, "--force")


def test_run_prints_the_answer_alone_on_stdout(packed_talker):
    arguments = ["run", packed_talker, "Hello", "--max-tokens", 8, "--threads", 1]
    done = penjing(*arguments)
    found = last_json(penjing(*arguments, "--json"))
    assert done.stdout == found["text"] + "\n"
    assert found["stop_reason"] in ("length", "eos")
    assert "tokens/s" in done.stderr


def test_run_reads_a_prompt_from_stdin(packed_talker):
    arguments = ["--max-tokens", 4, "--json"]
    piped = last_json(penjing("run", packed_talker, "-", *arguments, input="Hello"))
    assert piped["text"] == last_json(penjing("run", packed_talker, "Hello", *arguments))["text"]


def test_run_raw_skips_the_template(packed_talker):
    plain = last_json(penjing("run", packed_talker, "[user]Hello>", "--raw", "--max-tokens", 8, "--json"))
    templated = last_json(penjing("run", packed_talker, "Hello", "--max-tokens", 8, "--json"))
    assert plain["text"] == templated["text"]
    assert plain["prompt_tokens"] == len("[user]Hello>")


def test_chat_with_piped_lines(packed_talker):
    done = penjing("chat", packed_talker, "--max-tokens", 4, "--threads", 1, input="one\n/reset\none\n/exit\nnever\n")
    first, second = done.stdout.split("\n")[:2] if done.stdout.count("\n") == 2 else (None, None)
    assert "forgotten" in done.stderr
    assert first == second or done.stdout.count("\n") > 2  # the random model may say a newline


def test_seeded_runs_repeat(packed_talker):
    arguments = ["run", packed_talker, "Hello", "--max-tokens", 12, "--temperature", 1, "--json"]
    texts = [last_json(penjing(*arguments, "--seed", seed))["text"] for seed in (5, 5, 6)]
    assert texts[0] == texts[1] != texts[2]


def test_impossible_sampling_is_an_error(packed_talker):
    assert "top_p is 2.0" in penjing("run", packed_talker, "Hello", "--top-p", 2, check=1).stderr


def test_a_reader_that_goes_away_is_no_error(packed_talker):
    command = [*PROGRAM, "run", str(packed_talker), "Hello", "--max-tokens", "400", "--temperature", "1", "--seed", "1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        process.stdout.read(1)
        process.stdout.close()
        error = process.stderr.read()
        process.wait(60)
    assert "Traceback" not in error
    assert "Exception" not in error
    assert process.returncode == 141  # as a shell reports a process that SIGPIPE ended


def test_ctrl_c_says_how_to_go_on(talker, tmp_path):
    pytest.importorskip("torch")
    program = (
        "import sys, time\n"
        "from penjing.stages import quantize\n"
        "def slow(*arguments, **options):\n    print('working', flush=True)\n    time.sleep(60)\n"
        "quantize.quantize = slow\n"
        "from penjing.cli import main\n"
        f"sys.argv = ['penjing', 'quantize', {str(talker)!r}, {str(tmp_path / 'out')!r}]\n"
        "main()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "working\n"
        time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        error = process.communicate(timeout=60)[1]
    assert process.returncode == 130
    assert error == "interrupted\n  try:   run the same command again; it goes on after the last whole part\n"


def test_an_answer_can_be_interrupted(packed_talker):
    command = [*PROGRAM, "run", str(packed_talker), "Hello", "--max-tokens", "1000000", "--context", "200000"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        process.stdout.read(1)
        process.send_signal(signal.SIGINT)
        error = process.communicate(timeout=60)[1]
    assert process.returncode == 130
    assert error.startswith("interrupted\n  try:   ")


def test_a_prefix_cache_outlives_the_program_and_changes_no_word(packed_talker, tmp_path):
    def run(*options):
        ask = ["run", packed_talker, "Why?", "--system", "Answer in one word. " * 8, "--max-tokens", 5, "--json"]
        done = here(*ask, *options)
        return last_json(done), done.stderr

    plain, _ = run()
    first, told = run("--prefix-cache", f"{tmp_path}/cache/")
    assert (first["cached_tokens"], first["text"]) == (0, plain["text"])
    assert "kept in" in told
    second, told = run("--prefix-cache", f"{tmp_path}/cache/")
    assert (second["cached_tokens"], second["text"]) == (plain["prompt_tokens"] - 1, plain["text"])
    assert "tokens of the prompt come from" in told


def test_an_adapter_changes_what_is_said(packed_talker, tmp_path):
    import numpy as np

    from penjing.checkpoint import open_checkpoint
    from penjing.format.adapter import Adapter, Addition, write_adapter

    rng = np.random.default_rng(0)
    shapes = open_checkpoint(packed_talker).architecture.matrix_shapes()
    outputs, inputs = shapes["layers.1.down"]
    pair = [rng.standard_normal(shape).astype(np.float32) for shape in ((2, inputs), (outputs, 2))]
    write_adapter(tmp_path / "loud", Adapter({"layers.1.down": Addition(*pair)}))
    said = [
        last_json(here("run", packed_talker, "Why?", "--max-tokens", 8, "--json", *more))["text"]
        for more in ((), ("--adapter", tmp_path / "loud"), ())
    ]
    assert said[0] == said[2] != said[1]
    refused = penjing("run", packed_talker, "Why?", "--adapter", tmp_path / "none", check=1)
    assert "none" in refused.stderr
