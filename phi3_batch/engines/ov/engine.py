"""The fast engine: OpenVINO GenAI, many requests at a time.

A step of the model reads all of its weights, and that is what a step costs: so the runtime serves
as many requests in each as its KV cache holds, and when one ends the next begins. The runtime
chooses the tokens. What they make, and when that is over, is decided where it is for every
engine: a completion has the same fields whoever generated it.
"""

import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from phi3_batch.engines.base import Engine
from phi3_batch.engines.kv_budget import blocks_for, cache_blocks, claim_blocks
from phi3_batch.engines.ov.batch import SEQUENCES, STEP_TOKENS, Batch
from phi3_batch.engines.ov.int4 import (
    EXTENSION,
    instructions_for,
    kept_layers,
    use_threads,
)
from phi3_batch.engines.ov.runtime import ContinuousBatchingPipeline, openvino, openvino_genai
from phi3_batch.engines.ov.sequence import (
    NAME,
    FillerRequests,
    add_request,
    failed,
    generation_config,
    reason,
)
from phi3_batch.engines.threads import thread_count
from phi3_batch.errors import EngineError
from phi3_batch.generation import Completion, GenerationParams, Request
from phi3_batch.model_files.onnx_build import ModelFolder

MODEL_XML = "openvino_model.xml"
MODEL_BIN = "openvino_model.bin"


def write_model(model: openvino.Model, folder: ModelFolder, target: Path) -> None:
    """Write a converted model as the engine reads it.

    That is the graph and its weights, nothing else: without a tokenizer the runtime takes no
    text, and without a generation_config.json no defaults of a model are in the way.

    Args:
        model: what ``folder`` was converted to.
        folder: the model.
        target: an empty folder.

    Raises:
        OSError: the disk is full or read-only.
    """
    try:
        # not save_model, which copies the model, and our layers with it
        openvino.serialize(model, target / MODEL_XML, target / MODEL_BIN)
    except RuntimeError as error:
        raise OSError(f"{folder.path} cannot be written to {target}: {reason(error)}") from error


def kv_cache_precision() -> openvino.Type:
    """In what keys and values are kept on this machine: 16 bits.

    They are kept as they are computed where that is bfloat16, and else in float16: that halves
    the cache, for the same work, and logits hardly change (docs/benchmarks.md). In 8 bits, the
    runtime's default, a prompt's logits would depend on what of it was in the cache.
    """
    computed = openvino.Core().get_property("CPU", "INFERENCE_PRECISION_HINT")
    return openvino.Type.f16 if computed == openvino.Type.f32 else computed


