"""The benchmarks are scripts that import each other by their bare names."""

import sys

from tests.conftest import REPOSITORY

sys.path.append(str(REPOSITORY / "benchmarks"))
