"""The log lines on stderr, in both formats."""

from __future__ import annotations

import json
import logging
import sys

import pytest

from bbcache.cli.log_output import FORMATS, logging_to_stderr
from bbcache.errors import MissingExtraError

LOGGER = logging.getLogger("bbcache.test_log_output")


def fail() -> None:
    """Log a failure with its traceback, and a text with a hint on a line of its own."""
    try:
        int("why")
    except ValueError:
        LOGGER.exception("what\nhint: Do this.")


def test_a_traceback_is_one_line_of_json(capsys: pytest.CaptureFixture[str]) -> None:
    """A collector of logs takes each line for a record."""
    with logging_to_stderr("json", "info", has_access_log=True):
        fail()
    (line,) = capsys.readouterr().err.splitlines()
    record = json.loads(line)
    assert record["message"] == "what\nhint: Do this."
    assert record["exc_info"].endswith("ValueError: invalid literal for int() with base 10: 'why'")
    assert (record["level"], record["logger"]) == ("ERROR", LOGGER.name)
    assert record["time"].endswith("+00:00")


def test_a_traceback_in_text(capsys: pytest.CaptureFixture[str]) -> None:
    """People read it as Python shows it."""
    with logging_to_stderr("text", "info", has_access_log=True):
        fail()
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].endswith(f"+00:00 ERROR {LOGGER.name}: what")
    assert lines[-1].startswith("ValueError: ")


@pytest.mark.parametrize("log_format", FORMATS)
def test_it_leaves_logging_as_it_was(log_format: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Levels and handlers."""
    names = ("bbcache", "bbcache.page_service.access_log")
    before = [
        (logging.getLogger(name).level, logging.getLogger(name).handlers[:]) for name in names
    ]
    with logging_to_stderr(log_format, "error", has_access_log=False):
        LOGGER.warning("not this")
    after = [(logging.getLogger(name).level, logging.getLogger(name).handlers) for name in names]
    assert before == after
    assert capsys.readouterr().err == ""


def test_json_without_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error names the extra."""
    monkeypatch.setitem(sys.modules, "pythonjsonlogger.json", None)
    with (
        pytest.raises(MissingExtraError, match=r"bbcache\[serve\]"),
        logging_to_stderr("json", "info", has_access_log=True),
    ):
        pass
