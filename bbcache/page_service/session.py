"""One client served: its handshake, its login and its commands, a turn at a time."""

from __future__ import annotations

import logging
import os
import socket
import time
from enum import Enum
from typing import Final

from bbcache import lifecycle
from bbcache.ids import TenantId
from bbcache.page_service.access_log import account, one_line
from bbcache.page_service.auth.permission import EVERYTHING, verified
from bbcache.page_service.cancellation import Cancellation
from bbcache.page_service.copy_out import CopyOut
from bbcache.page_service.errors import (
    CommandError,
    DisconnectedError,
    Ending,
    IdleTimeoutError,
    NoRoomError,
    PageServiceError,
    TooManyConnectionsError,
    UnauthorizedError,
)
from bbcache.page_service.protocol.command import BasebackupCommand, NoOpCommand, parse_command
from bbcache.page_service.protocol.conversation import (
    CancelRequested,
    CommandGiven,
    Conversation,
    Event,
    LoginRequested,
    TlsRequested,
)
from bbcache.page_service.service import Service
from bbcache.page_service.source import OpenBasebackup
from bbcache.page_service.transport import READ_SIZE_BYTES, Transport

_SECRET_SIZE_BYTES: Final = 4  # that of protocol 3.0
_FAREWELL_TIMEOUT_S: Final = 1.0
_SHOWN_CHARACTERS: Final = 100
_STALLED_S: Final = 1.0  # a client that takes nothing for so long may lose its thread
_TURN_MESSAGES: Final = 32  # about 150 microseconds
_COMMAND_COST: Final = 8  # messages

log = logging.getLogger(__name__)


class Turn(Enum):
    """What follows a turn of a session."""

    WAIT = "the session waits for input"
    MORE = "the client has sent more than a turn takes"
    OVER = "the session has ended, and its socket is closed"


