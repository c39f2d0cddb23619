import io

import pytest
from measured import Measured, median, print_ratios, ratio, spread_percent
from rich.console import Console


def measured(seconds: float, **changed: int) -> Measured:
    counts = {"rows": 4, "prompt_tokens": 300, "output_tokens": 100, **changed}
    return Measured(seconds=seconds, **counts)


def test_the_rate_counts_output_tokens():
    assert measured(20.0).rate == 5.0


def test_matrix_work_of_one_token():
    # qkv 3072x9216, o 3072x3072, gate-up 3072x16384, down 8192x3072, in each of 8 layers
    layers = 8 * (3072 * 9216 + 3072 * 3072 + 3072 * 16384 + 8192 * 3072)

    read = measured(1.0, prompt_tokens=1, output_tokens=0)
    written = measured(1.0, prompt_tokens=0, output_tokens=1)

    assert read.gmacs == pytest.approx(layers / 1e9)
    assert written.gmacs == pytest.approx((layers + 3072 * 32064) / 1e9)


def test_median_round():
    rounds = [measured(10.0), measured(30.0), measured(20.0)]

    assert median(rounds) == measured(20.0)
    assert median(rounds[:2]) == measured(30.0)  # of two, the slower one
    assert spread_percent([measured(10.0), measured(30.0)]) == pytest.approx(100.0)


def test_ratio_is_of_rates():
    assert ratio(measured(5.0), measured(20.0)) == "4.00"
    assert ratio(measured(5.0), None) == ""


def test_a_table_divides_each_engine_by_the_others():
    console = Console(file=io.StringIO(), width=140)

    print_ratios(
        console,
        "W: some rows",
        {
            "slow": [measured(40.0)],
            "fast": [measured(11.0), measured(10.0), measured(9.0)],
            "absent": [],
        },
        against={"x slow": "slow", "x absent": "absent"},
        peak_gmacs=None,
        onnx_bytes=1,
    )

    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    fast = next(line for line in lines if "fast" in line)
    assert [cell.strip() for cell in fast.strip("│").split("│")][1:5] == [
        "4",
        "3 10 %",
        "10.0",
        "4.00",
    ]
    assert any("absent" in line and "not installed" in line for line in lines)


def test_memory_is_given_without_the_cache_in_model_files():
    console = Console(file=io.StringIO(), width=140)
    result = measured(10.0, peak_bytes=3_000_000_000, cache_bytes=1_000_000_000)

    print_ratios(console, "W", {"ours": [result]}, {}, None, onnx_bytes=1_000_000_000)

    line = next(line for line in console.file.getvalue().splitlines() if "ours" in line)  # type: ignore[attr-defined]
    assert "3.00 GB" in line
    assert "2.00 x file" in line
