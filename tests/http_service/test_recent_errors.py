"""The last warnings and errors of a log."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import pytest

from bbcache.http_service.recent_errors import RecentErrors

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def logger() -> Iterator[logging.Logger]:
    """A logger of the test's own, which does not propagate."""
    logger = logging.getLogger("test_recent_errors")
    logger.propagate = False
    logger.setLevel(logging.DEBUG)
    yield logger
    logger.handlers.clear()


def test_the_last_ones_are_kept(logger: logging.Logger) -> None:
    """Newest first, so many and no more, warnings and above."""
    errors = RecentErrors(most=3)
    logger.addHandler(errors)
    for number in range(5):
        logger.warning(f"number {number}")  # noqa: G004 - so that no two have the same wording
        logger.info("not this one")
    kept = errors.newest_first()
    assert [each.text for each in kept] == ["number 4", "number 3", "number 2"]
    assert {(each.level, each.logger) for each in kept} == {("WARNING", "test_recent_errors")}
    assert all(each.at.endswith("+00:00") for each in kept)


def test_what_comes_again_and_again_hides_nothing(logger: logging.Logger) -> None:
    """Records of one wording are one line, with the newest text and their number."""
    errors = RecentErrors(most=3)
    logger.addHandler(errors)
    logger.error("%s is bad and was taken out", "an archive")
    for number in range(50):
        logger.warning("client %d was refused", number)
    kept = errors.newest_first()
    assert [(each.text, each.times) for each in kept] == [
        ("client 49 was refused", 50),
        ("an archive is bad and was taken out", 1),
    ]
    assert kept[0].first_at <= kept[0].at


def test_an_exception_is_named(logger: logging.Logger) -> None:
    """An exception is named by its type and text, without the traceback."""
    errors = RecentErrors()
    logger.addHandler(errors)
    logger.error("what", exc_info=RuntimeError("why"))
    (kept,) = errors.newest_first()
    assert (kept.level, kept.text) == ("ERROR", "what\nRuntimeError: why")


def test_a_long_text_is_cut(logger: logging.Logger) -> None:
    """So that a page has a size."""
    errors = RecentErrors()
    logger.addHandler(errors)
    logger.error("x" * 10_000)
    assert len(errors.newest_first()[0].text) == 1003


def test_a_record_that_cannot_be_shown(
    logger: logging.Logger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is dropped, and nothing else happens."""
    monkeypatch.setattr(logging, "raiseExceptions", False)
    errors = RecentErrors()
    logger.addHandler(errors)
    logger.error("%d", "no number")
    assert errors.newest_first() == []
