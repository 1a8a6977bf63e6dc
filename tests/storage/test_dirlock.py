"""The lock on the directory: its holder, kills, forks, replaced directories."""

from __future__ import annotations

import errno
import fcntl
import gc
import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import warnings
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from support.helpers import open_below, run_threads, wait_until

from bbcache.errors import DirectoryLockedError, StoreError
from bbcache.storage.dirlock import DirectoryLock, read_holder_pid

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

LOCK_NAME = ".bbcache.lock"
SHM = Path("/dev/shm")  # noqa: S108 - mkdtemp is safe there
HOLD = """
import sys
from bbcache.storage.dirlock import DirectoryLock
lock = DirectoryLock(sys.argv[1])
lock.acquire()
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def lock(tmp_path: Path) -> Iterator[DirectoryLock]:
    """A lock that is held; freed at the end."""
    made = DirectoryLock(str(tmp_path))
    made.acquire()
    yield made
    made.release()


@contextmanager
def other_process(directory: Path) -> Iterator[subprocess.Popen[str]]:
    """A process of its own that holds the lock."""
    command = [sys.executable, "-c", HOLD, str(directory)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "held\n"
            yield process
        finally:
            process.kill()


def holder_of(directory: Path) -> dict[str, Any]:
    """The holder in the lock file, as a dict."""
    text = (directory / LOCK_NAME).read_text()
    assert text.endswith("\n")
    assert text.count("\n") == 1
    holder: dict[str, Any] = json.loads(text)
    return holder


def is_free(directory: Path) -> bool:
    """Whether another cache could take the directory."""
    second = DirectoryLock(str(directory))
    try:
        second.acquire()
    except DirectoryLockedError:
        return False
    second.release()
    return True


def run_child(what: Callable[[], object]) -> int:
    """Fork, run `what` in the child, and give its exit code: 0 where it returned true."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of threads: that is the point
        pid = os.fork()
    if pid == 0:
        code = 99
        try:
            code = 0 if what() else 1
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


# --- Taking it --------------------------------------------------------------------------


@pytest.mark.usefixtures("lock")
def test_the_lock_file_names_its_holder(tmp_path: Path) -> None:
    """One line of JSON: pid, host, since."""
    holder = holder_of(tmp_path)
    assert list(holder) == ["pid", "host", "since"]
    assert holder["pid"] == os.getpid()
    assert holder["host"] == socket.gethostname()
    since = datetime.fromisoformat(holder["since"])
    assert since.tzinfo is not None
    assert abs((datetime.now(UTC) - since).total_seconds()) < 3600
    before = os.listdir("/proc/self/fd")
    assert read_holder_pid(str(tmp_path / LOCK_NAME)) == os.getpid()
    assert os.listdir("/proc/self/fd") == before


@pytest.mark.parametrize("umask", [0o000, 0o077], ids=oct)
def test_the_lock_file_is_for_the_owner_alone(tmp_path: Path, umask: int) -> None:
    """Mode 0600, whatever the umask."""
    before = os.umask(umask)
    try:
        lock = DirectoryLock(str(tmp_path))
        lock.acquire()
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / LOCK_NAME).stat().st_mode) == 0o600
    lock.release()


@pytest.mark.usefixtures("lock")
def test_a_second_one_in_the_same_process_is_refused(tmp_path: Path) -> None:
    """The error has directory and pid, and comes at once; the first lock stays."""
    second = DirectoryLock(str(tmp_path))
    for _ in range(2):
        with pytest.raises(DirectoryLockedError) as caught:
            second.acquire()
        assert caught.value.data_dir == str(tmp_path)
        assert caught.value.pid == os.getpid()
        assert isinstance(caught.value, OSError)
    second.release()
    assert not is_free(tmp_path)
    assert holder_of(tmp_path)["pid"] == os.getpid()


@pytest.mark.usefixtures("lock")
def test_another_path_to_the_directory_is_refused_too(tmp_path: Path) -> None:
    """The lock is on the file, whatever the directory is called."""
    link = tmp_path / "link"
    link.symlink_to(tmp_path)
    assert not is_free(link)


def test_another_process_is_named(tmp_path: Path) -> None:
    """The error has the pid of the process that holds it."""
    with other_process(tmp_path) as process:
        with pytest.raises(DirectoryLockedError) as caught:
            DirectoryLock(str(tmp_path)).acquire()
        assert caught.value.pid == process.pid
        assert str(process.pid) in str(caught.value)


