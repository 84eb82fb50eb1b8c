"""A checkpoint as a transformers model in float32, and its logits in chunks.

Shapes: T tokens of a window, H hidden size, C positions of a chunk, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING
from transformers.utils import logging

from penjing.errors import PenjingError

if TYPE_CHECKING:
    from penjing.checkpoint import Checkpoint

#: logits held at a time: 64 MB
_CHUNK_LOGITS = 1 << 24
#: entries of a config that are no arguments of its class
_NOT_ARGUMENTS = ("model_type", "transformers_version", "torch_dtype", "dtype", "quantization_config")


def load(checkpoint: Checkpoint) -> Any:
    """The checkpoint as a `PreTrainedModel` in float32, ready to predict.

    Memory is that of its weights in float32: the arrays read are the parameters. Raises PenjingError where the
    checkpoint's tensors are not those that the config asks for.
    """
    kind, config = model_class(checkpoint)
    weights = {name: torch.from_numpy(checkpoint.read(name)) for name in checkpoint.tensors}
    with _quiet():  # what it has to say about the tensors is said below
        model, found = kind.from_pretrained(
            None,
            config=config,
            state_dict=weights,  # it knows names of older files and ties what is tied
            dtype=torch.float32,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    _check_loaded(found, checkpoint.name)
    return model.eval()


def model_class(checkpoint: Checkpoint) -> tuple[Any, Any]:
    """transformers' class for a checkpoint, and its config. Raises PenjingError where there is none."""
    arguments = {name: value for name, value in checkpoint.config.items() if name not in _NOT_ARGUMENTS}
    try:
        config = AutoConfig.for_model(checkpoint.config.get("model_type", ""), **arguments)
        return MODEL_FOR_CAUSAL_LM_MAPPING[type(config)], config
    except (ValueError, TypeError, KeyError) as error:
        raise PenjingError(
            f"transformers does not accept this config: {error}",
            where=checkpoint.name,
            attempt="another version of transformers, or check config.json",
        ) from error


def _check_loaded(found: dict[str, Any], where: str) -> None:
    """Every tensor of the model came from the checkpoint, and all of the checkpoint went into the model."""
    for kind in ("missing", "unexpected", "mismatched"):
        names = sorted(str(entry[0] if isinstance(entry, tuple) else entry) for entry in found[f"{kind}_keys"])
        if names:
            raise PenjingError(
                f"{len(names)} {kind} tensors: {', '.join(names[:3])}{', …' if len(names) > 3 else ''}",
                where=where,
                attempt="check that config.json belongs to these weights",
            )


@contextmanager
def _quiet() -> Iterator[None]:
    """transformers without its own progress bars and reports."""
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    logger = logging.get_logger("transformers")
    was_disabled, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = was_disabled
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


class TorchScorer:
    """Logits of a transformers model: the body runs once a window, the head on one chunk of positions at a time."""

    def __init__(self, model: Any, *, logit_scale: float = 1.0) -> None:
        """`logit_scale` is `Architecture.logit_scale`. Raises PenjingError for a model with a head that does more."""
        self._model = model
        self._head = model.get_output_embeddings()
        self._scale = logit_scale
        self._check_head()

    @property
    def vocab_size(self) -> int:
        return int(self._head.weight.shape[0])

    def logits(self, tokens_T: NDArray[np.int32]) -> Iterator[NDArray[np.float32]]:
        hidden_TH = self._hidden(tokens_T)
        chunk = max(1, _CHUNK_LOGITS // self.vocab_size)
        for start in range(0, len(hidden_TH), chunk):
            yield self._logits(hidden_TH[start : start + chunk]).numpy()

    def _hidden(self, tokens_T: NDArray[np.int32]) -> torch.Tensor:
        with torch.inference_mode():
            tokens_1T = torch.from_numpy(tokens_T.astype(np.int64))[None]
            hidden_TH: torch.Tensor = self._model.base_model(input_ids=tokens_1T, use_cache=False).last_hidden_state[0]
            return hidden_TH

    def _logits(self, hidden_CH: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode():
            logit_CV: torch.Tensor = self._head(hidden_CH)
            return logit_CV.mul_(self._scale) if self._scale != 1.0 else logit_CV

    def _check_head(self) -> None:
        """The head and the scale must give the model's own logits."""
        tokens_T = np.arange(min(8, self.vocab_size), dtype=np.int32)
        found_TV = self._logits(self._hidden(tokens_T))
        with torch.inference_mode():
            wanted_TV = self._model(torch.from_numpy(tokens_T.astype(np.int64))[None], use_cache=False).logits[0]
        # both are the same products of hidden_size terms, summed in an order that may depend on the shape
        epsilon = torch.finfo(torch.float32).eps * self._head.weight.shape[1]
        if not torch.allclose(
            found_TV, wanted_TV, rtol=epsilon, atol=epsilon * float(wanted_TV.abs().max()), equal_nan=True
        ):
            raise PenjingError(
                "this model changes its logits after the head in a way that penjing does not know",
                where=type(self._model).__name__,
                attempt="a family that `penjing list` names",
            )


def scorer(checkpoint: Checkpoint) -> TorchScorer:
    """A checkpoint of any kind, its weights as float32, evaluated by transformers."""
    return TorchScorer(load(checkpoint), logit_scale=checkpoint.architecture.logit_scale)
