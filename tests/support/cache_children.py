"""The other side of tests that need a process of their own; see `cache_helpers.run_child`.

A child that fails raises, so that its exit code tells.
"""

from __future__ import annotations

import contextlib
import errno
import io
import logging
import os
import resource
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from support.cache_helpers import DEADLINE_S, LSN_B, MIB, Harness, noise, tar_of

from bbcache import StoreError

if TYPE_CHECKING:
    from collections.abc import Iterator

NOBODY = 65534


@contextlib.contextmanager
def _new_dir() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="bbcache-child-"))
    try:
        yield path
    finally:
        shutil.rmtree(path)


def _captured_log() -> io.StringIO:
    stream = io.StringIO()
    logging.basicConfig(stream=stream, level=logging.INFO)
    return stream


def _become_a_plain_user(directory: Path) -> None:
    """Permissions mean nothing to root: give up being root, and own `directory` alone."""
    if os.geteuid() == 0:
        os.chown(directory, NOBODY, NOBODY)
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)


@contextlib.contextmanager
def _plain_users_dir() -> Iterator[Path]:
    """A directory of a plain user, who this process is from now on."""
    with _new_dir() as parent:
        # Modules that are imported late must be loaded before root's own files are out of reach.
        with Harness(parent / "warm-up") as harness:
            harness.prepared()
            harness.cache.run_cleanup()
        shutil.rmtree(parent / "warm-up")
        _become_a_plain_user(parent)
        yield parent / "cache"
        os.chmod(parent, 0o700)