def test_the_lock_of_a_killed_process_is_simply_taken(tmp_path: Path) -> None:
    """The stale text of its file is replaced as a whole."""
    with other_process(tmp_path) as process:
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert holder_of(tmp_path)["pid"] == process.pid
    (tmp_path / LOCK_NAME).write_text((tmp_path / LOCK_NAME).read_text() + "x" * 1000)
    lock = DirectoryLock(str(tmp_path))
    lock.acquire()
    assert holder_of(tmp_path)["pid"] == os.getpid()
    lock.release()


def test_of_many_at_once_one_gets_it(tmp_path: Path) -> None:
    """The others are refused; nobody waits."""
    locks = [DirectoryLock(str(tmp_path)) for _ in range(8)]
    errors: list[DirectoryLockedError] = []

    def take(lock: DirectoryLock) -> None:
        try:
            lock.acquire()
        except DirectoryLockedError as error:
            errors.append(error)

    run_threads([lambda lock=lock: take(lock) for lock in locks])  # type: ignore[misc]
    assert len(errors) == 7
    assert {error.pid for error in errors} <= {os.getpid(), None}
    assert sum(lock.is_at_path() for lock in locks) == 1
    for lock in locks:
        lock.release()
    assert is_free(tmp_path)


# --- Giving it back ---------------------------------------------------------------------


def test_the_lock_file_is_never_unlinked(tmp_path: Path, lock: DirectoryLock) -> None:
    """After release and another acquire it is the same file."""
    before = (tmp_path / LOCK_NAME).stat().st_ino
    lock.release()
    assert (tmp_path / LOCK_NAME).stat().st_ino == before
    assert is_free(tmp_path)
    lock.acquire()
    assert (tmp_path / LOCK_NAME).stat().st_ino == before
    assert lock.is_at_path()


def test_release_is_harmless_when_it_is_not_held(tmp_path: Path, lock: DirectoryLock) -> None:
    """It may be called twice or without a lock, and frees no other lock."""
    DirectoryLock(str(tmp_path)).release()
    assert not is_free(tmp_path)
    lock.release()
    lock.release()
    assert not lock.is_at_path()
    assert is_free(tmp_path)


def test_any_thread_may_release(tmp_path: Path, lock: DirectoryLock) -> None:
    """A close may come from another thread than the spawn."""
    kept = lock._lock  # else it would be freed by being collected
    run_threads([lock.release])
    assert kept is not None
    assert is_free(tmp_path)


