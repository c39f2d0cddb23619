"""What this machine's processors can do at most: large matrix products, through OpenVINO.

python benchmarks/peak.py
"""

import json
import time

import numpy as np

from phi3_batch.engines.openvino_runtime import openvino

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


if __name__ == "__main__":
    print(json.dumps({precision: gmacs(precision) for precision in PRECISIONS}))
