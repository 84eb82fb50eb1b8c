"""penjing from Python.

    model = penjing.open("smollm2-135m")
    small = model.fit("small.penjing", data="notes.txt", max_bytes=80_000_000)
    print(small.generate("Once upon a time", max_tokens=40))
    print(small.chat([{"role": "user", "content": "What is a list?"}]))
    print(small.measure(text="others.txt", parent=model))

Opening reads no weights; torch is imported by what computes with it (`adapt`, `quantize`, `measure` of what is not
packed).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from penjing.checkpoint import Checkpoint, open_checkpoint
from penjing.format.architecture import Architecture
from penjing.talk import Talk

if TYPE_CHECKING:
    from typing import Self  # Python 3.11

    from tokenizers import Tokenizer

    from penjing.data.text import Corpus, Windows
    from penjing.evidence import Evidence
    from penjing.runtime.chat import ChatTemplate, Conversation, Message
    from penjing.runtime.constrain import Constraint, Kind
    from penjing.runtime.generate import Generation
    from penjing.runtime.session import KvKind, Session
    from penjing.stages.foresight import Budget
    from penjing.tensors.statistics import Importance

CALIBRATION_WINDOWS = 16

Progress = Callable[[str, int, int], None]
Overrides = Sequence[tuple[str, Mapping[str, Any]]]


def open(
    model: str | Path,
    *,
    context: int = 2048,
    threads: int | None = None,
    kv: KvKind = "f16",
    prefix_cache: str | Path | None = None,
    tell: Callable[[str], None] | None = None,
) -> Model:
    """Open a folder, a `.gguf`, a `.penjing`, "smollm2-135m" or a hub name. Raises PenjingError.

    context: tokens that a prompt and its answer may have together. threads: every core by default. kv: how keys and
    values are kept, "f16", "f32", "i8" or "auto": i8, but f16 where keys have a bias. prefix_cache: a folder or file
    that keeps what prompts begin with, over restarts; `tell` hears what comes of it.
    """
    return Model(open_checkpoint(model), context=context, threads=threads, kv=kv, prefix_cache=prefix_cache, tell=tell)


class Model:
    """A model. Methods that write a model return what they wrote, opened, and leave this one as it is."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        context: int = 2048,
        threads: int | None = None,
        kv: KvKind = "f16",
        prefix_cache: str | Path | None = None,
        tell: Callable[[str], None] | None = None,
    ) -> None:
        self.checkpoint = checkpoint
        self.evidence: Evidence | None = None  # of the stage that wrote it, if it was written here
        self._context, self._threads, self._kv = context, threads, kv
        self._talk = Talk(checkpoint, context=context, threads=threads, kv=kv, prefix_cache=prefix_cache, tell=tell)

    def __repr__(self) -> str:
        arch = self.architecture
        return f"<penjing.Model {self.checkpoint.name}: {arch.model_type}, {arch.num_layers} layers>"

    @property
    def name(self) -> str:
        return self.checkpoint.name

    @property
    def architecture(self) -> Architecture:
        """What the model computes, in plain numbers."""
        return self.checkpoint.architecture

    @property
    def is_packed(self) -> bool:
        """Whether the file is one that the engine maps as it is."""
        return self.checkpoint.path.suffix == ".penjing"

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer. Raises PenjingError where it came without one."""
        return self._talk.tokenizer

    @property
    def chat_template(self) -> ChatTemplate:
        """Raises PenjingError where the model came without one."""
        return self._talk.chat_template

    @property
    def session(self) -> Session:
        """The engine with this model, opened at first use. What is not packed is packed into a temporary file."""
        return self._talk.session

    def generate(self, prompt: str, **options: Any) -> str:
        """Text that continues `prompt`. options: those of `stream`."""
        return "".join(self.stream(prompt, **options))

    def chat(self, messages: Sequence[Message], **options: Any) -> str:
        """The answer to messages, such as [{"role": "user", "content": "Hello"}]. options: those of `stream`."""
        return "".join(self.stream_chat(messages, **options))

    def stream(
        self,
        prompt: str,
        *,
        max_tokens: int = 256,
        stop: Sequence[str] = (),
        seed: int | None = None,
        constraint: Constraint | None = None,
        **sampling: float,
    ) -> Generation:
        """Pieces of text that continue `prompt`, as they come; `.result` of it then says why it ended.

        sampling: temperature (0 by default: the likeliest), top_k, top_p, min_p, repetition_penalty. constraint: the
        form that the text must have, see `constraint`.
        """
        return self._talk.stream(prompt, max_tokens=max_tokens, stop=stop, seed=seed, constraint=constraint, **sampling)

    def stream_chat(
        self,
        messages: Sequence[Message],
        *,
        max_tokens: int = 512,
        stop: Sequence[str] = (),
        seed: int | None = None,
        constraint: Constraint | None = None,
        **sampling: float,
    ) -> Generation:
        """Pieces of the answer, as they come. Only what changed since the last call is computed."""
        return self._talk.stream_chat(
            messages, max_tokens=max_tokens, stop=stop, seed=seed, constraint=constraint, **sampling
        )

    def load_adapter(self, path: str | Path, *, name: str | None = None) -> str:
        """Load an adapter file or a folder that peft wrote, and use it; its name, for `use_adapter`."""
        loaded = self.session.load_adapter(path, name=name)
        self.session.use_adapter(loaded)
        return loaded

    def use_adapter(self, name: str | None) -> None:
        """Answer with an adapter that was loaded, or with none."""
        self.session.use_adapter(name)

    def constraint(self, kind: Kind, text: str) -> Constraint:
        """The form of one answer: "json_schema", "regex" or "grammar" (Lark), and its text. Needs penjing[serve]."""
        return self._talk.vocabulary.constraint(kind, text)

    def conversation(self, system: str = "") -> Conversation:
        """A conversation that remembers its turns."""
        return self._talk.conversation(system)

    def fit(
        self,
        out: str | Path,
        *,
        data: str | Path | Corpus,
        max_bytes: int | None = None,
        device: Path | None = None,
        min_speed: float | None = None,
        max_loss: float | None = None,
        minutes: float | None = None,
        max_memory: int | None = None,
        max_seconds: float | None = None,
        seed: int = 0,
        force: bool = False,
        progress: Progress | None = None,
        tell: Callable[[str], None] | None = None,
    ) -> Model:
        """Write the best `.penjing` file within limits, proven on a part of `data` that nothing else saw.

        max_bytes: of the file. min_speed: decoded tokens/s, on the `device` that `penjing probe` described. max_loss:
        growth of perplexity, as a fraction. minutes: to spend on tuning. `tell` hears what time and memory are
        expected; more than `max_seconds` or `max_memory` is an error before the work.
        """
        from penjing.data.text import as_corpus
        from penjing.recipe.fit import fit
        from penjing.stages.foresight import Budget

        evidence = fit(
            self.checkpoint,
            Path(out),
            data=as_corpus(data),
            max_bytes=max_bytes,
            device=device,
            min_speed=min_speed,
            max_loss=max_loss,
            minutes=minutes,
            seed=seed,
            force=force,
            budget=Budget(max_bytes=max_memory, max_seconds=max_seconds),
            progress=progress,
            tell=tell,
        )
        return self._child(out, evidence)

    def quantize(
        self,
        out: str | Path,
        *,
        method: str = "rtn",
        overrides: Overrides = (),
        data: str | Path | Corpus | None = None,
        calibration_windows: int = CALIBRATION_WINDOWS,
        by_block: bool = False,
        max_bytes: int | None = None,
        max_seconds: float | None = None,
        seed: int = 0,
        force: bool = False,
        progress: Progress | None = None,
        tell: Callable[[str], None] | None = None,
        **spec: Any,
    ) -> Model:
        """Write a quantized child, a Hugging Face folder. spec: the method's settings, e.g. bits=4, group_size=64.

        overrides: ("embed", {"bits": 8}) and the like, for parts whose canonical name matches the glob. data: text for
        methods that weigh errors by it, or "self": what the model writes itself. What they find is kept beside `out`.
        by_block: errors count by what each layer puts out, one layer in memory at a time, and not by the loss, which
        takes the whole model. `tell` hears what time and memory are expected; more than `max_seconds` or `max_bytes` is
        an error before the work.
        """
        from penjing.stages.foresight import Budget
        from penjing.stages.quantize import quantize

        budget = Budget(max_bytes=max_bytes, max_seconds=max_seconds)
        importances, windows = None, None
        if data and by_block:
            windows = self._windows(data, calibration_windows, seed, progress)
        elif data:
            start = time.perf_counter()
            importances, windows = self._calibrate(Path(out), data, seed, progress, calibration_windows, budget, tell)
            budget = budget.after(time.perf_counter() - start)
        evidence = quantize(
            self.checkpoint,
            Path(out),
            method=method,
            spec=spec,
            overrides=[(glob, dict(settings)) for glob, settings in overrides],
            importances=importances,
            calibration=windows,
            seed=seed,
            force=force,
            progress=progress,
            budget=budget,
            tell=tell,
        )
        return self._child(out, evidence)

    def prepare(
        self,
        out: str | Path,
        *,
        method: str,
        data: str | Path | Corpus | None = None,
        seed: int = 0,
        force: bool = False,
        progress: Progress | None = None,
        **spec: Any,
    ) -> Model:
        """Write a float child that computes the same and is easier to quantize. spec: the method's settings.

        data: text for methods that go by what the loss minds, or "self". seed: of its calibration.
        """
        from penjing.stages.prepare import prepare

        importances, windows = self._calibrate(Path(out), data, seed, progress) if data else (None, None)
        evidence = prepare(
            self.checkpoint,
            Path(out),
            method=method,
            spec=spec,
            importances=importances,
            calibration=windows,
            force=force,
            progress=progress,
        )
        return self._child(out, evidence)

    def tune(
        self,
        out: str | Path,
        *,
        teacher: Model,
        data: str | Path | Corpus,
        method: str = "qat",
        minutes: float | None = None,
        max_bytes: int | None = None,
        seed: int = 0,
        force: bool = False,
        progress: Progress | None = None,
        tell: Callable[[str], None] | None = None,
        **spec: Any,
    ) -> Model:
        """Write a tuned child of this quantized one, which learns from `teacher`, the model that it was made of.

        method: "qat" (codes and scales) or "kl_tuning" (scales alone). minutes: to train for, unless `steps` are set.
        data: text to learn from, or "self": what the teacher writes. spec: settings of the method and of training, e.g.
        learning_rate, steps, window. `tell` hears what memory is expected; more than `max_bytes` is an error before the
        work.
        """
        from penjing.stages.foresight import Budget
        from penjing.stages.tune import tune

        evidence = tune(
            self.checkpoint,
            Path(out),
            parent=teacher.checkpoint,
            data=data,
            method=method,
            spec=spec,
            minutes=minutes,
            seed=seed,
            force=force,
            budget=Budget(max_bytes=max_bytes),
            progress=progress,
            tell=tell,
        )
        return self._child(out, evidence)

    def adapt(
        self,
        out: str | Path,
        data: str | Path | Sequence[str | Path],
        *,
        method: str = "lora",
        train: Mapping[str, Any] | None = None,
        columns: Mapping[str, str] | None = None,
        question: str = "{text}",
        validation: float = 0.1,
        seed: int = 0,
        force: bool = False,
        progress: Progress | None = None,
        **spec: Any,
    ) -> Evidence:
        """Learn from examples; write an adapter, for `merge` and `load_adapter`, or a checkpoint, for `open`.

        data: of one task or of several, see `penjing data`; columns: which are which. question: how a text to classify
        is asked about. train: e.g. {"minutes": 15, "rate": 1e-3}. validation: fraction kept apart to choose the best
        weights. spec: the method's settings, e.g. rank=8.
        """
        from penjing.stages import build_spec
        from penjing.stages.adapt import Training, adapt
        from penjing.stages.examples import read_examples

        training = build_spec(Training, train or {}, where="train")
        sources = [data] if isinstance(data, (str, Path)) else data
        examples = read_examples(
            self.checkpoint,
            [str(source) for source in sources],
            columns=columns,
            question=question,
            max_tokens=training.length,
            validation=validation,
            objective=training.objective,
            seed=seed,
        )
        return adapt(
            self.checkpoint,
            Path(out),
            examples,
            method=method,
            spec=spec,
            training=training,
            seed=seed,
            force=force,
            progress=progress,
        )

    def merge(
        self,
        out: str | Path,
        adapters: Sequence[str | Path],
        *,
        weights: Sequence[float] | None = None,
        force: bool = False,
    ) -> Model:
        """Write a child with adapters in its weights, each times its weight: -1 takes out again what was merged."""
        from penjing.stages.adapters import merge

        paths = [Path(adapter) for adapter in adapters]
        return self._child(out, merge(self.checkpoint, paths, Path(out), weights=weights, force=force))

    def pack(self, out: str | Path, *, force: bool = False, progress: Progress | None = None) -> Model:
        """Write the `.penjing` file that runs on the device: codes where there are some, float16 elsewhere."""
        from penjing.stages.pack import pack

        return self._child(out, pack(self.checkpoint, Path(out), force=force, progress=progress))

    def measure(
        self,
        *,
        text: str | Path | Corpus | None = None,
        what: Sequence[str] = (),
        parent: Model | None = None,
        **options: Any,
    ) -> dict[str, Any]:
        """Measure this very file, under the keys of `penjing measure --json`.

        what: some of "quality" (needs `text`), "speed", "memory" (both need a packed file); by default all that is
        possible. options: window, max_windows, repeats, progress; threads and kv are as this model was opened.
        """
        from penjing.data.text import as_corpus
        from penjing.measure.compare import compare

        corpus = None if text is None else as_corpus(text)
        possible = (["quality"] if corpus else []) + (["speed", "memory"] if self.is_packed else [])
        options = {"threads": self._threads, "kv": self._kv} | options
        return compare(
            [self.checkpoint],
            what=list(what) or possible,
            corpus=corpus,
            parent=parent.checkpoint if parent else None,
            **options,
        )[0]

    def close(self) -> None:
        """Free the engine and the temporary file, if there is one."""
        self._talk.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _calibrate(
        self,
        out: Path,
        data: str | Path | Corpus,
        seed: int,
        progress: Progress | None,
        count: int = CALIBRATION_WINDOWS,
        budget: Budget | None = None,
        tell: Callable[[str], None] | None = None,
    ) -> tuple[Mapping[str, Importance], Windows]:
        """How much the loss on a text minds errors in each matrix, and that text."""
        from penjing.stages.calibrate import calibrate, foresee
        from penjing.stages.foresight import UNLIMITED

        windows = self._windows(data, count, seed, progress)
        cache = out.with_name(f"{out.name}.importance.safetensors")
        if (budget or tell is not None) and not cache.exists():
            foresee(self.checkpoint, windows, budget or UNLIMITED, tell)
        return calibrate(self.checkpoint, windows, cache=cache, seed=seed, progress=progress), windows

    def _windows(self, data: str | Path | Corpus, count: int, seed: int, progress: Progress | None) -> Windows:
        from penjing.measure.compare import WINDOW
        from penjing.stages.calibration_text import calibration_windows, text_to_learn

        text = text_to_learn(self.checkpoint, data, num_tokens=(count + 1) * WINDOW, seed=seed, progress=progress)
        return calibration_windows(self.checkpoint, text, length=WINDOW, count=count)

    def _child(self, out: str | Path, evidence: Evidence) -> Model:
        child = Model(open_checkpoint(out), context=self._context, threads=self._threads, kv=self._kv)
        child.evidence = evidence
        return child