def test_a_file_system_without_flock_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A lock by mere existence would outlive a kill."""

    def flock(_fd: int, _operation: int) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    with monkeypatch.context() as patch:
        patch.setattr(fcntl, "flock", flock)
        with pytest.raises(StoreError, match="with flock"):
            DirectoryLock(str(tmp_path)).acquire()
    assert is_free(tmp_path)


# --- Files in the way -------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["link to a file", "dangling link", "directory", "socket"])
def test_what_is_no_regular_file_is_refused(tmp_path: Path, kind: str) -> None:
    """No link is followed, nothing is made through it, and the error says what is needed."""
    path, target = tmp_path / LOCK_NAME, tmp_path / "target"
    if kind == "directory":
        path.mkdir()
    elif kind == "socket":
        os.mknod(path, 0o600 | stat.S_IFSOCK)
    else:
        path.symlink_to(target)
        if kind == "link to a file":
            target.write_text("precious")
    lock = DirectoryLock(str(tmp_path))
    with pytest.raises(StoreError, match="regular file") as caught:
        lock.acquire()
    assert not isinstance(caught.value, DirectoryLockedError)
    assert str(path) in str(caught.value)
    assert caught.value.errno is not None
    assert "None" not in str(caught.value)
    assert not lock.is_at_path()
    if kind == "link to a file":
        assert target.read_text() == "precious"
    else:
        assert not target.exists()


def test_a_fifo_is_not_waited_on(tmp_path: Path) -> None:
    """Its open does not wait; it raises an error."""
    os.mkfifo(tmp_path / LOCK_NAME)
    with pytest.raises(StoreError, match="regular file"):
        DirectoryLock(str(tmp_path)).acquire()


@pytest.mark.parametrize(
    "content",
    [
        *("", "\n", "{", "null", "[]", "{}", '{"pid": null}', '{"pid": "12"}', '{"pid": 1.5}'),
        *('{"pid": {}}', "\0" * 100, "12", '"x"', "x" * 10_000, "[" * 10_000),
    ],
)
def test_a_text_without_pid_names_nobody(tmp_path: Path, content: str) -> None:
    """Whatever is in the file, reading it raises nothing."""
    path = tmp_path / LOCK_NAME
    path.write_text(content)
    assert read_holder_pid(str(path)) is None
    assert open_below(tmp_path) == []


def test_bytes_that_are_no_text_name_nobody(tmp_path: Path) -> None:
    """Bytes that are not UTF-8 name nobody, either."""
    (tmp_path / LOCK_NAME).write_bytes(b"\xff\xfe\xff")
    assert read_holder_pid(str(tmp_path / LOCK_NAME)) is None


@pytest.mark.parametrize("kind", ["missing", "link", "fifo", "directory"])
def test_no_file_names_nobody(tmp_path: Path, kind: str) -> None:
    """No link is followed and no FIFO waited on."""
    path = tmp_path / LOCK_NAME
    (tmp_path / "target").write_text('{"pid": 5}')
    if kind == "link":
        path.symlink_to("target")
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "directory":
        path.mkdir()
    assert read_holder_pid(str(path)) is None


# --- A directory that is replaced -------------------------------------------------------


def test_the_lock_is_at_its_path_while_its_file_is(tmp_path: Path, lock: DirectoryLock) -> None:
    """A directory that is moved away and back is the same."""
    assert lock.is_at_path()
    away = tmp_path.with_name(tmp_path.name + "-away")
    tmp_path.rename(away)
    assert not lock.is_at_path()
    tmp_path.mkdir()
    assert not lock.is_at_path()
    tmp_path.rmdir()
    away.rename(tmp_path)
    assert lock.is_at_path()


def test_the_lock_is_lost_with_its_file(tmp_path: Path, lock: DirectoryLock) -> None:
    """Removed or replaced: another cache may have the directory then."""
    (tmp_path / LOCK_NAME).unlink()
    assert not lock.is_at_path()
    (tmp_path / LOCK_NAME).touch()
    assert not lock.is_at_path()
    (tmp_path / LOCK_NAME).unlink()
    os.symlink("target", tmp_path / LOCK_NAME)
    assert not lock.is_at_path()


def test_a_lock_that_was_never_taken_is_at_no_path(tmp_path: Path) -> None:
    """A lock that was never taken is at no path."""
    (tmp_path / LOCK_NAME).touch()
    assert not DirectoryLock(str(tmp_path)).is_at_path()


@pytest.mark.parametrize("lost", ["lock file", "directory"])
def test_a_replaced_directory_is_locked_again(
    tmp_path: Path, lock: DirectoryLock, lost: str
) -> None:
    """The new file is held, names its holder, and is freed in the end."""
    if lost == "directory":
        shutil.rmtree(tmp_path)
        tmp_path.mkdir()
    else:
        (tmp_path / LOCK_NAME).unlink()
    assert is_free(tmp_path)
    (tmp_path / LOCK_NAME).unlink()
    lock.retake()
    assert lock.is_at_path()
    assert not is_free(tmp_path)
    assert holder_of(tmp_path)["pid"] == os.getpid()
    lock.release()
    assert is_free(tmp_path)


def test_a_directory_that_another_cache_has_taken_is_refused(
    tmp_path: Path, lock: DirectoryLock
) -> None:
    """The error names that cache; the lock stays lost."""
    (tmp_path / LOCK_NAME).unlink()
    with other_process(tmp_path) as process:
        for _ in range(2):
            with pytest.raises(DirectoryLockedError) as caught:
                lock.retake()
            assert caught.value.pid == process.pid
            assert not lock.is_at_path()
    wait_until(lambda: is_free(tmp_path))
    lock.retake()
    assert lock.is_at_path()


def test_a_lock_that_was_never_held_can_be_retaken(tmp_path: Path) -> None:
    """`retake` works without an earlier lock."""
    lock = DirectoryLock(str(tmp_path))
    lock.retake()
    assert lock.is_at_path()
    assert not is_free(tmp_path)
    lock.release()


def test_a_directory_that_is_gone_cannot_be_retaken(tmp_path: Path, lock: DirectoryLock) -> None:
    """It raises an OSError and makes nothing."""
    away = tmp_path.with_name(tmp_path.name + "-away")
    tmp_path.rename(away)
    with pytest.raises(OSError, match=str(tmp_path)):
        lock.retake()
    assert not tmp_path.exists()
    away.rename(tmp_path)
    assert lock.is_at_path()


@pytest.fixture
def other_device(tmp_path: Path) -> Iterator[Path]:
    """A directory on another file system."""
    if not SHM.is_dir() or SHM.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("there is no second file system")
    with tempfile.TemporaryDirectory(dir=SHM) as directory:
        yield Path(directory)


def test_a_directory_on_another_file_system_is_refused(tmp_path: Path, other_device: Path) -> None:
    """It may be the root's, below a lost mount: the cache must not fill it."""
    data_dir, disk = tmp_path / "data", tmp_path / "disk"
    disk.mkdir()
    data_dir.symlink_to(disk)
    lock = DirectoryLock(str(data_dir))
    lock.acquire()
    data_dir.unlink()
    data_dir.symlink_to(other_device)
    assert not lock.is_at_path()
    with pytest.raises(StoreError, match="another file system than at the start\nhint: "):
        lock.retake()
    assert not lock.is_at_path()
    assert list(other_device.iterdir()) == []
    data_dir.unlink()
    data_dir.symlink_to(disk)
    assert lock.is_at_path()
    lock.release()
    assert is_free(disk)


