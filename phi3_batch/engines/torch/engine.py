"""The engine for checkpoints as they are: torch and transformers, several requests at a time.

A step of the model reads all of its weights, and that is what a step costs: so requests are
decoded in batches, and each step serves all of them. Choosing tokens is ours, as in the other
engines: the rows of a batch may have parameters of their own, and leave it when they are done.
"""

import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import transformers
from numpy.typing import NDArray

from phi3_batch.engines.base import Engine, Question
from phi3_batch.engines.chooser import TokenChooser, TokenRules
from phi3_batch.engines.threads import thread_count
from phi3_batch.engines.time_limit import time_limit
from phi3_batch.engines.torch.batch_size import BATCH_ROWS, BATCH_TOKENS
from phi3_batch.errors import EngineError, RowErrorCode
from phi3_batch.generation import Completion, Request
from phi3_batch.model_files.checkpoint import Checkpoint
from phi3_batch.words import first_line

# Whatever the weights are stored as. In bfloat16 a row's logits depend on who shares its batch: 7
# of 16 greedy answers came out other than alone (4 random layers of Phi-3-mini's size), in float32
# none. With AMX bfloat16 would read prompts 6 times as fast; but processors without instructions
# of its own take 7 times as long in it, and 18 times in float16.
_DTYPE = torch.float32


class TransformersEngine(Engine):
    """Runs a Phi-3 checkpoint with transformers, on the CPU and in float32.

    Args:
        checkpoint: the model.
        threads: of torch, for the whole process; defaults to
            :func:`~phi3_batch.engines.threads.thread_count`.
        batch_rows: the most requests to decode together.

    Raises:
        EngineError: transformers cannot load the model.
    """

    def __init__(
        self, checkpoint: Checkpoint, *, threads: int | None = None, batch_rows: int = BATCH_ROWS
    ) -> None:
        self.name = f"transformers {transformers.__version__}"
        self.tokenizer = checkpoint.tokenizer
        self.limits = checkpoint.limits
        self._rules = TokenRules(self.tokenizer, self.limits, frozenset(checkpoint.end_token_ids))
        self._batch_rows = batch_rows
        # two threads of a serving process would want the memory of two batches
        self._lock = threading.Lock()
        torch.set_num_threads(threads or thread_count())
        try:
            self._model = load_model(checkpoint)
        except Exception as error:  # of transformers, safetensors, torch or the file system
            raise EngineError(
                f"{self.name} cannot load {checkpoint.path}: {first_line(error)}"
            ) from error

    def generate(self, requests: Sequence[Request]) -> list[Completion]:
        """Answer requests in batches of similar length."""
        completions = [self.limits.find_request_error(request) for request in requests]
        sound = [i for i, refused in enumerate(completions) if refused is None]
        with self._lock, torch.inference_mode():
            for batch in self._make_batches(requests, sound):
                answers = self._answer([requests[index] for index in batch])
                for index, answer in zip(batch, answers, strict=True):
                    completions[index] = answer
        return [completion for completion in completions if completion is not None]

    def score(self, questions: Sequence[Question]) -> list[list[list[float]] | None]:
        """How likely continuations are; a prompt is read for each of its own."""
        return [self._score_alone(question) for question in questions]

    def _score_alone(self, question: Question) -> list[list[float]] | None:
        try:
            return [self._score(question.prompt_ids, tokens) for tokens in question.continuations]
        except Exception:  # whatever torch raises must cost this question alone
            return None

    def _score(self, prompt_ids: tuple[int, ...], tokens: tuple[int, ...]) -> list[float]:
        with self._lock, torch.inference_mode(), time_limit([Request(prompt_ids)], self.limits):
            output = self._model(
                input_ids=torch.tensor([[*prompt_ids, *tokens]]),
                use_cache=False,
                logits_to_keep=len(tokens) + 1,
            )
        return self._rules.score(tokens, output.logits[0].numpy())

    def read_logits(self, token_ids: Sequence[int]) -> NDArray[np.float32]:
        """What a text makes of each next token; shape ``(tokens, vocabulary)``."""
        with self._lock, torch.inference_mode():
            output = self._model(input_ids=torch.tensor([[*token_ids]]), use_cache=False)
        logits: NDArray[np.float32] = output.logits[0].numpy()
        return logits

    def _make_batches(
        self, requests: Sequence[Request], indexes: Iterable[int]
    ) -> Iterator[list[int]]:
        """Part requests, by their indexes, into batches that need little padding."""
        sizes = {
            i: (len(requests[i].prompt_ids), self.limits.max_new_tokens(requests[i]))
            for i in indexes
        }
        batch: list[int] = []
        for index in sorted(sizes, key=sizes.__getitem__):
            prompt, _ = sizes[index]  # the longest so far: they are sorted
            rows = [*batch, index]
            tokens = len(rows) * (prompt + max(sizes[i][1] for i in rows))
            if batch and (len(rows) > self._batch_rows or tokens > BATCH_TOKENS):
                yield batch
                rows = [index]
            batch = rows
        if batch:
            yield batch

    def _answer(self, requests: list[Request]) -> list[Completion]:
        try:
            return self._decode(requests)
        except Exception as error:  # whatever torch raises must cost one request alone
            if len(requests) == 1:
                message = f"{self.name}: {first_line(error)}"
                length = len(requests[0].prompt_ids)
                return [Completion.failed(RowErrorCode.ENGINE_ERROR, message, length)]
        # after the handler: in it, the error would still hold the memory of the failed batch
        return [self._answer([request])[0] for request in requests]

    def _decode(self, requests: list[Request]) -> list[Completion]:
        rows = [_Row(self._rules.chooser(request)) for request in requests]
        begun = [row.chooser.begin() for row in rows]
        going = [row for row, begin in zip(rows, begun, strict=True) if begin is not None]
        prompts = [
            (*request.prompt_ids, *begin)
            for request, begin in zip(requests, begun, strict=True)
            if begin is not None
        ]
        cache = transformers.DynamicCache(config=self._model.config)
        ids, mask = _pad_left(prompts or [()])
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        while going:
            # anew for each token: answers that grow do not hang, however slow the machine
            with time_limit(requests, self.limits):
                output = self._model(
                    input_ids=ids,
                    attention_mask=mask,
                    position_ids=positions,
                    past_key_values=cache,
                    use_cache=True,
                    logits_to_keep=1,
                )
                logits = output.logits[:, -1].numpy()
                tokens = [row.next_token(of_row) for row, of_row in zip(going, logits, strict=True)]
            kept = [i for i, token in enumerate(tokens) if token is not None]
            if 0 < len(kept) < len(going):
                mask, positions = mask[kept], positions[kept]
                cache.batch_select_indices(torch.tensor(kept))
            going = [going[i] for i in kept]
            ids = torch.tensor([[tokens[i]] for i in kept])
            if kept:
                mask = torch.cat([mask, mask.new_ones(len(kept), 1)], dim=1)
                positions = positions[:, -1:] + 1
        return [row.chooser.completion() for row in rows]


