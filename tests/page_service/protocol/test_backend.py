"""What the service says has the layout of PostgreSQL's manual."""

from __future__ import annotations

from bbcache.page_service.protocol import backend


def test_error_response() -> None:
    """Severity, code and message, and what there is besides; a NUL cannot cut it short."""
    text = backend.error_response("ERROR", "XX000", "a\0b", hint="Try.")
    assert text == (b"E\0\0\0\x20SERROR\0CXX000\0Ma\xef\xbf\xbdb\0HTry.\0\0")


def test_error_response_with_half_a_character() -> None:
    """What UTF-8 cannot say is replaced."""
    assert b"M?\0" in backend.error_response("ERROR", "XX000", "\ud800")


def test_the_rest() -> None:
    """Each in bytes."""
    assert backend.parameter_status("a", "b") == b"S\0\0\0\x08a\0b\0"
    assert backend.backend_key_data(1, b"abcd") == b"K\0\0\0\x0c\0\0\0\1abcd"
    assert backend.command_complete("SELECT 1") == b"C\0\0\0\x0dSELECT 1\0"
    assert backend.copy_data_head(6) == b"d\0\0\0\x0a"
    assert backend.COPY_OUT == b"H\0\0\0\x07\0\0\0"
    assert backend.negotiate_protocol_version(["_pq_.x"]) == (
        b"v\0\0\0\x13\0\3\0\0\0\0\0\1_pq_.x\0"
    )
