import os
import subprocess
import sys

import pytest

from phi3_batch.environment import check_java, check_python, java_version
from phi3_batch.errors import EnvironmentProblemError

JAVA_17 = 'openjdk version "17.0.15" 2025-04-15'


@pytest.fixture
def install_java(tmp_path, monkeypatch):
    """Puts a program named java, which prints what it is told, in a home of its own."""
    monkeypatch.delenv("JAVA_HOME", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))

    def install(answer, home="java", stream=2):
        java = tmp_path / home / "bin" / "java"
        java.parent.mkdir(parents=True)
        java.write_text(f"#!/bin/sh\necho '{answer}' >&{stream}\n", encoding="utf-8")
        java.chmod(0o755)
        return tmp_path / home

    return install


@pytest.mark.parametrize(
    ("answer", "version"),
    [
        (JAVA_17, 17),
        ('openjdk version "21" 2023-09-19', 21),
        ('openjdk version "25-ea" 2025-09-16', 25),
        ('java version "1.8.0_402"', 8),
        ('openjdk version "11.0.22" 2024-01-16 LTS', 11),
    ],
)
def test_the_major_version_is_read_from_what_java_says(install_java, monkeypatch, answer, version):
    monkeypatch.setenv("JAVA_HOME", str(install_java(answer)))
    assert java_version() == version


def test_java_may_say_its_version_on_either_stream(install_java, monkeypatch):
    monkeypatch.setenv("JAVA_HOME", str(install_java(JAVA_17, stream=1)))
    assert java_version() == 17


def test_java_is_looked_for_on_path(install_java, monkeypatch):
    monkeypatch.setenv("PATH", str(install_java(JAVA_17) / "bin"))
    assert java_version() == 17


def test_java_home_goes_before_path(install_java, monkeypatch):
    monkeypatch.setenv("PATH", str(install_java('java version "1.8.0_402"', home="old") / "bin"))
    monkeypatch.setenv("JAVA_HOME", str(install_java(JAVA_17, home="new")))
    assert java_version() == 17


@pytest.mark.usefixtures("install_java")
def test_without_java_the_user_is_told_what_to_install():
    with pytest.raises(EnvironmentProblemError) as error:
        check_java()
    assert str(error.value) == (
        "no Java found on PATH: install Java 17 or later (a JRE is enough) or set JAVA_HOME to one"
    )


def test_a_java_home_without_java_is_named(install_java, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(install_java(JAVA_17) / "bin"))
    monkeypatch.setenv("JAVA_HOME", str(tmp_path / "gone"))
    with pytest.raises(EnvironmentProblemError) as error:
        check_java()
    assert str(error.value).startswith(f"{tmp_path / 'gone' / 'bin' / 'java'} does not run (")
    assert str(error.value).endswith("or set JAVA_HOME to one")


def test_a_program_that_says_something_else_is_named(install_java, monkeypatch):
    home = install_java("The operation could not be completed")
    monkeypatch.setenv("JAVA_HOME", str(home))
    with pytest.raises(EnvironmentProblemError, match="does not say its version: install Java 17"):
        check_java()


def test_java_17_is_new_enough(install_java, monkeypatch):
    monkeypatch.setenv("JAVA_HOME", str(install_java(JAVA_17)))
    assert check_java() == 17


@pytest.mark.parametrize(
    ("answer", "version"), [('java version "1.8.0_402"', 8), ('openjdk version "16.0.2"', 16)]
)
def test_a_java_that_is_too_old_is_named(install_java, monkeypatch, answer, version):
    monkeypatch.setenv("JAVA_HOME", str(install_java(answer)))
    with pytest.raises(EnvironmentProblemError) as error:
        check_java()
    assert str(error.value).startswith(f"Java {version} is too old for Spark 4: install Java 17")


def test_the_running_python_is_new_enough():
    assert check_python() == sys.version.split()[0]


def test_a_python_that_is_too_old_is_named(monkeypatch):
    monkeypatch.setattr(sys, "version_info", (3, 9, 18, "final", 0))
    with pytest.raises(EnvironmentProblemError) as error:
        check_python()
    assert str(error.value) == "Python 3.9.18 is too old: 3.11 or later is needed"


@pytest.fixture
def bare_python(repository):
    """Runs the interpreter from the repository with nothing installed: -S hides site-packages."""

    def run(*arguments):
        variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        return subprocess.run(
            [sys.executable, "-S", *arguments],
            cwd=repository,
            env=variables,
            capture_output=True,
            text=True,
            timeout=60,
        )

    return run


def test_the_check_runs_before_anything_is_installed(install_java, monkeypatch, bare_python):
    monkeypatch.setenv("JAVA_HOME", str(install_java(JAVA_17)))
    assert "No module named 'numpy'" in bare_python("-c", "import numpy").stderr
    answer = bare_python("-m", "phi3_batch.environment")
    assert (answer.returncode, answer.stdout, answer.stderr) == (0, "", "")


@pytest.mark.usefixtures("install_java")
def test_the_check_ends_with_one_line_that_says_what_to_install(bare_python):
    answer = bare_python("-m", "phi3_batch.environment")
    assert answer.returncode == 1
    assert answer.stderr == (
        "error: no Java found on PATH: install Java 17 or later (a JRE is enough)"
        " or set JAVA_HOME to one\n"
    )