class _Row:
    """A request while it is answered; the model reads its tokens one by one."""

    def __init__(self, chooser: TokenChooser) -> None:
        self.chooser = chooser
        self._unread: list[int] = []

    def next_token(self, logits: NDArray[np.float32]) -> int | None:
        """The token that the model reads next; None when the completion is over.

        Args:
            logits: of the token behind the last one that it has read.
        """
        if not self._unread:
            chosen = self.chooser.take(logits)
            if chosen is None:
                return None
            self._unread = chosen
        return self._unread.pop(0)


def _pad_left(prompts: Sequence[tuple[int, ...]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and mask, both of shape ``(rows, longest prompt)``; the mask is 0 where there is none."""
    width = max(len(prompt) for prompt in prompts)
    ids = torch.tensor([[0] * (width - len(prompt)) + [*prompt] for prompt in prompts])
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    return ids, mask


def load_model(checkpoint: Checkpoint, dtype: Any = _DTYPE) -> Any:
    """The model in transformers, without a weight that is not the checkpoint's.

    Args:
        checkpoint: the weights.
        dtype: to load them in; "auto" for their own.

    Raises:
        EngineError: weights are missing.
    """
    loader: Any = transformers.Phi3ForCausalLM  # its types know of one result only
    with quiet_transformers():
        model, info = loader.from_pretrained(
            checkpoint.path,
            dtype=dtype,
            local_files_only=True,
            use_safetensors=True,  # the other format can run code
            output_loading_info=True,
        )
    if missing := sorted(info["missing_keys"]):  # transformers makes random weights of them
        raise EngineError(f"the weights lack {missing[0]} and {len(missing) - 1} more")
    return model.eval()


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Keep progress bars and advice off the standard error; only as long as a model loads."""
    logging: Any = transformers.utils.logging
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
