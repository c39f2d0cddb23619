"""A model's files are compared with what was logged: each byte, and once on a machine."""

import os

import pytest

from phi3_batch import user_folder
from phi3_batch.errors import InvalidModelError
from phi3_batch.model_files import Manifest, ModelFolder, known_files
from phi3_batch.model_files import manifest as files
from tests.conftest import TINY_MODEL

FILES = ("genai_config.json", "tokenizer.json", "model.onnx", "model.onnx.data")


@pytest.fixture(scope="module")
def logged():
    return ModelFolder.open(TINY_MODEL).read_manifest()


@pytest.fixture(autouse=True)
def memory(monkeypatch, tmp_path):
    """Where findings are kept, none of them yet; call it to be another process."""

    def another_process():
        monkeypatch.setattr(known_files, "_found", set())

    monkeypatch.setattr(user_folder, "places", lambda name: [tmp_path / name])
    monkeypatch.setattr(files, "_TICK_NS", -(10**9))  # what is written now counts as settled
    monkeypatch.setattr(files, "_COARSE_TICK_NS", -(10**9))
    another_process()
    return another_process


@pytest.fixture
def digested(monkeypatch):
    """A list to which each digesting of a folder adds."""
    done, of = [], Manifest.of.__func__

    def counted(cls, path, names):
        done.append(path)
        return of(cls, path, names)

    monkeypatch.setattr(Manifest, "of", classmethod(counted))
    return done


def turn_a_bit(file):
    """Size and time of the last change stay as they were."""
    before, content = file.stat(), bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_a_whole_copy_passes(build, logged):
    logged.check(build)


@pytest.mark.parametrize("name", FILES)
def test_a_turned_bit_is_found_in_every_file_and_the_advice_helps(build, logged, name):
    logged.check(build)
    turn_a_bit(build / name)
    for _ in range(2):
        with pytest.raises(InvalidModelError) as error:
            logged.check(build)
        assert str(error.value) == (
            f"{build / name} is not the file that was logged (its SHA-256 is another):"
            " the copy is damaged, copy it again, or log the model again"
        )
    (build / name).write_bytes((TINY_MODEL / name).read_bytes())
    logged.check(build)


def test_a_copy_cut_short_is_found_by_its_size(build, logged, digested):
    data = build / "model.onnx.data"
    data.write_bytes(data.read_bytes()[:1000])
    with pytest.raises(InvalidModelError) as error:
        logged.check(build)
    assert str(error.value) == (
        f"{data} has 1000 bytes, 2454272 when it was logged:"
        " the copy is damaged, copy it again, or log the model again"
    )
    assert digested == []


def test_a_file_lost_since_it_was_logged_is_found(build, logged):
    (build / "tokenizer.json").unlink()
    with pytest.raises(InvalidModelError, match=r"has no tokenizer\.json"):
        logged.check(build)


def test_files_are_digested_once_on_a_machine(build, logged, memory, digested):
    for _ in range(2):
        logged.check(build)
        with logged.checked(build):
            memory()
    assert digested == [build]


def test_another_copy_and_another_manifest_are_digested_too(build, tmp_path, logged, digested):
    logged.check(build)
    os.link(build / "model.onnx.data", tmp_path / "same file")  # which changes its inode's time
    logged.check(build)
    fewer = Manifest({name: logged.files[name] for name in FILES[:2]})
    fewer.check(build)
    fewer.check(TINY_MODEL)
    assert digested == [build, build, build, TINY_MODEL]


def test_what_might_have_changed_within_a_tick_of_the_clock_is_not_remembered(
    monkeypatch, build, logged, digested
):
    monkeypatch.setattr(files, "_TICK_NS", 10**12)
    logged.check(build)
    logged.check(build)
    assert digested == [build, build]


@pytest.mark.parametrize(
    ("changed_s", "read_s", "shows"),
    [(5.25, 5.36, True), (5.25, 5.34, False), (5, 7.01, True), (5, 6.99, False)],
)
def test_times_in_whole_seconds_have_a_longer_tick(monkeypatch, changed_s, read_s, shows):
    monkeypatch.undo()
    assert files._shows_changes(int(changed_s * 10**9), int(read_s * 10**9)) is shows


@pytest.mark.parametrize("restored", [False, True])
def test_a_file_that_is_written_to_while_it_is_read_is_refused(build, logged, restored):
    data = build / "model.onnx.data"

    def read():
        with logged.checked(build):
            turn_a_bit(data)
            if restored:
                turn_a_bit(data)

    with pytest.raises(InvalidModelError, match=f"^{data} was written to while it was read"):
        read()


def test_a_file_that_is_written_to_while_it_is_digested_is_refused(
    monkeypatch, build, logged, memory
):
    of = Manifest.of.__func__

    def digest_what_changes(cls, path, names):
        found = of(cls, path, names)
        turn_a_bit(build / "model.onnx.data")
        return found

    with monkeypatch.context() as patched:
        patched.setattr(Manifest, "of", classmethod(digest_what_changes))
        with pytest.raises(InvalidModelError, match="was written to while it was read"):
            logged.check(build)
    with pytest.raises(InvalidModelError, match="is not the file that was logged"):
        logged.check(build)


def test_where_nothing_can_be_kept_the_process_remembers(
    monkeypatch, build, tmp_path, logged, memory, digested
):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(user_folder, "places", lambda name: [tmp_path / "file" / name])
    logged.check(build)
    logged.check(build)
    memory()
    logged.check(build)
    assert digested == [build, build]


def test_the_word_of_others_is_not_taken(build, tmp_path, logged, memory, digested):
    logged.check(build)
    memory()
    (tmp_path / "known-files").chmod(0o777)  # now anybody may have put it there
    logged.check(build)
    assert digested == [build, build]


def test_findings_are_of_a_limited_number(monkeypatch, tmp_path):
    monkeypatch.setattr(known_files, "_LIMIT", 3)
    for number in range(5):
        known_files.remember(f"finding-{number}")
        os.utime(tmp_path / "known-files" / f"finding-{number}", (number, number))
    kept = sorted(file.name for file in (tmp_path / "known-files").iterdir())
    assert kept == ["finding-2", "finding-3", "finding-4"]
