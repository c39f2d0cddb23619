"""One request in OpenVINO GenAI: its parameters as the runtime knows them, and what it makes."""

import itertools
from collections.abc import Collection

import numpy as np

from phi3_batch.engines.base import CompletionBuilder
from phi3_batch.engines.ov.runtime import (
    ContinuousBatchingPipeline,
    GenerationConfig,
    GenerationHandle,
    openvino,
    openvino_genai,
)
from phi3_batch.errors import RowErrorCode
from phi3_batch.generation import Completion, GenerationParams, Request

# the version without its build number
NAME = f"openvino-genai {openvino_genai.__version__.partition('-')[0]}"

_request_ids = itertools.count()
_RUNNING = openvino_genai.GenerationStatus.RUNNING

# Of each row in the runtime. After one, a prompt's keys and values would stay in a block that
# holds nothing else and is not full. An equal prompt would find it and read its last token alone,
# which the runtime does in another way, and logits differ a little.
FEWEST_TOKENS = 2

CACHE_TOO_SMALL = "there is no memory for the keys and values of so many tokens"

# The runtime computes in float32, where a smaller temperature makes infinities of logits.
_SMALLEST_TEMPERATURE = 1e-4
_LARGEST_TEMPERATURE = 1e6
_SMALLEST_TOP_P = 1e-6
_LARGEST_TOP_K = 2**31


class RunningSequence:
    """A request while the runtime answers it.

    Args:
        pipeline: the runtime.
        request: what is to be answered.
        builder: makes the completion of its tokens.
        max_tokens: the most tokens to generate.
        blocks: of the KV cache that are kept for it.
        prefill_tokens: of the prompt, those that are in no other one which has been read.
        prefills_twice: whether the prompt is read for the cache first. Its last token is read alone
            then, as it is when others have left all before it in the cache, for that is computed
            in another way.

    Attributes:
        request: what is answered.
        tokens: how many have been generated.
        completion: the answer, once it is known.
        is_running: whether the next step works on it.
        is_gone: whether the runtime has let go of the request and of its place in the cache.

    Raises:
        RuntimeError: the runtime refuses the request.
    """

    def __init__(
        self,
        pipeline: ContinuousBatchingPipeline,
        request: Request,
        builder: CompletionBuilder,
        max_tokens: int,
        blocks: int,
        *,
        prefill_tokens: int,
        prefills_twice: bool,
    ) -> None:
        self._pipeline = pipeline
        self._max_tokens = max_tokens
        self.request = request
        self._prefill_tokens = prefill_tokens
        self._is_first_prefill = prefills_twice
        params = GenerationParams() if prefills_twice else request.params
        self._handle = self._ask(params, 1 if prefills_twice else max_tokens)
        self._builder = builder
        self.blocks = blocks
        self.tokens = 0
        self.completion: Completion | None = None
        self.is_running = True
        self.is_gone = False

    def _ask(self, params: GenerationParams, max_tokens: int) -> GenerationHandle:
        config = generation_config(params, max_tokens)
        return add_request(self._pipeline, self.request.prompt_ids, config)

    def take(self, room: int) -> int:
        """Have so many tokens of the prompt read in the next step, or as many as there are."""
        taken = max(0, min(room, self._prefill_tokens))
        self._prefill_tokens -= taken
        return taken

    @property
    def prefilled_tokens(self) -> int:
        """How many tokens of the prompt have been read at the end of the next step."""
        return len(self.request.prompt_ids) - self._prefill_tokens

    def read(self) -> None:
        """Take what the last step has made of it.

        Raises:
            RuntimeError: the runtime refuses the request.
        """
        if not self.is_running:
            self.is_gone = True  # it was called off before the step
            return
        if self._is_first_prefill:
            if self._handle.get_status() != _RUNNING:
                self._is_first_prefill = False
                self._handle = self._ask(self.request.params, self._max_tokens)
            return
        try:
            self._take_tokens()
        except Exception as error:  # tokens that cannot be decoded are this row's misfortune
            self.completion = failed(self.request, reason(error))
        if self._handle.get_status() != _RUNNING:
            self.is_running, self.is_gone = False, True
            self.completion = self.completion or failed(self.request, CACHE_TOO_SMALL)
        elif self.completion is not None and self.tokens >= FEWEST_TOKENS:
            self._handle.cancel()
            self.is_running = False

    def _take_tokens(self) -> None:
        while self._handle.can_read():
            for output in self._handle.read().values():
                for token_id in output.generated_ids:
                    self.tokens += 1
                    if self.completion is None and not self._builder.add(token_id):
                        self.completion = self._builder.build()


