"""The reference engine: onnxruntime-genai, one request at a time.

The runtime is used for what it is good at, running the model over a growing KV cache. Choosing
tokens is ours: one generator then serves requests of any parameters, and keeps the KV cache of
the last prompt for the next one. Rows that share a system prompt pay for it once.
"""

import json
import threading
from collections.abc import Sequence

import numpy as np
import onnxruntime_genai as og
from numpy.typing import NDArray

from phi3_batch.engines.base import Engine, Question
from phi3_batch.engines.chooser import TokenRules
from phi3_batch.engines.onnxruntime.kv_capacity import SMALLEST_CAPACITY, cache_capacity
from phi3_batch.engines.order import by_prefix, common_prefix_length
from phi3_batch.engines.threads import thread_count
from phi3_batch.engines.time_limit import time_limit
from phi3_batch.errors import EngineError, RowErrorCode
from phi3_batch.generation import Completion, Request
from phi3_batch.model_files.longrope import find_switch
from phi3_batch.model_files.onnx_build import ModelFolder
from phi3_batch.words import first_line

og.disable_telemetry_events()  # prompts are people's data: nothing leaves the machine


class OnnxRuntimeGenAIEngine(Engine):
    """Runs the int4 ONNX build of a Phi-3 model with onnxruntime-genai.

    A text that passes a LongRoPE model's switch is read a second time there, whole: the keys in its
    KV cache are rotated by the factors of short texts, and the model goes on with those of long
    ones. (onnxruntime-genai itself does so in ``generate_next_token``, at 4,097 tokens whatever
    the model says; Phi3ForCausalLM of transformers does too.)

    Args:
        folder: the model.
        threads: defaults to :func:`~phi3_batch.engines.threads.thread_count`. The runtime's own
            default is slower.
        keep_prefix: whether the KV cache of a shared prefix is kept from one request to the next;
            off, every request starts from nothing (to measure what it is worth).

    Raises:
        EngineError: the runtime cannot load the model.
    """

    def __init__(
        self, folder: ModelFolder, *, threads: int | None = None, keep_prefix: bool = True
    ) -> None:
        self.name = f"onnxruntime-genai {og.__version__}"
        self.tokenizer = folder.tokenizer
        self.limits = folder.limits
        self._rules = TokenRules(self.tokenizer, self.limits, frozenset(folder.end_token_ids))
        self._switch = find_switch(folder.graph)
        self._keep_prefix = keep_prefix
        # two threads of a serving process must not write into one KV cache
        self._lock = threading.Lock()
        try:
            config = og.Config(str(folder.path))
            config.overlay(json.dumps(_overlay(folder, threads or thread_count())))
            self._model = og.Model(config)
        except Exception as error:  # the runtime raises RuntimeError and bare Exception
            raise EngineError(f"{self.name} cannot load {folder.path}: {error}") from error
        self._generator: og.Generator | None = None
        self._kept_ids: tuple[int, ...] = ()  # whose KV cache the generator holds
        self._kept_long = False  # whether their keys are those of a text beyond the switch
        self._capacity = SMALLEST_CAPACITY

    def generate(self, requests: Sequence[Request]) -> list[Completion]:
        """Answer requests one after another, those with equal beginnings next to each other.

        Those beyond a LongRoPE model's switch come last, for they share nothing with the others.
        """
        completions: list[Completion | None] = [None] * len(requests)
        order = sorted(by_prefix(requests), key=lambda index: self._length_class(requests[index]))
        with self._lock:
            for index in order:
                completions[index] = self._answer(requests[index])
        return [completion for completion in completions if completion is not None]

    def score(self, questions: Sequence[Question]) -> list[list[list[float]] | None]:
        """How likely continuations are; each prompt is read once for all of its own."""
        with self._lock:
            return [self._score_alone(question) for question in questions]

    def _score_alone(self, question: Question) -> list[list[float]] | None:
        try:
            return self._score(question)
        except Exception:  # whatever the runtime raises must cost this question alone
            self._forget()
            return None

    def _score(self, question: Question) -> list[list[float]]:
        prompt_ids = question.prompt_ids
        longest = max(map(len, question.continuations))
        with time_limit([Request(prompt_ids)], self.limits):
            generator = self._prefill(prompt_ids, longest)
        begin = generator.get_logits()[0, -1:]
        scores = []
        for tokens in question.continuations:
            with time_limit([Request(prompt_ids)], self.limits):
                self._append(generator, tokens)
                logits = generator.get_output("logits")[0]
                if len(logits) == len(tokens):  # else the text was read anew, beyond the switch
                    logits = np.concatenate([begin, logits])
                scores.append(self._rules.score(tokens, logits[-len(tokens) - 1 :]))
                if self._kept_long != self._is_long(len(prompt_ids)):
                    generator = self._prefill(prompt_ids, longest)
                else:
                    generator.rewind_to(len(prompt_ids))
        return scores

    def read_logits(self, token_ids: Sequence[int]) -> NDArray[np.float32]:
        """What a text makes of each next token; shape ``(tokens, vocabulary)``."""
        with self._lock:
            self._forget()
            generator = self._prefill(tuple(token_ids), max_tokens=0)
            logits: NDArray[np.float32] = generator.get_output("logits")[0]
            self._forget()
        return logits

    def _answer(self, request: Request) -> Completion:
        if refused := self.limits.find_request_error(request):
            return refused
        try:
            return self._decode(request)
        except Exception as error:  # whatever the runtime raises must cost this request alone
            self._forget()
            return Completion.failed(
                RowErrorCode.ENGINE_ERROR,
                f"{self.name}: {first_line(error)}",
                prompt_tokens=len(request.prompt_ids),
            )

    def _decode(self, request: Request) -> Completion:
        chooser = self._rules.chooser(request)
        unread = chooser.begin()
        with time_limit([request], self.limits):
            generator = self._prefill(request.prompt_ids, self.limits.max_new_tokens(request))
        while unread is not None:
            # anew for each token: an answer that grows does not hang, however slow the machine
            with time_limit([request], self.limits):
                if unread:
                    self._append(generator, unread)
                unread = chooser.take(generator.get_logits()[0, -1])
        return chooser.completion()

    def _append(self, generator: og.Generator, tokens: Sequence[int]) -> None:
        """Let the model read tokens; all of the text where it passes the switch with them."""
        before = generator.token_count()
        if self._is_long(before + len(tokens)) and not self._kept_long:
            tokens = [*generator.get_sequence(0), *tokens]
            generator.rewind_to(0)
            self._kept_long = True
        generator.append_tokens(np.array(tokens, dtype=np.int32))

    def _prefill(self, prompt_ids: tuple[int, ...], max_tokens: int) -> og.Generator:
        """A generator that has read the prompt, from where it differs from the last one on."""
        needed = len(prompt_ids) + max_tokens
        is_long = self._is_long(len(prompt_ids))
        if self._generator is None or needed > self._capacity:
            self._forget()
            self._capacity = cache_capacity(needed, self.limits.context_length)
            params = og.GeneratorParams(self._model)
            params.set_search_options(max_length=self._capacity)
            self._generator = og.Generator(self._model, params)
        else:
            # The last token is always read again: its logits are where the answer begins. And the
            # one before it too, for the runtime reads a single token in another way, and the
            # logits differ a little: a text must not depend on what was read before.
            kept = common_prefix_length(self._kept_ids, prompt_ids[:-2])
            usable = self._keep_prefix and self._kept_long == is_long
            self._kept_ids = prompt_ids[: kept if usable else 0]
            self._generator.rewind_to(len(self._kept_ids))
        unread = prompt_ids[len(self._kept_ids) :]
        self._generator.append_tokens(np.array(unread, dtype=np.int32))
        self._kept_ids, self._kept_long = prompt_ids, is_long
        return self._generator

    def _is_long(self, tokens: int) -> bool:
        """Whether a text of so many tokens is beyond the switch."""
        return self._switch is not None and tokens > self._switch

    def _length_class(self, request: Request) -> int:
        """0 for a text that stays short, 1 for one that may become long, 2 for a long prompt."""
        length = len(request.prompt_ids)
        # what is read: the last token of an answer is not
        most = length + self.limits.max_new_tokens(request) - 1
        return self._is_long(length) + self._is_long(most)

    def _forget(self) -> None:
        """Drop the generator and its KV cache."""
        self._generator = None
        self._kept_ids = ()
        self._capacity = SMALLEST_CAPACITY


def _overlay(folder: ModelFolder, threads: int) -> dict[str, object]:
    """What the engine sets in genai_config.json without touching the file."""
    decoder: dict[str, object] = {"session_options": {"intra_op_num_threads": threads}}
    if folder.sliding_window:
        # Builds of Phi-3-mini by today's builder name a sliding window, and the runtime then sizes
        # the KV cache by it; but their graph attends to everything (local_window_size -1), and
        # the first request past the window fails. Slack of a whole context makes room for it.
        decoder["sliding_window"] = {**folder.sliding_window, "cache_slack": folder.context_length}
    return {"model": {"decoder": decoder}}
