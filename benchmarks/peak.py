"""What this machine's processors can do at most: large matrix products, through OpenVINO.

    python benchmarks/peak.py

Where there is AMX, also what its instruction for bfloat16 does by itself, of what is in its
registers, which no product can reach: it would have nothing to load and nothing to store.
"""

import json
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from contenders import THREADS
from llvmlite import ir

from phi3_batch.engines.ov.amx_tiles import (
    TILE_BYTES,
    every_tile_whole,
    load_tile,
    tile_op,
)
from phi3_batch.engines.ov.int4_kernel import AMX, fastest_here
from phi3_batch.engines.ov.llvm_ir import Code, at, function, i64, loop
from phi3_batch.engines.ov.runtime import openvino

# as many tokens at once as a large prefill, through linear layers like Phi-3-mini's gate-up
TOKENS, WIDTH, PRODUCTS = 512, 4096, 2
SECONDS = 6.0
PRECISIONS = ("f32", "bf16", "int8")


def product_chain(int8: bool) -> openvino.Model:
    """A model of matrix products one after another, with weights that are constants."""
    ops = openvino.opset13
    draw = np.random.default_rng(0)
    x = given = ops.parameter([TOKENS, WIDTH], np.float32)

    def constant(value: float) -> openvino.Node:
        return ops.constant(np.float32(value))

    for _ in range(PRODUCTS):
        if int8:
            whole = ops.constant(draw.integers(-127, 128, (WIDTH, WIDTH)).astype(np.int8))
            weights = ops.multiply(ops.convert(whole, "f32"), constant(1 / 4096))
            x = ops.fake_quantize(
                x, constant(-4), constant(4), constant(-4), constant(4), levels=256
            )
        else:
            weights = ops.constant(draw.normal(0, WIDTH**-0.5, (WIDTH, WIDTH)).astype(np.float32))
        x = ops.matmul(x, weights, False, True)
    return openvino.Model([x], [given], "products")


def gmacs(precision: str) -> float:
    """Billions of multiplications and additions a second, the best of many short runs."""
    hint = "bf16" if precision == "bf16" else "f32"
    settings = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": hint}
    compiled = openvino.Core().compile_model(product_chain(precision == "int8"), "CPU", settings)
    request = compiled.create_infer_request()
    given = np.random.default_rng(0).normal(size=(TOKENS, WIDTH)).astype(np.float32)
    request.infer([given])
    fastest, until = float("inf"), time.perf_counter() + SECONDS
    while time.perf_counter() < until:
        started = time.perf_counter()
        request.infer([given])
        fastest = min(fastest, time.perf_counter() - started)
    return PRODUCTS * TOKENS * WIDTH**2 / fastest / 1e9


def amx_gmacs() -> float:
    """Of nothing but TDPBF16PS, as many in a loop as do not wait for each other."""
    module = ir.Module("peak")
    configuration = every_tile_whole(module)
    b, (numbers, rounds) = function(module, "run", 1, 1)
    tile_op(b, "ldtilecfg", configuration)
    for sums in range(4):
        tile_op(b, "tilezero", sums)
    for tile in range(4, 8):
        load_tile(b, tile, at(b, numbers, i64(TILE_BYTES * (tile - 4))))
    with loop(b, i64(0), rounds):
        for sums in range(4):
            tile_op(b, "tdpbf16ps", sums, 4 + sums // 2, 6 + sums % 2)
    tile_op(b, "tilerelease")
    b.ret_void()
    code = Code(module, "+amx-tile,+amx-bf16", {"run": (1, 1)})
    # of both signs, about 1: with zeros the processor would be faster
    drawn = np.random.default_rng(0).normal(size=2048).astype(np.float32)
    values = (drawn.view(np.uint32) >> 16).astype(np.uint16)
    rounds = 2_000_000

    def run(_: int) -> None:
        code.run("run", values.ctypes.data, rounds)

    fastest, until = float("inf"), time.perf_counter() + SECONDS
    with ThreadPoolExecutor(THREADS) as pool:
        while time.perf_counter() < until:
            started = time.perf_counter()
            list(pool.map(run, range(THREADS)))
            fastest = min(fastest, time.perf_counter() - started)
    return THREADS * rounds * 4 * 16 * 16 * 32 / fastest / 1e9


if __name__ == "__main__":
    peaks = {precision: gmacs(precision) for precision in PRECISIONS}
    if fastest_here() is AMX:
        peaks["AMX alone"] = amx_gmacs()
    print(json.dumps(peaks))