class Session:
    """Serves one connection, from its first byte to its last.

    One thread at a time calls `serve`; any thread may call `end` and `cancel_command`.

    Args:
        service: what it shares with other sessions.
        sock: the connection; it is closed with the session.
        peer: the address of the client, for the log.

    Attributes:
        deadline_s: when the next input must be there.
        is_logged_in: whether the client was admitted.
        process_id: see `bbcache.page_service.clients.Client`, as for all below.
    """

    def __init__(self, service: Service, sock: socket.socket, peer: str) -> None:
        self._service = service
        self._peer = peer
        self._transport = Transport(sock, service.config.send_timeout_s, self._check_wait)
        self._cancellation = Cancellation(self._transport.is_client_gone)
        self._permission = EVERYTHING
        self._has_received = False
        self._has_more = False  # the last turn has left messages
        now_s = time.monotonic()
        self.process_id = service.clients.new_process_id()
        self.secret = os.urandom(_SECRET_SIZE_BYTES)
        self.is_logged_in = False
        self.tenant_id: TenantId | None = None
        self.idle_since_s: float | None = now_s
        self.busy_since_s = now_s
        self.unpublished_bytes = 0
        self._sending: tuple[OpenBasebackup, CopyOut] | None = None
        self._has_served_command = False  # in this turn
        self._conversation = Conversation(
            wants_token=service.verifier is not None,
            has_tls=service.tls_context is not None,
            process_id=self.process_id,
            secret=self.secret,
        )
        self.deadline_s = now_s + service.config.handshake_timeout_s
        self._seen_count = 0  # messages that had arrived when the deadline was set

    def fileno(self) -> int:
        """Return the descriptor of the socket; -1 once it is closed."""
        return self._transport.fileno()

    def end(self, reason: PageServiceError, *, is_immediate: bool) -> None:
        """End the session: after the command that runs, or in the middle of it."""
        self._cancellation.end_session(reason, is_immediate=is_immediate)
        self._transport.stop_reading()

    def cancel_command(self) -> None:
        """End the command that runs."""
        self._cancellation.cancel_command()

    def close(self) -> None:
        """Close the socket: the session has ended."""
        self._transport.close()
        self._service.clients.remove(self)
        self._service.metrics.refresh()

    def close_inherited(self) -> None:
        """See `bbcache.lifecycle.ThreadOwner`."""
        self._transport.close_inherited()

    def serve(self) -> Turn:
        """Serve a turn of what the client has sent; raises nothing.

        It waits for nothing that the client has yet to send.
        """
        self.idle_since_s, self.busy_since_s = None, time.monotonic()
        turn = Turn.OVER
        try:
            turn = self._serve_turn()
            if turn is Turn.OVER:
                self._service.metrics.connections[Ending.CLOSED].inc()
        except PageServiceError as error:
            self.say_farewell(error, _FAREWELL_TIMEOUT_S if self.is_logged_in else 0.0)
        except Exception:
            self._service.metrics.connections[Ending.FAILED].inc()
            log.exception("connection of %s failed", self._peer)
        finally:
            if turn is Turn.OVER:
                self.close()
            else:
                self.idle_since_s = time.monotonic()
        return turn

    def say_farewell(self, error: PageServiceError, timeout_s: float) -> None:
        """Tell the client why it must go, where it can still be told, and count that."""
        self._service.metrics.connections[error.ending].inc()
        log.info("connection of %s ended: %s", self._peer, one_line(error))
        if isinstance(error, DisconnectedError):
            return
        self._fail(error)
        try:
            self._transport.send(self._conversation.take_output(), timeout_s=timeout_s)
        except PageServiceError:
            log.debug("%s is gone already", self._peer)

    def _serve_turn(self) -> Turn:
        self._has_served_command = False
        self._cancellation.check_session()
        data = None
        if not self._has_more:
            self._begin_direct_tls()
            data = self._transport.receive()
            if data == b"":
                return Turn.OVER
        if data:
            self._has_received = True
            self._conversation.feed(data)
        self._has_more = self._answer_turn()
        self._send_output()
        if self._conversation.is_closed:
            return Turn.OVER
        self._cancellation.check_session()
        if self._has_more or (data and len(data) == READ_SIZE_BYTES):
            return Turn.MORE
        return self._wait_for_input()

    def _begin_direct_tls(self) -> None:
        """Speak TLS with a client that begins with it, without a request."""
        context = self._service.tls_context
        if not self._has_received and context is not None and self._transport.begins_with_tls():
            self._has_received = True
            self._transport.begin_tls(context(), needs_alpn=True)
            self._conversation.begin_direct_tls()

    def _answer_turn(self) -> bool:
        """Answer what has arrived, up to a turn's worth; whether it was so much."""
        budget = _TURN_MESSAGES
        while budget > 0 and not self._conversation.is_closed:
            before = self._conversation.message_count
            event = self._conversation.next_event(budget)
            budget -= self._conversation.message_count - before
            if event is None:
                break
            self._answer(event)
            if isinstance(event, LoginRequested):
                # The rest has a turn of its own, in another pool of workers.
                return self._conversation.is_within_message
            if self._has_served_command:
                budget -= _COMMAND_COST
                self._cancellation.check_session()
        return budget <= 0

    def _answer(self, event: Event) -> None:
        if isinstance(event, CommandGiven):
            self._run_command(event.text)
        elif isinstance(event, TlsRequested):
            if self._conversation.answer_tls():
                self._send_output()
                assert self._service.tls_context is not None
                self._transport.begin_tls(self._service.tls_context())
        elif isinstance(event, LoginRequested):
            self._log_in(event.token)
        elif isinstance(event, CancelRequested):
            self._service.clients.cancel(event.process_id, event.secret)

    def _log_in(self, token: str | None) -> None:
        if token is not None:
            assert self._service.verifier is not None
            self._permission = verified(self._service.verifier, token)
            self.tenant_id = self._permission.tenant_id
        self._service.clients.place(self)
        self._conversation.let_in()
        self.is_logged_in = True

    def _wait_for_input(self) -> Turn:
        """Set the time for the next message, which the bytes of a message do not extend.

        Raises:
            IdleTimeoutError: the client has used up its time.
        """
        now_s, count = time.monotonic(), self._conversation.message_count
        if self.is_logged_in and count != self._seen_count:
            self._seen_count = count
            self.deadline_s = now_s + self._service.config.idle_timeout_s
        if now_s >= self.deadline_s:
            raise IdleTimeoutError("the client has been silent, or slow, for too long")
        return Turn.WAIT

    def _send_output(self) -> None:
        data = self._conversation.take_output()
        if data:
            self._transport.send(data, timeout_s=None if self.is_logged_in else 0.0)

    def _check_wait(self, waited_s: float) -> None:
        """End a wait for the client to take more, where it must."""
        self._cancellation.check_immediate()
        self._check_place()
        if waited_s >= _STALLED_S and self._service.must_yield(to_own_group=True):
            raise DisconnectedError("the client takes nothing, and others wait for a thread")

    def _check_command(self) -> None:
        """End a command, where it must."""
        self._cancellation.check_command()
        self._check_place()
        if self._service.must_yield(to_own_group=False):
            raise TooManyConnectionsError(
                "there are too few threads, and this tenant has more than the others"
            )

    def _check_place(self) -> None:
        if self._sending is not None and self._sending[0].must_close(self._sending[1].sent_bytes):
            raise TooManyConnectionsError("another tenant waits for the place of this archive")

    def _run_command(self, text: str) -> None:
        self._cancellation.begin_command()
        self._has_served_command = True
        try:
            command = parse_command(text)
            if isinstance(command, NoOpCommand):
                self._conversation.complete(command)
            else:
                self._conversation.check_transaction()
                self._serve_command(command)
        except PageServiceError as error:
            if error.is_fatal:
                raise
            self._fail(error)
        except Exception:
            log.exception("the command %s failed", ascii(text[:_SHOWN_CHARACTERS]))
            self._fail(CommandError("internal error; the log has more"))

    def _fail(self, error: PageServiceError) -> None:
        self._service.metrics.errors[error.sqlstate].inc()
        self._conversation.fail(error)

    def _serve_command(self, command: BasebackupCommand) -> None:
        self._check_permission(command)
        if self._permission.tenant_id is None and self.tenant_id != command.tenant_id:
            self.tenant_id = command.tenant_id
            self._service.clients.place(self)
        self._service.metrics.commands["Fullbackup" if command.is_full else "Basebackup"].inc()
        started_s = time.monotonic()
        basebackup = copy = failure = None
        try:
            basebackup = self._open(command)
            with basebackup.file:
                if basebackup.is_unpublished:
                    self.busy_since_s = time.monotonic()
                    self.unpublished_bytes = basebackup.size_bytes
                copy = CopyOut(
                    self._transport,
                    basebackup.file,
                    basebackup.size_bytes,
                    is_gzip=command.is_gzip,
                )
                self._sending = basebackup, copy
                copy.run(*self._conversation.copy_frame(), self._check_command)
        except BaseException as error:
            failure = error
            raise
        finally:
            self.unpublished_bytes = 0
            self._sending = None
            account(
                self._service.metrics,
                command,
                self._peer,
                None if basebackup is None else basebackup.origin,
                failure,
                0 if copy is None else copy.sent_bytes,
                time.monotonic() - started_s,
            )
            failure = None  # its traceback has this frame

    def _open(self, command: BasebackupCommand) -> OpenBasebackup:
        """Open an archive; where others hold the room for it, they may have to go."""
        while True:
            try:
                with lifecycle.callback():
                    return self._service.source.open(command, self._check_command)
            except NoRoomError:
                if not self._service.clients.make_room(self.tenant_id):
                    raise

    def _check_permission(self, command: BasebackupCommand) -> None:
        try:
            self._permission.check(command.tenant_id, command.timeline_id, time.time())
        except UnauthorizedError as error:
            log.warning("%s for %s was refused: %s", command, self._peer, error)
            raise
