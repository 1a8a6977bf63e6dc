"""The requests to one bucket. The only module that knows obstore.

Every call blocks until it ends, and Python handles no signal meanwhile, so none is made in the
main thread.
"""

from __future__ import annotations

import os
import re
import threading
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol
from urllib.parse import unquote, urlsplit

import obstore
from obstore.exceptions import (
    AlreadyExistsError,
    BaseError,
    PermissionDeniedError,
    UnauthenticatedError,
)
from obstore.store import from_url

from bbcache.errors import BbcacheError, ConfigError, printable, without_credentials
from bbcache.outcomes import FetchResult

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from obstore.store import ClientConfig, ObjectStore, RetryConfig

    from bbcache.tier_config import TierConfig

_PIECE_SIZE_BYTES: Final = 1 << 18
_FILE: Final = "file://"
_ALLOW_HTTP: Final = "allow_http"
_NO_RETRIES: Final[RetryConfig] = {"max_retries": 0}
_SAID: Final = re.compile(r"<(?:Code|Message)>([^<]*)<")  # in an answer of S3 or Azure
_TIMED_OUT: Final = ("timed out", "TimedOut", "operation timed out", "deadline has elapsed")


# In the answer to a GET: of S3, of Azure, of Google Cloud Storage.
_NO_BUCKET: Final = ("NoSuchBucket", "ContainerNotFound", "bucket does not exist")


class BucketError(BbcacheError):
    """A request to the bucket has failed.

    Attributes:
        result: what kind of failure it was.
    """

    def __init__(self, text: str, result: FetchResult) -> None:
        super().__init__(text)
        self.result = result


class Download(NamedTuple):
    """An object that is being read.

    Attributes:
        size_bytes: its size, as the store gives it.
        pieces: its bytes; raises `BucketError`.
    """

    size_bytes: int
    pieces: Iterator[bytes]


class Bucket(Protocol):
    """The objects below one prefix. Thread-safe. Each call raises `BucketError` if it fails."""

    def get(self, name: str) -> Download | None:
        """Begin to read an object; None if there is none."""
        ...

    def put(self, name: str, data: bytearray, *, overwrite: bool) -> bool:
        """Write an object; False if there was one already, unless `overwrite` is set."""
        ...

    def delete(self, name: str) -> bool:
        """Remove an object; False if the store knows that there was none."""
        ...

    def list(self, prefix: str) -> Iterable[tuple[str, int]]:
        """Names and sizes in bytes of the objects whose names begin with `prefix` and a slash."""
        ...


class ObstoreBucket:
    """A bucket by obstore. Thread-safe.

    Args:
        config: the settings.
        connect_timeout_s: seconds to connect.
        read_timeout_s: seconds between two pieces, and to the first one.
        timeout_s: seconds of one request.

    Raises:
        ConfigError: an option is not known, or the URL lacks something.
    """

    def __init__(
        self,
        config: TierConfig,
        *,
        connect_timeout_s: float,
        read_timeout_s: float,
        timeout_s: float,
    ) -> None:
        self._url = config.url
        options: dict[str, Any] = dict(config.options or {})
        self._client: ClientConfig = {
            "allow_http": bool(options.pop(_ALLOW_HTTP, False)),
            "connect_timeout": timedelta(seconds=connect_timeout_s),
            "read_timeout": timedelta(seconds=read_timeout_s),
            "timeout": timedelta(seconds=timeout_s),
        }
        self._options = {name: str(value) for name, value in options.items()}
        self._store: ObjectStore | None = None
        if not self._url.startswith(_FILE):  # a file system may be mounted later
            try:
                self._store = self._open()
            except (BaseError, ValueError) as error:
                raise ConfigError(f"cannot use the tier {self._url}: {_text_of(error)}") from error

    def get(self, name: str) -> Download | None:
        """Begin to read an object; None if there is none."""
        _check_thread()
        try:
            result = obstore.get(self._opened(), name)
            size_bytes = result.meta["size"]
        except FileNotFoundError as error:
            self._check_there(error)
            return None
        except (BaseError, OSError, ValueError) as error:
            raise _failed(error) from error
        return Download(size_bytes, _pieces(result))

    def put(self, name: str, data: bytearray, *, overwrite: bool) -> bool:
        """Write an object; False if there was one already, unless `overwrite` is set."""
        _check_thread()
        try:
            obstore.put(
                self._opened(),
                name,
                memoryview(data),
                mode="overwrite" if overwrite else "create",
                use_multipart=False,
            )
        except AlreadyExistsError:
            return False
        except (BaseError, OSError, ValueError) as error:
            raise _failed(error) from error
        return True

    def delete(self, name: str) -> bool:
        """Remove an object; False if the store knows that there was none."""
        _check_thread()
        try:
            obstore.delete(self._opened(), name)
        except FileNotFoundError:
            return False
        except (BaseError, OSError, ValueError) as error:
            raise _failed(error) from error
        return True

    def list(self, prefix: str) -> Iterator[tuple[str, int]]:
        """Names and sizes in bytes of the objects whose names begin with `prefix` and a slash."""
        _check_thread()
        try:
            for page in obstore.list(self._opened(), prefix):
                for meta in page:
                    yield meta["path"], meta["size"]
        except FileNotFoundError as error:
            raise BucketError(
                f"there is no bucket: {_text_of(error)}", FetchResult.ERROR
            ) from error
        except (BaseError, OSError, ValueError) as error:
            raise _failed(error) from error

    def _check_there(self, error: FileNotFoundError) -> None:
        """Raise `BucketError` if it is the bucket that is not there, and not the object."""
        is_missing = any(words in str(error) for words in _NO_BUCKET)
        if self._url.startswith(_FILE):
            is_missing = not os.path.isdir(unquote(urlsplit(self._url).path))
        if is_missing:
            text = f"there is no bucket: {_text_of(error)}"
            raise BucketError(text, FetchResult.ERROR) from error

    def _opened(self) -> ObjectStore:
        store = self._store
        if store is None:
            store = self._store = self._open()
        return store

    def _open(self) -> ObjectStore:
        if self._url.startswith(_FILE):
            try:
                return from_url(self._url)
            except FileNotFoundError as error:
                raise OSError(str(error)) from error  # the directory, not an object
        config: Any = self._options
        return from_url(
            self._url, config=config, client_options=self._client, retry_config=_NO_RETRIES
        )


def _check_thread() -> None:
    if threading.current_thread() is threading.main_thread():
        raise RuntimeError("a request to a bucket must not be made in the main thread")


def _pieces(result: obstore.GetResult) -> Iterator[bytes]:
    try:
        yield from map(bytes, result.stream(_PIECE_SIZE_BYTES))
    except (BaseError, OSError, ValueError) as error:
        raise _failed(error) from error


def _failed(error: BaseException) -> BucketError:
    whole = str(error)
    if isinstance(error, PermissionDeniedError | UnauthenticatedError):
        result = FetchResult.DENIED
    elif isinstance(error, TimeoutError) or any(words in whole for words in _TIMED_OUT):
        result = FetchResult.TIMEOUT
    else:
        result = FetchResult.ERROR
    return BucketError(_text_of(error), result)


def _text_of(error: BaseException) -> str:
    """What obstore and the store say, in one line.

    obstore adds the structure of the error below it. A store answers in XML, of which the code
    and the message are taken: some add the request.
    """
    whole = without_credentials(str(error).partition("\n\nDebug source:")[0])
    text, _, answer = whole.partition("<")
    said = ": ".join(each[1] for each in _SAID.finditer(answer))
    return printable(" ".join(f"{text} {said}".split()))
