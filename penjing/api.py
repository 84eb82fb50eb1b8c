"""penjing from Python.

    model = penjing.open("smollm2-135m")
    small = model.quantize("small", bits=4, group_size=64).pack("small.penjing")
    print(small.generate("Once upon a time", max_tokens=40))
    print(small.chat([{"role": "user", "content": "What is a list?"}]))
    print(small.measure(text="notes.txt", parent=model))

Opening reads no weights; torch is imported by what computes with it (`adapt`, `quantize`, `measure` of what is not
packed).
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from penjing.checkpoint import Checkpoint, open_checkpoint
from penjing.errors import PenjingError
from penjing.format.architecture import Architecture

if TYPE_CHECKING:
    from typing import Self  # Python 3.11

    from tokenizers import Tokenizer

    from penjing.data.text import Corpus, Windows
    from penjing.evidence import Evidence
    from penjing.runtime.chat import ChatTemplate, Conversation, Message
    from penjing.runtime.constrain import Constraint, Kind, Vocabulary
    from penjing.runtime.generate import Generation
    from penjing.runtime.prefix_cache import PrefixCache
    from penjing.runtime.session import Session
    from penjing.stages.foresight import Budget
    from penjing.tensors.statistics import Importance

CALIBRATION_WINDOWS = 16
#: as `data`: what the model writes itself
SELF = "self"
_TUNING_TOKENS = 1 << 18  # of its own text to tune on

Progress = Callable[[str, int, int], None]
Overrides = Sequence[tuple[str, Mapping[str, Any]]]


def open(
    model: str | Path,
    *,
    context: int = 2048,
    threads: int | None = None,
    prefix_cache: str | Path | None = None,
    tell: Callable[[str], None] | None = None,
) -> Model:
    """Open a folder, a `.gguf`, a `.penjing`, "smollm2-135m" or a hub name. Raises PenjingError.

    context: tokens that a prompt and its answer may have together. threads: every core by default. prefix_cache: a
    folder or file that keeps what prompts begin with, over restarts; `tell` hears what comes of it.
    """
    return Model(open_checkpoint(model), context=context, threads=threads, prefix_cache=prefix_cache, tell=tell)


class Model:
    """A model. Methods that write a model return what they wrote, opened, and leave this one as it is."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        context: int = 2048,
        threads: int | None = None,
        prefix_cache: str | Path | None = None,
        tell: Callable[[str], None] | None = None,
    ) -> None:
        self.checkpoint = checkpoint
        self.evidence: Evidence | None = None  # of the stage that wrote it, if it was written here
        self._context, self._threads = context, threads
        self._session: Session | None = None
        self._unpacked: tempfile.TemporaryDirectory[str] | None = None
        self._cached: list[int] = []
        self._prefix_cache, self._tell = prefix_cache, tell

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

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer. Raises PenjingError where it came without one."""
        from penjing.data.text import load_tokenizer

        text = self.checkpoint.tokenizer_json
        if text is None:
            raise PenjingError(
                "the model has no tokenizer", where=self.name, attempt="put its tokenizer.json beside config.json"
            )
        return load_tokenizer(text, where=self.name)

    @cached_property
    def chat_template(self) -> ChatTemplate:
        """Raises PenjingError where the model came without one."""
        from penjing.runtime.chat import ChatTemplate

        arch = self.architecture
        eos = arch.eos_token_ids[0] if arch.eos_token_ids else None
        return ChatTemplate(self.checkpoint.chat_template, self._token_text("bos_token_id"), self._text_of(eos))

    @property
    def session(self) -> Session:
        """The engine with this model, opened at first use. What is not packed is packed into a temporary file."""
        if self._session is None:
            from penjing.runtime.session import Session

            path = self.checkpoint.path if self.is_packed else self._packed_copy()
            self._session = Session(path, context=self._context, threads=self._threads)
        return self._session

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
        return self._generate(
            self.tokenizer.encode(prompt).ids, max_tokens, stop, seed, {**sampling, "constraint": constraint}
        )

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
        prompt = self.chat_template.render(messages)
        prompt_ids = self.tokenizer.encode(prompt, add_special_tokens=False).ids
        return self._generate(prompt_ids, max_tokens, stop, seed, {**sampling, "constraint": constraint})

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
        return self._vocabulary.constraint(kind, text)

    @cached_property
    def _vocabulary(self) -> Vocabulary:
        from penjing.runtime.constrain import Vocabulary

        arch = self.architecture
        return Vocabulary(self.tokenizer.to_str(), arch.vocab_size, arch.eos_token_ids)

    def conversation(self, system: str = "") -> Conversation:
        """A conversation that remembers its turns."""
        from penjing.runtime.chat import Conversation

        return Conversation(
            self.session,
            self.tokenizer,
            self.chat_template,
            eos=self.architecture.eos_token_ids,
            system=system,
            before_prompt=self._restore,
            after_prompt=self._keep,
        )

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
            budget=None if budget == Budget() else budget,
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
        seed: int = 0,
        force: bool = False,
        progress: Progress | None = None,
        **spec: Any,
    ) -> Model:
        """Write a tuned child of this quantized one, which learns from `teacher`, the model that it was made of.

        method: "qat" (codes and scales) or "kl_tuning" (scales alone). minutes: to train for, unless `steps` are set.
        data: text to learn from, or "self": what the teacher writes. spec: settings of the method and of training, e.g.
        learning_rate, steps, window.
        """
        from penjing.stages.tune import tune

        evidence = tune(
            self.checkpoint,
            Path(out),
            parent=teacher.checkpoint,
            data=teacher._text(data, _TUNING_TOKENS, seed, progress),
            method=method,
            spec=spec,
            minutes=minutes,
            seed=seed,
            force=force,
            progress=progress,
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
        possible. options: window, max_windows, threads, repeats, progress.
        """
        from penjing.measure.compare import compare

        corpus = None if text is None else _corpus(text)
        possible = (["quality"] if corpus else []) + (["speed", "memory"] if self.is_packed else [])
        options.setdefault("threads", self._threads)
        return compare(
            [self.checkpoint],
            what=list(what) or possible,
            corpus=corpus,
            parent=parent.checkpoint if parent else None,
            **options,
        )[0]

    def close(self) -> None:
        """Free the engine and the temporary file, if there is one."""
        if self._session is not None:
            self._session.close()
            self._session = None
        if self._unpacked is not None:
            self._unpacked.cleanup()
            self._unpacked = None
        self._cached.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _generate(
        self,
        prompt_ids: Sequence[int],
        max_tokens: int,
        stop: Sequence[str],
        seed: int | None,
        sampling: Mapping[str, Any],
    ) -> Generation:
        from penjing.runtime.generate import generate
        from penjing.runtime.sampling import Sampler

        held = self._restore(prompt_ids)
        if held is not None:
            self._cached[:] = held
        return generate(
            self.session,
            self.tokenizer,
            prompt_ids,
            max_tokens=max_tokens,
            sampler=Sampler(seed=seed, **sampling),
            stop=stop,
            eos=self.architecture.eos_token_ids,
            cached=self._cached,
            speculate=True,
            after_prompt=self._keep,
        )

    @cached_property
    def _prefixes(self) -> PrefixCache | None:
        from penjing.runtime.prefix_cache import PrefixCache

        return PrefixCache(self._prefix_cache, tell=self._tell) if self._prefix_cache else None

    def _restore(self, prompt_ids: Sequence[int]) -> list[int] | None:
        """What the session holds after the prefix cache gave what it has for a prompt; None: there is no such cache."""
        return self._prefixes.restore(self.session, prompt_ids) if self._prefixes else None

    def _keep(self, evaluated: int) -> None:
        if self._prefixes:
            self._prefixes.keep(self.session, evaluated)

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

        windows = self._windows(data, count, seed, progress)
        cache = out.with_name(f"{out.name}.importance.safetensors")
        if (budget is not None or tell is not None) and not cache.exists():
            foresee(self.checkpoint, windows, budget, tell)
        return calibrate(self.checkpoint, windows, cache=cache, seed=seed, progress=progress), windows

    def _windows(self, data: str | Path | Corpus, count: int, seed: int, progress: Progress | None) -> Windows:
        from penjing.measure.compare import WINDOW
        from penjing.stages.calibration_text import calibration_windows

        text = self._text(data, (count + 1) * WINDOW, seed, progress)
        return calibration_windows(self.checkpoint, text, length=WINDOW, count=count)

    def _text(self, data: str | Path | Corpus, num_tokens: int, seed: int, progress: Progress | None) -> Corpus:
        """Text to learn from; of what the model writes itself, `num_tokens`."""
        if data != SELF:
            return _corpus(data)
        from penjing.stages.generated_text import generated_text

        return generated_text(self.checkpoint, num_tokens=num_tokens, seed=seed, progress=progress)

    def _packed_copy(self) -> Path:
        from penjing.stages.pack import pack

        self._unpacked = tempfile.TemporaryDirectory(prefix="penjing-")
        path = Path(self._unpacked.name) / "model.penjing"
        pack(self.checkpoint, path)
        return path

    def _child(self, out: str | Path, evidence: Evidence) -> Model:
        child = Model(open_checkpoint(out), context=self._context, threads=self._threads)
        child.evidence = evidence
        return child

    def _token_text(self, key: str) -> str:
        said = self.checkpoint.config.get(key)
        return self._text_of(self.checkpoint.generation.get(key) if said is None else said)

    def _text_of(self, token: Any) -> str:
        return (self.tokenizer.id_to_token(token) or "") if isinstance(token, int) else ""


def _corpus(text: str | Path | Corpus) -> Corpus:
    from penjing.data.text import Corpus, read_corpus

    return text if isinstance(text, Corpus) else read_corpus([Path(text)])