FULL_DISK = """
import resource, sys
from bbcache.storage.dirlock import DirectoryLock
from bbcache.errors import DirectoryLockedError
resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
lock = DirectoryLock(sys.argv[1])
lock.acquire()
assert lock.is_at_path()
try:
    DirectoryLock(sys.argv[1]).acquire()
except DirectoryLockedError as error:
    assert error.pid is None
else:
    sys.exit("not locked")
"""


def test_a_full_disk_still_locks(tmp_path: Path) -> None:
    """The lock is taken even if its holder cannot be written."""
    command = [sys.executable, "-c", FULL_DISK, str(tmp_path)]
    ran = subprocess.run(command, check=False, capture_output=True, text=True)
    assert (ran.returncode, ran.stderr) == (0, "")


# --- Forks ------------------------------------------------------------------------------


def test_a_lock_that_cannot_even_be_freed_again_is_a_clear_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk fails right after the lock, and at every later call."""

    def fail(*_: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patched:
        flock = fcntl.flock
        patched.setattr(os, "fstat", fail)
        patched.setattr(
            fcntl, "flock", lambda fd, op: (fail if op & fcntl.LOCK_UN else flock)(fd, op)
        )
        with pytest.raises(StoreError, match=r"cannot lock .*Input/output error") as caught:
            DirectoryLock(str(tmp_path)).acquire()
    assert caught.value.errno == errno.EIO
    gc.collect()  # the library's lock frees itself at last
    assert is_free(tmp_path)


def test_a_forked_child_frees_nothing(tmp_path: Path, lock: DirectoryLock) -> None:
    """Neither its exit nor a release in it frees the parent's lock."""
    run_child(lambda: True)
    assert not is_free(tmp_path)
    run_child(lock.release)
    assert not is_free(tmp_path)
    assert lock.is_at_path()


@pytest.mark.usefixtures("lock")
def test_a_forked_child_does_not_get_the_lock(tmp_path: Path) -> None:
    """The child cannot lock the directory that its parent has locked."""
    assert run_child(lambda: not is_free(tmp_path)) == 0


PARENT = """
import os, sys, time
from bbcache.storage.dirlock import DirectoryLock
lock = DirectoryLock(sys.argv[1])
lock.acquire()
pid = os.fork()
if pid == 0:
    os.close(1)
    sys.stdin.read()
    os._exit(0)
print(pid, flush=True)
os.kill(os.getpid(), 9)
"""


def test_a_forked_child_does_not_hold_the_lock(tmp_path: Path) -> None:
    """When the parent is killed, the directory is free although the child runs."""
    command = [sys.executable, "-c", PARENT, str(tmp_path)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        child = int(process.stdout.readline())
        assert process.wait(60) == -signal.SIGKILL
        wait_until(lambda: is_free(tmp_path))
        os.kill(child, 0)  # it is still there


def test_an_executed_program_does_not_hold_the_lock(tmp_path: Path, lock: DirectoryLock) -> None:
    """The descriptor is not inherited."""
    command = [sys.executable, "-c", "import sys; sys.stdin.read()"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, close_fds=False) as process:
        lock.release()
        assert is_free(tmp_path)
        process.communicate(b"")


def test_freeing_is_tried_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An unlock that fails once leaves no lock behind."""
    lock = DirectoryLock(str(tmp_path))
    lock.acquire()
    flock, failures = fcntl.flock, [OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))]

    def fail_once(fd: int, operation: int) -> None:
        if operation == fcntl.LOCK_UN and failures:
            raise failures.pop()
        flock(fd, operation)

    monkeypatch.setattr(fcntl, "flock", fail_once)
    lock.release()
    assert not failures
    other = DirectoryLock(str(tmp_path))
    other.acquire()
    other.release()
