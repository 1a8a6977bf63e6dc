"""Checking every object of a bucket, and trying what a tier needs of one.

Both make requests, so neither runs in the main thread.
"""

from __future__ import annotations

import secrets
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Final, NamedTuple

from bbcache.archive.incoming import IncomingArchive
from bbcache.errors import ArchiveError
from bbcache.storage.index import make_key
from bbcache.storage.verify import Finding, Verdict
from bbcache.tier.bucket import BucketError, ObstoreBucket
from bbcache.tier.keys import KeyRing
from bbcache.tier.object_format import PREAMBLE_SIZE_BYTES, Address, ObjectCheck
from bbcache.tier.start_check import hint_for

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from bbcache.tier_config import TierConfig

_PROBE_SIZE_BYTES: Final = 1 << 16


class BucketAudit:
    """Checks the signature and the seal of each object of an epoch. For one thread.

    Args:
        config: the settings; `upload_timeout` bounds each request.

    Raises:
        ConfigError: a key cannot be used, or an option is not known.
    """

    def __init__(self, config: TierConfig) -> None:
        self._config = config
        self._keys = KeyRing(config.key_files)
        self._bucket = _open(config)

    def objects(self) -> list[tuple[str, int]]:
        """Names and sizes of all objects; raises `BucketError` if they cannot be listed."""
        try:
            return sorted(self._bucket.list(self._config.epoch))
        except BucketError as error:
            url = self._config.url
            text = f"cannot list {url}: {error}\nhint: {hint_for(url)}"
            raise BucketError(text, error.result) from error

    def run(self, objects: list[tuple[str, int]]) -> Iterator[Finding]:
        """Read and check each of the objects; one that is removed meanwhile is left out."""
        for name, size_bytes in objects:
            address = Address.of_name(name)
            if address is None:
                reason = "no basebackup has this name"
                yield Finding(name, Verdict.FOREIGN, size_bytes, reason)
                continue
            try:
                if not self._check(address):
                    continue
            except ArchiveError as error:
                yield Finding(name, Verdict.BAD, size_bytes, str(error))
            except BucketError as error:
                yield Finding(name, Verdict.UNREADABLE, size_bytes, str(error))
            else:
                yield Finding(name, Verdict.GOOD, size_bytes)

    def _check(self, address: Address) -> bool:
        """Check an object; False if it is gone."""
        download = self._bucket.get(address.name)
        if download is None:
            return False
        check = ObjectCheck(
            address, download.size_bytes, self._keys, allow_unsigned=self._config.allow_unsigned
        )
        archive = IncomingArchive(make_key(address.tenant_id, address.timeline_id), address.lsn)
        for piece in download.pieces:
            archive.add(check.archive_part(piece))
        check.finish()
        archive.finish()
        return True


class Trial(NamedTuple):
    """One step of a probe.

    Attributes:
        what: the step.
        seconds: how long it took.
        problem: why it failed, or what to know about it; empty if all is well.
        is_fatal: whether a tier cannot work like that.
    """

    what: str
    seconds: float
    problem: str = ""
    is_fatal: bool = False


def probe(config: TierConfig) -> Iterator[Trial]:
    """Try each request that a tier makes, on an object that is removed again.

    Raises:
        ConfigError: an option is not known.
    """
    bucket = _open(config)
    name = f"{config.epoch}/bbcache-probe-{secrets.token_hex(8)}"
    data = bytearray(secrets.token_bytes(PREAMBLE_SIZE_BYTES + _PROBE_SIZE_BYTES))
    steps: tuple[tuple[str, Callable[[], str]], ...] = (
        ("list", lambda: _try_list(bucket, config.epoch)),
        ("put", lambda: "" if bucket.put(name, data, overwrite=False) else "it is there already"),
        ("get", lambda: _try_get(bucket, name, bytes(data))),
        ("get what is not there", lambda: _try_absent(bucket, name)),
        ("overwrite", lambda: "" if bucket.put(name, data, overwrite=True) else "was refused"),
        ("delete", lambda: "" if bucket.delete(name) else "the object was not there"),
    )
    has_put = False
    try:
        for what, step in steps:
            trial = _timed(what, step)
            has_put = has_put or what == "put"
            yield trial
            if what in ("list", "put") and trial.problem:
                return
            if what == "put":
                yield _try_conflict(bucket, name, data)
        has_put = False
    finally:
        if has_put:
            with suppress(BucketError):  # a step before has failed, and was reported
                bucket.delete(name)


def _timed(what: str, step: Callable[[], str]) -> Trial:
    begun_s = time.perf_counter()
    try:
        problem = step()
    except BucketError as error:
        problem = str(error)
    return Trial(what, time.perf_counter() - begun_s, problem, is_fatal=bool(problem))


def _try_conflict(bucket: ObstoreBucket, name: str, data: bytearray) -> Trial:
    """Two nodes write the same bytes, so a store that lets both win does no harm."""
    trial = _timed("put again", lambda: str(bucket.put(name, data, overwrite=False)))
    if trial.problem == "False":
        return trial._replace(problem="", is_fatal=False)
    if trial.problem == "True":
        harmless = "was not refused: equal objects are written twice, which costs a request"
        return trial._replace(problem=harmless, is_fatal=False)
    return trial


def _try_list(bucket: ObstoreBucket, epoch: str) -> str:
    next(iter(bucket.list(epoch)), None)
    return ""


def _try_get(bucket: ObstoreBucket, name: str, data: bytes) -> str:
    download = bucket.get(name)
    if download is None:
        return "the object is not there after it was put"
    if download.size_bytes != len(data) or b"".join(download.pieces) != data:
        return "the object has other bytes than were put"
    return ""


def _try_absent(bucket: ObstoreBucket, name: str) -> str:
    return "" if bucket.get(f"{name}-absent") is None else "there is an object"


def _open(config: TierConfig) -> ObstoreBucket:
    timeout_s = config.upload_timeout
    return ObstoreBucket(
        config, connect_timeout_s=timeout_s, read_timeout_s=timeout_s, timeout_s=timeout_s
    )
