"""What the machine must have before anything else can work: Python and Java.

Only the standard library is imported, so that ``python -m phi3_batch.environment`` answers before
anything has been installed. The Makefile asks it first.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from phi3_batch.errors import EnvironmentProblemError

REMOTE_VARIABLE = "SPARK_REMOTE"  # Spark's own, the address of a Spark Connect server
MINIMUM_JAVA = 17
MINIMUM_PYTHON = (3, 11)


def java_version() -> int:
    """The major version of the Java that Spark will start: JAVA_HOME's, else the one on PATH.

    Raises:
        EnvironmentProblemError: there is no Java, or it does not say its version.
    """
    home = os.environ.get("JAVA_HOME")
    java = str(Path(home, "bin", "java")) if home else shutil.which("java")
    wanted = f"install Java {MINIMUM_JAVA} or later (a JRE is enough) or set JAVA_HOME to one"
    if java is None:
        raise EnvironmentProblemError(f"no Java found on PATH: {wanted}")
    try:
        answer = subprocess.run([java, "-version"], capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise EnvironmentProblemError(f"{java} does not run ({error}): {wanted}") from error
    # 'openjdk version "17.0.15" 2025-04-15', and before Java 9 'java version "1.8.0_402"'
    found = re.search(r'version "(?:1\.)?(\d+)', answer.stderr + answer.stdout)
    if found is None:
        raise EnvironmentProblemError(f"{java} does not say its version: {wanted}")
    return int(found.group(1))


def check_java() -> int:
    """The major version of Java, if it is new enough for Spark.

    Raises:
        EnvironmentProblemError: Java is missing or too old.
    """
    version = java_version()
    if version < MINIMUM_JAVA:
        raise EnvironmentProblemError(
            f"Java {version} is too old for Spark 4: install Java {MINIMUM_JAVA} or later,"
            " or set JAVA_HOME to one"
        )
    return version


def check_python() -> str:
    """The version of the running Python, if it is new enough.

    Raises:
        EnvironmentProblemError: it is older than 3.11.
    """
    version = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info < MINIMUM_PYTHON:
        wanted = ".".join(map(str, MINIMUM_PYTHON))
        raise EnvironmentProblemError(f"Python {version} is too old: {wanted} or later is needed")
    return version


if __name__ == "__main__":
    try:
        check_python()
        check_java()
    except EnvironmentProblemError as problem:
        sys.exit(f"error: {problem}")
