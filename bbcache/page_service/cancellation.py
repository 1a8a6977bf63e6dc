"""Why a session, or the command that it runs, has to end."""

from __future__ import annotations

from collections.abc import Callable

from bbcache.page_service.errors import CanceledError, DisconnectedError, PageServiceError


class Cancellation:
    """The reason to end one session or its command. Thread-safe.

    Args:
        is_client_gone: whether the client has closed its side.
    """

    def __init__(self, is_client_gone: Callable[[], bool]) -> None:
        self._is_client_gone = is_client_gone
        self._is_command_cancelled = False
        self._ending: PageServiceError | None = None
        self._is_immediate = False

    def begin_command(self) -> None:
        """Forget a cancellation that came too late for the command before."""
        self._is_command_cancelled = False

    def cancel_command(self) -> None:
        """End the command that runs, and let the session go on."""
        self._is_command_cancelled = True

    def end_session(self, reason: PageServiceError, *, is_immediate: bool) -> None:
        """End the session: after the command that runs, or in the middle of it.

        Only the first reason is told.
        """
        self._ending = self._ending or reason
        self._is_immediate = self._is_immediate or is_immediate

    def check_command(self) -> None:
        """Return where the command is to go on.

        Raises:
            CanceledError: the client has cancelled it.
            DisconnectedError: the client is gone.
            PageServiceError: the session ends at once, for this reason.
        """
        if self._is_command_cancelled:
            raise CanceledError("canceling statement due to user request")
        self.check_immediate()
        # `end_session` stops reading, which looks like a client that is gone, but comes after.
        if self._ending is None and self._is_client_gone() and self._ending is None:
            raise DisconnectedError("the client is gone")

    def check_immediate(self) -> None:
        """Raise the reason where the session ends at once."""
        if self._is_immediate:
            self.check_session()

    def check_session(self) -> None:
        """Raise the reason where the session takes no more commands."""
        if self._ending is not None:
            # A new one for each session, since an error keeps the frames that it passed.
            raise type(self._ending)(*self._ending.args)