@contextlib.contextmanager
def _no_descriptors() -> Iterator[None]:
    """For the time of a block nothing can be opened in this process."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest_free = os.dup(0)
    os.close(lowest_free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def out_of_descriptors() -> None:
    """Really lower the limit of open files, and raise it again."""
    log = _captured_log()
    with _new_dir() as directory, Harness(directory) as harness:
        held, bad, new = harness.prepared(), harness.prepared(), harness.timeline()
        harness.path(bad).write_bytes(b"bad")
        with _no_descriptors():
            assert harness.get(held) is None
            assert harness.get(bad) is None
            assert harness.get(new) is None
            harness.prepare(new)
            harness.cache.run_cleanup()
        assert harness.reads == {"error": 2, "miss": 1}, harness.reads
        assert harness.counts() == {"ok": 2, "error": 1}, harness.counts()
        assert "hint: Raise the limit of open files" in log.getvalue()
        assert harness.holds(held)
        assert harness.holds(bad)
        assert harness.get(held) == tar_of(held)
        harness.prepare(new)
        assert harness.get(new) == tar_of(new)
        assert harness.get(bad) is None
        harness.wait_idle()
        assert harness.get(bad) == tar_of(bad)
        harness.cache.run_cleanup()
        harness.check_accounting()


def out_of_descriptors_at_the_start() -> None:
    """The directory can be locked, and then not be listed for a while."""
    log = _captured_log()
    with _new_dir() as directory:
        harness = Harness(directory)
        timeline = harness.timeline()
        with harness:
            harness.prepare(timeline)
        descriptor = os.dup(0)  # one is left, for the lock file
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (descriptor + 1, limits[1]))
        os.close(descriptor)
        harness.open(wait=False)
        with harness.opened:
            assert not harness.cache.wait_initialized(0.1)
            assert harness.get(timeline) is None
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
            assert harness.cache.wait_initialized(DEADLINE_S)
            assert harness.get(timeline) == tar_of(timeline)
            assert "trying again in 0.02 s\nhint: Raise the limit" in log.getvalue()


def beyond_the_limit_of_file_sizes() -> None:
    """Python ignores SIGXFSZ, so a write beyond the limit raises EFBIG."""
    log = _captured_log()
    with _new_dir() as directory, Harness(directory) as harness:
        timeline = harness.timeline()
        timeline.tarball = lambda _at: noise(2 * MIB)
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (MIB, limits[1]))
        harness.prepare(timeline)
        assert harness.counts() == {"error": 1}, harness.counts()
        assert os.strerror(errno.EFBIG) in log.getvalue()
        harness.check_accounting()
        harness.prepared()
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        harness.prepare(timeline)
        assert harness.get(timeline) == noise(2 * MIB)
        harness.check_accounting()


def read_only_directory() -> None:
    """As a plain user, take the right to write away and give it back."""
    log = _captured_log()
    with _plain_users_dir() as directory, Harness(directory) as harness:
        held, gone, new = harness.prepared(), harness.prepared(), harness.timeline()
        gone.advance(LSN_B)
        directory.chmod(0o500)
        harness.prepare(new)
        assert harness.counts() == {"ok": 2, "error": 1}, harness.counts()
        assert "hint: Give the user of this process" in log.getvalue()
        assert harness.get(held) == tar_of(held)
        harness.cache.run_cleanup()
        assert harness.value("bbcache_unlink_failures_total") == 1
        assert harness.get(gone) is None
        assert harness.path(gone).exists()
        harness.wait_idle()
        (directory / "tmp").chmod(0o500)
        harness.prepare(new)
        assert harness.counts() == {"ok": 2, "error": 2}, harness.counts()
        directory.chmod(0o700)
        (directory / "tmp").chmod(0o700)
        harness.prepare(new)
        assert harness.get(new) == tar_of(new)
        harness.cache.run_cleanup()
        assert not harness.path(gone).exists()
        harness.check_accounting()


def unlistable_directory() -> None:
    """As a plain user, start on a directory that may be entered and written, not listed."""
    log = _captured_log()
    with _plain_users_dir() as directory:
        harness = Harness(directory)
        with harness:
            timeline = harness.prepared()
        directory.chmod(0o300)
        harness.open(wait=False)
        with harness.opened:
            assert not harness.cache.wait_initialized(0.1)
            assert harness.cache.entries() == []
            directory.chmod(0o700)
            assert harness.cache.wait_initialized(DEADLINE_S)
            assert harness.get(timeline) == tar_of(timeline)
            assert "trying again" in log.getvalue()
            assert "hint: Give the user of this process" in log.getvalue()


def no_permission_to_spawn() -> None:
    """As a plain user, spawn below, and on, a directory that refuses."""
    with _plain_users_dir() as directory:
        directory.parent.chmod(0o500)
        _expect_refusal(directory)
        directory.parent.chmod(0o700)
        directory.mkdir(0o500)
        _expect_refusal(directory)
        directory.chmod(0o700)
        (directory / ".bbcache.lock").touch(0o000)
        _expect_refusal(directory)
        (directory / ".bbcache.lock").chmod(0o600)
        with Harness(directory) as harness:
            harness.prepared()


def _expect_refusal(directory: Path) -> None:
    refusal: StoreError | None = None
    try:
        Harness(directory).open()
    except StoreError as error:
        refusal = error
    assert refusal is not None, "it could be opened"
    assert refusal.errno == errno.EACCES, refusal
    assert "hint: " in str(refusal), refusal


def unreadable_entry() -> None:
    """As a plain user, take the right to read one entry away and give it back."""
    log = _captured_log()
    with _plain_users_dir() as directory:
        harness = Harness(directory)
        timeline = harness.timeline()
        harness.seed(timeline).chmod(0)
        with harness:
            assert harness.holds(timeline)
            assert harness.get(timeline) is None
            assert harness.reads == {"error": 1}
            assert "hint: Give the user of this process" in log.getvalue()
            harness.cache.run_cleanup()
            assert harness.holds(timeline)
            harness.path(timeline).chmod(0o600)
            assert harness.get(timeline) == tar_of(timeline)


def quarantine_without_search_permission() -> None:
    """As a plain user, let the quarantine be listed, but none of its files be looked at."""
    with _plain_users_dir() as directory, Harness(directory, verify_reads="always") as harness:
        timeline = harness.prepared()
        content = harness.path(timeline).read_bytes()
        harness.path(timeline).write_bytes(content[:-1] + b"?")
        timeline.advance(LSN_B)
        assert harness.get(timeline) is None
        harness.wait_idle()
        quarantine = directory / "quarantine"
        quarantine.chmod(0o400)
        harness.cache.run_cleanup()
        assert harness.nonentry_bytes == len(content)
        quarantine.chmod(0o700)
        harness.check_accounting()
