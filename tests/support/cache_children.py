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

from support.cache_helpers import DEADLINE_S, LSN_B, MIB, Rig, noise, tar_of

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
        # What is imported late must be there before root's own files are out of reach.
        with Rig(parent / "warm-up") as rig:
            rig.prepared()
            rig.cache.run_cleanup()
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
    with _new_dir() as directory, Rig(directory) as rig:
        held, bad, new = rig.prepared(), rig.prepared(), rig.timeline()
        rig.path(bad).write_bytes(b"bad")
        with _no_descriptors():
            assert rig.get(held) is None
            assert rig.get(bad) is None
            assert rig.get(new) is None
            rig.prepare(new)
            rig.cache.run_cleanup()
        assert rig.reads == {"error": 2, "miss": 1}, rig.reads
        assert rig.counts() == {"ok": 2, "error": 1}, rig.counts()
        assert "hint: Raise the limit of open files" in log.getvalue()
        assert rig.holds(held)
        assert rig.holds(bad)
        assert rig.get(held) == tar_of(held)
        rig.prepare(new)
        assert rig.get(new) == tar_of(new)
        assert rig.get(bad) is None
        rig.wait_idle()
        assert rig.get(bad) == tar_of(bad)
        rig.cache.run_cleanup()
        rig.check_books()


def out_of_descriptors_at_the_start() -> None:
    """The directory can be locked, and then not be listed for a while."""
    log = _captured_log()
    with _new_dir() as directory:
        rig = Rig(directory)
        timeline = rig.timeline()
        with rig:
            rig.prepare(timeline)
        descriptor = os.dup(0)  # one is left, for the lock file
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (descriptor + 1, limits[1]))
        os.close(descriptor)
        rig.open(wait=False)
        with rig.opened:
            assert not rig.cache.wait_initialized(0.1)
            assert rig.get(timeline) is None
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
            assert rig.cache.wait_initialized(DEADLINE_S)
            assert rig.get(timeline) == tar_of(timeline)
            assert "trying again in 0.02 s\nhint: Raise the limit" in log.getvalue()


def beyond_the_limit_of_file_sizes() -> None:
    """Python ignores SIGXFSZ, so a write beyond the limit raises EFBIG."""
    log = _captured_log()
    with _new_dir() as directory, Rig(directory) as rig:
        timeline = rig.timeline()
        timeline.tarball = lambda _at: noise(2 * MIB)
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (MIB, limits[1]))
        rig.prepare(timeline)
        assert rig.counts() == {"error": 1}, rig.counts()
        assert os.strerror(errno.EFBIG) in log.getvalue()
        rig.check_books()
        rig.prepared()
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        rig.prepare(timeline)
        assert rig.get(timeline) == noise(2 * MIB)
        rig.check_books()


def read_only_directory() -> None:
    """As a plain user, take the right to write away and give it back."""
    log = _captured_log()
    with _plain_users_dir() as directory, Rig(directory) as rig:
        held, gone, new = rig.prepared(), rig.prepared(), rig.timeline()
        gone.advance(LSN_B)
        directory.chmod(0o500)
        rig.prepare(new)
        assert rig.counts() == {"ok": 2, "error": 1}, rig.counts()
        assert "hint: Give the user of this process" in log.getvalue()
        assert rig.get(held) == tar_of(held)
        rig.cache.run_cleanup()
        assert rig.value("bbcache_unlink_failures_total") == 1
        assert rig.get(gone) is None
        assert rig.path(gone).exists()
        rig.wait_idle()
        (directory / "tmp").chmod(0o500)
        rig.prepare(new)
        assert rig.counts() == {"ok": 2, "error": 2}, rig.counts()
        directory.chmod(0o700)
        (directory / "tmp").chmod(0o700)
        rig.prepare(new)
        assert rig.get(new) == tar_of(new)
        rig.cache.run_cleanup()
        assert not rig.path(gone).exists()
        rig.check_books()


def unlistable_directory() -> None:
    """As a plain user, start on a directory that may be entered and written, not listed."""
    log = _captured_log()
    with _plain_users_dir() as directory:
        rig = Rig(directory)
        with rig:
            timeline = rig.prepared()
        directory.chmod(0o300)
        rig.open(wait=False)
        with rig.opened:
            assert not rig.cache.wait_initialized(0.1)
            assert rig.cache.entries() == []
            directory.chmod(0o700)
            assert rig.cache.wait_initialized(DEADLINE_S)
            assert rig.get(timeline) == tar_of(timeline)
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
        with Rig(directory) as rig:
            rig.prepared()


def _expect_refusal(directory: Path) -> None:
    refusal: StoreError | None = None
    try:
        Rig(directory).open()
    except StoreError as error:
        refusal = error
    assert refusal is not None, "it could be opened"
    assert refusal.errno == errno.EACCES, refusal
    assert "hint: " in str(refusal), refusal


def unreadable_entry() -> None:
    """As a plain user, take the right to read one entry away and give it back."""
    log = _captured_log()
    with _plain_users_dir() as directory:
        rig = Rig(directory)
        timeline = rig.timeline()
        rig.seed(timeline).chmod(0)
        with rig:
            assert rig.holds(timeline)
            assert rig.get(timeline) is None
            assert rig.reads == {"error": 1}
            assert "hint: Give the user of this process" in log.getvalue()
            rig.cache.run_cleanup()
            assert rig.holds(timeline)
            rig.path(timeline).chmod(0o600)
            assert rig.get(timeline) == tar_of(timeline)


def quarantine_without_search_permission() -> None:
    """As a plain user, let the quarantine be listed, but none of its files be looked at."""
    with _plain_users_dir() as directory, Rig(directory, verify_reads="always") as rig:
        timeline = rig.prepared()
        content = rig.path(timeline).read_bytes()
        rig.path(timeline).write_bytes(content[:-1] + b"?")
        timeline.advance(LSN_B)
        assert rig.get(timeline) is None
        rig.wait_idle()
        quarantine = directory / "quarantine"
        quarantine.chmod(0o400)
        rig.cache.run_cleanup()
        assert rig.value("bbcache_other_bytes") == len(content)
        quarantine.chmod(0o700)
        rig.check_books()
