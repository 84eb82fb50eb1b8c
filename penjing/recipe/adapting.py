"""Several ways to adapt a model on one budget: what each makes of held-out data, and what it takes.

Every method has a process of its own (`python -m penjing.recipe.adapting`), so its peak memory is its own, and one that
fails or is killed takes no other with it. A child that is whole is judged by its evidence and not made again; one that
is not goes on where it was.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from penjing.errors import PenjingError
from penjing.files import write_file
from penjing.measure import fresh

COMPARED: Final = "compare.json"
BASE: Final = "base"

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, kw_only=True)
class Job:
    """What one process does: one method, or nothing but judging the base."""

    model: str
    out: str
    data: Sequence[str]
    method: str = BASE
    spec: Mapping[str, Any] = field(default_factory=dict)
    train: Mapping[str, Any] = field(default_factory=dict)
    columns: Mapping[str, str] = field(default_factory=dict)
    question: str = "{text}"
    validation: float = 0.1
    seed: int = 0
    force: bool = False


def compare(jobs: Sequence[Job], out: Path, *, progress: Progress | None = None) -> dict[str, Any]:
    """Run one job after the other, each into `OUT/METHOD`; keep what was found in `OUT/compare.json` and return it.

    A method that fails is a row with what was wrong. Raises PenjingError where nothing can be compared.
    """
    check(jobs)
    first = jobs[0]
    _check_free(out, force=first.force)
    told = {name: value for name, value in asdict(first).items() if name in ("model", "data", "validation", "seed")}
    found: dict[str, Any] = {"out": str(out), **told, "base": {}, "methods": []}
    found["base"] = _elsewhere(replace(first, method=BASE, spec={}, out=str(out)), progress)
    out.mkdir(parents=True, exist_ok=True)
    _keep(out, found)
    for job in jobs:
        try:
            row = _elsewhere(replace(job, out=str(out / job.method)), progress)
        except PenjingError as error:
            row = {"failed": {"fact": error.fact, "where": error.where, "attempt": error.attempt}}
        found["methods"].append({"method": job.method} | row)
        _keep(out, found)
    failed = [row["failed"] for row in found["methods"] if "failed" in row]
    if len(failed) == len(jobs):
        raise PenjingError(failed[0]["fact"], where=failed[0]["where"], attempt=failed[0]["attempt"])
    return found


def check(jobs: Sequence[Job]) -> None:
    """Raise PenjingError for what is known to be wrong before anything is trained."""
    from penjing.adapt import technique
    from penjing.stages import build_spec
    from penjing.stages.adapt import Training

    names = [job.method for job in jobs]
    twice = {name for name in names if names.count(name) > 1}
    if not jobs or twice:
        raise PenjingError(f"not different methods: {', '.join(names)}", where="--compare", attempt="lora,dora,ia3")
    if any(job.validation <= 0 for job in jobs):
        raise PenjingError("nothing is kept apart to compare by", where="--validation", attempt="--validation 0.1")
    for job in jobs:
        build_spec(technique(job.method).Spec, job.spec, where=job.method)
        build_spec(Training, job.train, where="--train")


def _check_free(out: Path, *, force: bool) -> None:
    if (out / COMPARED).exists() or not out.exists():
        return
    if not out.is_dir() or (any(out.iterdir()) and not force):
        raise PenjingError("it is already there", where=str(out), attempt="--force, or another name")


def _keep(out: Path, found: Mapping[str, Any]) -> None:
    write_file(out / COMPARED, (json.dumps(found, indent=1, ensure_ascii=False) + "\n").encode())


def _elsewhere(job: Job, progress: Progress | None) -> dict[str, Any]:
    """What a job found, in a new process, which ends when this one does. Raises PenjingError as the job does."""
    command = [sys.executable, "-m", "penjing.recipe.adapting"]
    last: dict[str, Any] = {}
    with tempfile.TemporaryFile("w+") as said:
        with subprocess.Popen(
            command, env=fresh.environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=said, text=True
        ) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            try:
                with contextlib.suppress(BrokenPipeError):
                    process.stdin.write(json.dumps(asdict(job)) + "\n")
                    process.stdin.flush()
                for line in process.stdout:
                    last = json.loads(line)
                    if progress is not None and "progress" in last:
                        what, done, total = last["progress"]
                        progress(f"{job.method}: {what}", done, total)
                process.wait()  # its stdin stays open until it has said what went wrong
            except BaseException:
                process.kill()
                raise
            finally:
                with contextlib.suppress(BrokenPipeError):  # what a process that died at once did not read
                    process.stdin.close()
        if "error" in last:
            raise PenjingError(last["error"]["fact"], where=last["error"]["where"], attempt=last["error"]["attempt"])
        if "found" in last:
            found: dict[str, Any] = last["found"]
            return found
        said.seek(0)
        lines = said.read().strip().splitlines() or [f"exit code {process.returncode}"]
        if process.returncode < 0:
            lines = [f"killed by signal {-process.returncode}; the system does so when memory is short"]
        raise PenjingError(f"its process failed: {lines[-1]}", where=job.method, attempt=f"--method {job.method} alone")


def main() -> None:
    """The other side: a job on the first line of stdin, which stays open as long as somebody waits for the answer."""
    with os.fdopen(os.dup(1), "w") as answers:
        os.dup2(2, 1)  # whatever libraries print is no answer
        job = Job(**json.loads(sys.stdin.readline()))
        threading.Thread(target=_end_with_stdin, daemon=True).start()

        def tell(**message: Any) -> None:
            print(json.dumps(message), file=answers, flush=True)

        try:
            tell(found=run(job, lambda *step: tell(progress=step)))
        except PenjingError as error:
            tell(error={"fact": error.fact, "where": error.where, "attempt": error.attempt})


def _end_with_stdin() -> None:
    while os.read(0, 1):  # not sys.stdin, whose lock a process that ends would wait for
        pass
    os._exit(1)  # as kill -9 would: what is on the disk is always a state to go on from


def run(job: Job, progress: Progress) -> dict[str, Any]:
    """One job, in this process."""
    from penjing.adapt import technique
    from penjing.checkpoint import open_checkpoint
    from penjing.stages import adapt, build_spec, examples

    progress("reading", 0, 0)
    parent, training = open_checkpoint(job.model), build_spec(adapt.Training, job.train, where="--train")
    documents = examples.read_examples(
        parent,
        job.data,
        columns=job.columns,
        question=job.question,
        max_tokens=training.length,
        validation=job.validation,
        objective=training.objective,
        seed=job.seed,
    )
    if job.method == BASE:
        return _base(parent, documents, training)
    spec = build_spec(technique(job.method).Spec, job.spec, where=job.method)
    out = Path(job.out)
    work = {"method": job.method, "training": training, "seed": job.seed}
    record = adapt.done_before(parent, out, documents, spec=spec, **work)
    if record is None:
        done = adapt.adapt(parent, out, documents, spec=asdict(spec), force=job.force, progress=progress, **work)
        record = done.to_json()
    return _row(record) | {"out": job.out}


def _base(parent: Any, documents: Any, training: Any) -> dict[str, Any]:
    """The held-out data under the model as it is."""
    import torch

    from penjing.stages import adapt, held_out
    from penjing.train import precision

    model, kind = adapt.load_for("", parent), precision.choose(training.precision, "cpu")
    objective = adapt.objective_of(model, training, documents, lambda: model)
    validate = held_out.validation(documents, objective, training.length)
    assert validate is not None  # something is kept apart
    model.eval()
    with torch.no_grad(), precision.autocast(kind, "cpu"):
        loss = validate(model)
    return {"loss": loss, **held_out.judge(model, documents, kind=kind)}


def _row(record: Mapping[str, Any]) -> dict[str, Any]:
    after = record["after"]
    ran = after["training"]
    row = {
        name: after[name]
        for name in ("trained_parameters", "parameters", "loss", "accuracy", "margin")
        if name in after
    }
    row |= {name: ran[name] for name in ("seconds", "steps", "tokens", "best_step", "stopped_by")}
    return row | {"peak_rss_bytes": record["peak_rss_bytes"]}


if __name__ == "__main__":
    main()
