"""What is compared: each way to answer the same rows on the same processors.

All of them have the model of random_phi3.py in int4 with blocks of 32, decode greedily, and get
token ids. Every class is made in a process of its own, so it imports what it needs by itself.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from random_phi3 import END_ID
from workloads import Row

from phi3_batch.engines import Engine
from phi3_batch.machine import processors
from phi3_batch.model_files import ModelFolder

if TYPE_CHECKING:
    from openvino_genai import ContinuousBatchingPipeline

THREADS = processors()
# openvino_genai's, raw: a cache that Q does not fill, and the rest as it is by default
CACHE_GB = 4
LLAMA_CPP_SLOTS = 32


class Contender(ABC):
    """One loaded model."""

    @abstractmethod
    def __init__(self, model: Path) -> None: ...

    @abstractmethod
    def answer(self, rows: Sequence[Row]) -> int:
        """Answer the rows; returns how many tokens were generated."""

    def cache_bytes(self) -> int:
        """Memory that the KV cache has taken, as far as the runtime tells."""
        return 0


class NaiveLoop(Contender):
    """onnxruntime-genai as its first example shows it: a Generator for each row, no settings."""

    def __init__(self, model: Path) -> None:
        import onnxruntime_genai as og

        self._og = og
        self._model = og.Model(str(model))

    def answer(self, rows: Sequence[Row]) -> int:
        """One row after another."""
        generated = 0
        for row in rows:
            params = self._og.GeneratorParams(self._model)
            length = len(row.prompt_ids) + row.max_tokens
            params.set_search_options(max_length=length, do_sample=False)
            generator = self._og.Generator(self._model, params)
            generator.append_tokens(np.array(row.prompt_ids, np.int32))
            while not generator.is_done():
                generator.generate_next_token()
            generated += len(generator.get_sequence(0)) - len(row.prompt_ids)
        return generated


class OurEngine(Contender):
    """An engine of the product, as logged models use it."""

    _engine: Engine

    def answer(self, rows: Sequence[Row]) -> int:
        """All rows in one call."""
        completions = self._engine.generate([row.request for row in rows])
        failed = [completion.error for completion in completions if completion.error]
        if failed:
            raise RuntimeError(f"{len(failed)} rows failed: {failed[0]}")
        return sum(completion.usage.completion_tokens for completion in completions)


class OurOnnxRuntime(OurEngine):
    """OnnxRuntimeGenAIEngine."""

    keep_prefix = True

    def __init__(self, model: Path) -> None:
        from phi3_batch.engines.onnxruntime.engine import OnnxRuntimeGenAIEngine

        folder = ModelFolder.open(model)
        self._engine = OnnxRuntimeGenAIEngine(folder, keep_prefix=self.keep_prefix)


class OurOnnxRuntimeFromScratch(OurOnnxRuntime):
    """The same, every prompt read from its beginning."""

    keep_prefix = False


class OurNative(OurEngine):
    """NativeEngine."""

    prefix_caching = True

    def __init__(self, model: Path) -> None:
        from native_model import native_cache_bytes, native_model

        from phi3_batch.engines.native.engine import NativeEngine

        folder = ModelFolder.open(model)
        self._engine = NativeEngine(
            folder, native_model(folder), prefix_caching=self.prefix_caching
        )
        self._cache_bytes = lambda: native_cache_bytes(self._engine, folder)

    def cache_bytes(self) -> int:
        """As its block tables tell after the rows."""
        return self._cache_bytes()


class OurNativeFromScratch(OurNative):
    """The same, every prompt read from its beginning."""

    prefix_caching = False


class LlamaCpp(Contender):
    """llama.cpp through llama-cpp-python, rows decoded together and replaced as they end."""

    def __init__(self, model: Path) -> None:
        import llama_cpp
        from llama_cpp_model import llama_cpp_model

        self._lib = llama_cpp
        llama_cpp.llama_backend_init()
        silent = llama_cpp.llama_log_callback(lambda level, text, data: None)
        llama_cpp.llama_log_set(silent, None)
        self._silent = silent  # C code has a pointer to it
        params = llama_cpp.llama_model_default_params()
        params.n_gpu_layers = 0
        # with them, its AMX code ends the process on some machines
        params.use_extra_bufts = False
        path = str(llama_cpp_model()).encode()
        self._model = llama_cpp.llama_model_load_from_file(path, params)
        self._vocabulary = llama_cpp.llama_vocab_n_tokens(
            llama_cpp.llama_model_get_vocab(self._model)
        )

    def answer(self, rows: Sequence[Row]) -> int:
        """As many rows at a time as there are slots; a prompt is read when a slot is free."""
        lib = self._lib
        lengths = sorted((len(row.prompt_ids) + row.max_tokens for row in rows), reverse=True)
        params = lib.llama_context_default_params()
        params.n_ctx = sum(lengths[:LLAMA_CPP_SLOTS])
        params.n_batch, params.n_ubatch = 2048, 512
        params.n_seq_max, params.kv_unified = LLAMA_CPP_SLOTS, True
        params.n_threads = params.n_threads_batch = THREADS
        self._context = lib.llama_init_from_model(self._model, params)
        waiting = list(rows)
        free = list(range(LLAMA_CPP_SLOTS))
        active: dict[int, tuple[Row, list[int]]] = {}
        generated = 0
        while waiting or active:
            while waiting and free:
                row = waiting.pop(0)
                slot = free.pop()
                last = len(row.prompt_ids) - 1
                prompt = [(t, i, slot, i == last) for i, t in enumerate(row.prompt_ids)]
                active[slot] = (row, self._decode(prompt))
            step = [
                (tokens[-1], len(row.prompt_ids) + len(tokens) - 1, slot, True)
                for slot, (row, tokens) in active.items()
                if len(tokens) < row.max_tokens
            ]
            following = dict(zip([item[2] for item in step], self._decode(step), strict=True))
            for slot, (row, tokens) in list(active.items()):
                if slot in following:
                    tokens.append(following[slot])
                if len(tokens) >= row.max_tokens:
                    generated += len(tokens)
                    memory = lib.llama_get_memory(self._context)
                    lib.llama_memory_seq_rm(memory, slot, -1, -1)
                    free.append(slot)
                    del active[slot]
        lib.llama_free(self._context)
        return generated

    def _decode(self, items: Sequence[tuple[int, int, int, bool]]) -> list[int]:
        """Run the model on (token, position, slot, whether a token follows); gives those tokens."""
        if not items:
            return []
        lib = self._lib
        batch = lib.llama_batch_init(len(items), 0, 1)
        batch.n_tokens = len(items)
        for i, (token, position, slot, wanted) in enumerate(items):
            batch.token[i], batch.pos[i], batch.logits[i] = token, position, wanted
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, slot
        failed = lib.llama_decode(self._context, batch)
        if failed:
            raise RuntimeError(f"llama_decode gives {failed}")
        following = []
        for i, (_, _, _, wanted) in enumerate(items):
            if wanted:
                logits = lib.llama_get_logits_ith(self._context, i)
                following.append(int(np.ctypeslib.as_array(logits, (self._vocabulary,)).argmax()))
        lib.llama_batch_free(batch)
        return following


class OurOpenVINO(OurEngine):
    """OpenVINOEngine."""

    def __init__(self, model: Path) -> None:
        from openvino_model import openvino_model

        from phi3_batch.engines.ov.engine import OpenVINOEngine
        from phi3_batch.engines.ov.int4 import instructions_for

        folder = ModelFolder.open(model)
        converted = openvino_model(folder, instructions_for(folder))
        self._engine = OpenVINOEngine(folder, converted)

    def cache_bytes(self) -> int:
        """As its pipeline tells after the rows."""
        return used_cache_bytes(self._engine._pipeline)


class RawOpenVINO(Contender):
    """openvino_genai by itself on the converted model, without our kernel: one call of generate."""

    def __init__(self, model: Path) -> None:
        from openvino_model import openvino_model

        from phi3_batch.engines.ov.runtime import openvino, openvino_genai

        self._tensor, self._config_type = openvino.Tensor, openvino_genai.GenerationConfig
        scheduling = openvino_genai.SchedulerConfig()
        scheduling.cache_size = CACHE_GB
        scheduling.enable_prefix_caching = True
        folder = openvino_model(ModelFolder.open(model))
        self._pipeline = openvino_genai.ContinuousBatchingPipeline(
            str(folder), scheduling, "CPU", {}, {}
        )

    def answer(self, rows: Sequence[Row]) -> int:
        """All rows in one call."""
        prompts = [self._tensor(np.array([row.prompt_ids], np.int64)) for row in rows]
        configs = []
        for row in rows:
            config = self._config_type()
            config.max_new_tokens = row.max_tokens
            config.set_eos_token_id(END_ID)  # it wants one
            config.ignore_eos = True
            config.do_sample = False
            configs.append(config)
        results = self._pipeline.generate(prompts, configs)
        return sum(len(result.m_generation_ids[0]) for result in results)

    def cache_bytes(self) -> int:
        """As the pipeline tells after the rows."""
        return used_cache_bytes(self._pipeline)


def used_cache_bytes(pipeline: "ContinuousBatchingPipeline") -> int:
    """The part of the cache that was ever used; the rest of it is not in memory."""
    metrics = pipeline.get_metrics()
    return int(metrics.kv_cache_size_in_bytes * metrics.max_cache_usage / 100)


CONTENDERS: dict[str, type[Contender]] = {
    "the naive loop": NaiveLoop,
    "our onnxruntime-genai": OurOnnxRuntime,
    "our onnxruntime-genai, prefix not kept": OurOnnxRuntimeFromScratch,
    "our native": OurNative,
    "our native, no prefix caching": OurNativeFromScratch,
    "our OpenVINO": OurOpenVINO,
    "openvino_genai, raw": RawOpenVINO,
    "llama.cpp Q4_0": LlamaCpp,
}