class OpenVINOEngine(Engine):
    """Runs the int4 build of a Phi-3 model with OpenVINO GenAI.

    A sampled completion is the same bit by bit, whatever else is in the batch, unless more than 128
    tokens of its prompt are new: these are read in parts, as steps have room for them. A greedy one
    and such a one may differ where two tokens are as good as equally likely, on processors that
    compute in bfloat16: it attends in another way to what is read together, and OpenVINO's own
    layers multiply in another way while fewer than five requests are left.

    Args:
        folder: the model.
        model_path: the folder in which :func:`write_model` has put it.
        threads: defaults to :func:`~phi3_batch.engines.threads.thread_count`.
        prefix_caching: whether an equal beginning of prompts is read once; off, every prompt is
            read whole (to measure what it is worth).
        memory_bytes: of the KV cache, if it is not to be found out.

    Raises:
        EngineError: the runtime cannot load the model.
    """

    chooses_tokens = False  # the runtime does

    def __init__(
        self,
        folder: ModelFolder,
        model_path: Path,
        *,
        threads: int | None = None,
        prefix_caching: bool = True,
        memory_bytes: int | None = None,
    ) -> None:
        by_our_kernel = instructions_for(folder) is not None
        self.name = f"{NAME} + int4 kernel" if by_our_kernel else NAME
        self.tokenizer = folder.tokenizer
        self.limits = folder.limits
        self._end_token_ids = frozenset(folder.end_token_ids)
        self._model_path = model_path
        threads = threads or thread_count()
        use_threads(threads)
        self._properties: dict[str, object] = {
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": 1,
            "extensions": [EXTENSION],
        }
        self._prefix_caching = prefix_caching
        precision = kv_cache_precision()
        self._properties["KV_CACHE_PRECISION"] = precision
        if memory_bytes is None:
            # OpenVINO's own layers multiply another form of weights than the file has
            copies = 1 if by_our_kernel else 2
            self._blocks = claim_blocks(folder, precision.size, weight_copies=copies)
        else:
            self._blocks = cache_blocks(folder, precision.size, memory_bytes)
        # two threads of a serving process would take each other's steps
        self._lock = threading.Lock()
        self._pipeline: ContinuousBatchingPipeline | None = self._load()

    def generate(self, requests: Sequence[Request]) -> list[Completion]:
        """Answer requests together, as many at a time as the KV cache holds to their ends."""
        completions = [self.limits.find_request_error(request) for request in requests]
        sound = [i for i, refused in enumerate(completions) if refused is None]
        with self._lock:
            answers = self._answer([requests[index] for index in sound])
        for index, answer in zip(sound, answers, strict=True):
            completions[index] = answer
        return [completion for completion in completions if completion is not None]

    def _load(self) -> ContinuousBatchingPipeline:
        scheduling = openvino_genai.SchedulerConfig()
        # twice the companions: those that are called off are there for a step more
        scheduling.num_kv_blocks = self._blocks + 2 * FillerRequests.SEQUENCES * blocks_for(
            FillerRequests.TOKENS
        )
        scheduling.max_num_batched_tokens = STEP_TOKENS
        scheduling.max_num_seqs = SEQUENCES
        scheduling.enable_prefix_caching = self._prefix_caching
        try:
            with kept_layers() as self._layers:
                pipeline = ContinuousBatchingPipeline(
                    self._model_path, scheduling, "CPU", self._properties
                )
            self._check_logits(pipeline)
        except Exception as error:
            raise EngineError(f"{NAME} cannot load {self._model_path}: {reason(error)}") from error
        return pipeline

    def _check_logits(self, pipeline: ContinuousBatchingPipeline) -> None:
        """Generate a token: of logits that are no numbers the runtime makes token 0, each time."""
        config = generation_config(GenerationParams(), 1)
        config.logprobs = 1
        handle = add_request(pipeline, (0,) * FillerRequests.SEQUENCES, config)
        while pipeline.has_non_finished_requests():
            pipeline.step()
        [output] = handle.read_all()
        if not np.isfinite(output.generated_log_probs).all():
            raise ValueError("the model's logits are not finite numbers")

    def _answer(self, requests: Sequence[Request]) -> list[Completion]:
        """Answer sound requests; what a failed step leaves of them is tried again in halves."""
        # It is put back if all went well: else its cache may hold what was never computed, and
        # the next requests would build on that.
        pipeline, self._pipeline = self._pipeline or self._load(), None
        batch = Batch(
            pipeline,
            requests,
            limits=self.limits,
            tokenizer=self.tokenizer,
            end_token_ids=self._end_token_ids,
            blocks=self._blocks,
            prefix_caching=self._prefix_caching,
        )
        completions = batch.completions
        try:
            batch.run()
            self._pipeline = pipeline
        except Exception as error:  # whatever the runtime raises must cost one request alone
            failure = reason(error)
        del pipeline, batch  # the memory, before another is loaded
        left = [i for i, completion in enumerate(completions) if completion is None]
        if len(left) == 1:
            completions[left[0]] = failed(requests[left[0]], failure)
        elif left:
            middle = len(left) // 2
            for half in (left[:middle], left[middle:]):
                answers = self._answer([requests[index] for index in half])
                for index, answer in zip(half, answers, strict=True):
                    completions[index] = answer
        return [completion for completion in completions if completion is not None]