class FillerRequests:
    """Requests of nobody's, so that a sequence is never alone.

    With less than 5 rows in a step the runtime multiplies bfloat16 matrices in another way, and
    logits differ a little. With 5 and more they are the same bit by bit, whoever else is there.
    That a greedy answer changes is rare; sampled ones do, and have seeds so that they do not.

    Args:
        pipeline: the runtime.
    """

    SEQUENCES = 5
    TOKENS = 30  # of each, prompt and completion: it ends, and another takes its place

    def __init__(self, pipeline: ContinuousBatchingPipeline) -> None:
        self._pipeline = pipeline
        self._config = generation_config(GenerationParams(), self.TOKENS - 1)
        self._handles: list[GenerationHandle] = []

    @property
    def count(self) -> int:
        """How many there are."""
        return len(self._handles)

    def join(self, rows: Collection[RunningSequence]) -> None:
        """Be as many in the next step as it needs."""
        going = [row for row in rows if row.is_running]
        sampled = any(not row.request.params.greedy for row in going)
        count = max(0, self.SEQUENCES - len(going)) if sampled else 0
        self._handles = [handle for handle in self._handles if handle.get_status() == _RUNNING]
        while len(self._handles) > count:
            self._handles.pop().cancel()
        while len(self._handles) < count:
            self._handles.append(add_request(self._pipeline, (0,), self._config))

    def leave(self) -> None:
        """Go from the runtime, which no row is in any more."""
        self.join(())
        while self._pipeline.has_non_finished_requests():
            self._pipeline.step()


def add_request(
    pipeline: ContinuousBatchingPipeline, prompt_ids: tuple[int, ...], config: GenerationConfig
) -> GenerationHandle:
    """Put a request into the runtime.

    Raises:
        RuntimeError: the runtime refuses it.
    """
    ids = openvino.Tensor(np.array([prompt_ids], dtype=np.int64))
    return pipeline.add_request(next(_request_ids), ids, config)


def generation_config(params: GenerationParams, max_tokens: int) -> GenerationConfig:
    """The runtime's form of parameters, with nothing of its defaults in it.

    End tokens and stop strings are not in it: a row is called off when it is over.

    Args:
        params: how a completion is to be generated.
        max_tokens: the most tokens to generate.
    """
    config = GenerationConfig()
    config.max_new_tokens = max(max_tokens, FEWEST_TOKENS)
    config.ignore_eos = True
    config.eos_token_id = 0  # of no meaning then, but the runtime insists on one
    config.stop_token_ids = {0}
    config.do_sample = params.temperature >= _SMALLEST_TEMPERATURE
    if config.do_sample:
        config.temperature = min(params.temperature, _LARGEST_TEMPERATURE)
        config.top_p = max(params.top_p, _SMALLEST_TOP_P)
        if params.top_k:
            config.top_k = min(params.top_k, _LARGEST_TOP_K)
        # the runtime takes 32 bits, and this makes such of a seed of any size
        config.rng_seed = int(np.random.SeedSequence(params.seed).generate_state(1)[0])
    return config


def failed(request: Request, message: str) -> Completion:
    """The completion of a sound request on which the runtime has failed."""
    return Completion.failed(
        RowErrorCode.ENGINE_ERROR, f"{NAME}: {message}", prompt_tokens=len(request.prompt_ids)
    )


def reason(error: Exception) -> str:
    """What the runtime says of a failure, in one short line.

    Its messages begin with the places in its own source, and end with what is wrong.
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:200] if lines else type(error).__name__
