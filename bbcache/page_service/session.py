"""One client served: its bytes, its waits, and its commands."""

from __future__ import annotations

import logging
import math
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol

from bbcache import lifecycle
from bbcache.outcomes import Source
from bbcache.page_service.auth.permission import EVERYTHING, Permission
from bbcache.page_service.command_log import CommandLog, EndedCommand, one_line
from bbcache.page_service.config import PageServiceConfig
from bbcache.page_service.connections import Connection, Connections
from bbcache.page_service.copy_out import CopyOut
from bbcache.page_service.errors import (
    BadTokenError,
    CommandError,
    DisconnectedError,
    IdleTimeoutError,
    PageServiceError,
    ProtocolError,
    ShutdownError,
    TlsRequiredError,
    UnauthorizedError,
)
from bbcache.page_service.metrics import Ending, ServiceMetrics
from bbcache.page_service.protocol import conversation as c
from bbcache.page_service.protocol.command import BasebackupCommand, NoOpCommand, parse_command
from bbcache.page_service.source import BasebackupSource, OpenBasebackup

_FAREWELL_TIMEOUT_S: Final = 1.0
_SHOWN_CHARACTERS: Final = 100

log = logging.getLogger(__name__)


class Verifier(Protocol):
    """Proves tokens; `bbcache.page_service.auth.tokens.TokenKeys` is one. Thread-safe."""

    def verify(self, token: str) -> Permission:
        """What the token opens; raises `BadTokenError` where it proves nothing."""
        ...


@dataclass(slots=True)
class _Served:
    """A command whose answer is made, or sent in part."""

    command: BasebackupCommand
    started_s: float
    origin: Source | None = None
    copy: CopyOut | None = None

    def sent_bytes(self, failure: BaseException | None) -> int:
        if self.copy is None:
            return 0
        if self.copy.whole is None:
            return self.copy.sent_bytes
        return len(self.copy.whole) if failure is None else 0


class Session:
    """Serves one connection, from its first byte to its last. For one thread at a time.

    Args:
        connection: the client.
        connections: those that it is one of, and whose commands it may cancel.
        source: where archives come from.
        config: the service's settings.
        metrics: counts.
        command_log: of the commands that have ended.
        verifier: proves tokens; None where none are asked for.
        tls: how TLS is spoken; None where it is not.
        clock: seconds that only grow.
        wall_clock: seconds since 1970, for the expiry of tokens.

    Attributes:
        deadline_s: by when the client must have said the next thing, by the clock.
    """

    def __init__(
        self,
        connection: Connection,
        connections: Connections,
        source: BasebackupSource,
        config: PageServiceConfig,
        metrics: ServiceMetrics,
        command_log: CommandLog,
        verifier: Verifier | None,
        tls: ssl.SSLContext | None,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._connection = connection
        self._transport = connection.transport
        self._connections = connections
        self._source = source
        self._config = config
        self._metrics = metrics
        self._command_log = command_log
        self._verifier = verifier
        self._tls = tls
        self._leave = self._transport.before_wait
        self._clock = clock
        self._wall_clock = wall_clock
        self._permission = EVERYTHING
        self._served: _Served | None = None  # has not ended yet
        self._conversation = c.Conversation(
            config.max_message_size_bytes,
            wants_token=verifier is not None,
            has_tls=tls is not None,
            process_id=connection.process_id,
            secret=connection.secret,
        )
        self._handshake_deadline_s = (
            connection.waiting_since_s or clock()
        ) + config.handshake_timeout_s
        self.deadline_s = self._handshake_deadline_s
        self._seen_count = -1  # messages that had come when the next two were set
        self._idle_deadline_s = self._message_deadline_s = math.inf

    def fileno(self) -> int:
        """The descriptor of the socket."""
        return self._transport.fileno()

    def serve(self) -> bool:
        """Serve what has come of the client, up to the answer; raises nothing.

        Returns:
            Whether it goes on, by `finish`; False where it is gone or had to go, and the
            socket is closed.
        """
        self._connection.waiting_since_s = None
        return self._goes_on_after(self._converse)

    def finish(self) -> float | None:
        """Send the client what it has not been sent yet; raises nothing.

        Returns:
            By when it must say more, by the clock, of which the next `serve` and `finish`
            are to know; None where it is gone or had to go, and the socket is closed.
        """
        return self.deadline_s if self._goes_on_after(self._answer_and_wait) else None

    def _goes_on_after(self, step: Callable[[], bool]) -> bool:
        goes_on = False
        try:
            goes_on = step()
            if not goes_on:
                self._metrics.connections[Ending.CLOSED].inc()
        except PageServiceError as error:
            self._metrics.connections[_ending_of(error)].inc()
            log.info("connection of %s ended: %s", self._connection.peer, one_line(error))
            self._say_farewell(error)
        except Exception as error:
            self._metrics.connections[Ending.FAILED].inc()
            log.exception("connection of %s failed", self._connection.peer)
            self._account(error)
        finally:
            if not goes_on:
                self.close()
        return goes_on

    def close(self) -> None:
        """Close the socket: the connection has ended."""
        self._transport.close()
        self._connections.remove(self._connection)
        self._metrics.refresh()

    def _converse(self) -> bool:
        """Take some of what has come, and make the answers; False where that was the last."""
        data = self._transport.receive()
        if data is None:
            return True
        if not data:
            return False
        self._conversation.feed(data)
        self._answer_all()
        if self._conversation.is_closed:
            self._flush()
            return False
        return True  # what is left is heard of again, when others have had their turn

    def _answer_all(self) -> None:
        """Answer every whole message; the last answer is not sent yet."""
        is_first = True
        while (event := self._conversation.next_event()) is not None:
            if not is_first:
                self._flush()
                self._leave()  # others do not wait for one who asks for much at once
            is_first = False
            self._answer(event)

    def _answer_and_wait(self) -> bool:
        self._flush()
        now_s = self._clock()
        self.deadline_s = self._deadline_s(now_s)
        if now_s >= self.deadline_s:
            raise IdleTimeoutError("the client has been silent, or slow, for too long")
        self._connection.waiting_since_s = now_s
        return True

    def _flush(self) -> None:
        """Send all answers; a command has ended when its answer is sent.

        Raises:
            DisconnectedError: the client is gone or does not take them.
            PageServiceError: it must go now.
        """
        self._send_output()
        if not self._conversation.is_closed:
            self._transport.check()

    def _send_output(self, timeout_s: float | None = None) -> None:
        data = self._conversation.take_output()
        if not data:
            return
        try:
            self._transport.send(data, timeout_s=timeout_s)
        except BaseException as error:
            self._account(error)
            raise
        self._account(None)

    def _deadline_s(self, now_s: float) -> float:
        """By when the next message must be there in full; a slow one has less time."""
        self._connection.is_let_in = self._conversation.is_let_in
        if not self._connection.is_let_in:
            return self._handshake_deadline_s
        if self._conversation.message_count != self._seen_count:
            self._seen_count = self._conversation.message_count
            self._idle_deadline_s = now_s + self._config.idle_timeout_s
            self._message_deadline_s = math.inf
        if self._conversation.is_within_message and self._message_deadline_s == math.inf:
            self._message_deadline_s = now_s + self._config.message_timeout_s
        return min(self._idle_deadline_s, self._message_deadline_s)

    def _answer(self, event: c.Event) -> None:
        if isinstance(event, c.CommandGiven):
            self._run_command(event.text)
        elif isinstance(event, c.TlsRequested):
            if self._conversation.answer_tls():
                self._flush()
                assert self._tls is not None
                self._leave()
                self._transport.start_tls(self._tls, self._handshake_deadline_s)
        elif isinstance(event, c.TokenGiven):
            assert self._verifier is not None
            self._leave()
            self._permission = _verified(self._verifier, event.token)
            self._conversation.let_in()
        elif isinstance(event, c.CancelRequested):
            self._connections.cancel(event.process_id, event.secret)

    def _run_command(self, text: str) -> None:
        self._connection.is_canceled = False
        try:
            command = parse_command(text)
            if isinstance(command, NoOpCommand):
                self._conversation.complete(command.tag)
            else:
                self._serve(command)
        except DisconnectedError:
            raise
        except PageServiceError as error:
            self._conversation.fail(error)
        except Exception:
            log.exception("the command %s failed", ascii(text[:_SHOWN_CHARACTERS]))
            self._conversation.fail(CommandError("internal error; the log has more"))

    def _serve(self, command: BasebackupCommand) -> None:
        """Answer a command; it has not ended before the answer is sent."""
        self._check_permission(command)
        self._metrics.commanded(is_full=command.is_full)
        self._served = served = _Served(command, self._clock())
        try:
            basebackup = self._open(command)
            served.origin = basebackup.origin
            with basebackup.file:
                served.copy = copy = CopyOut(
                    basebackup.file,
                    basebackup.size_bytes,
                    is_gzip=command.is_gzip,
                    before_wait=self._leave,
                )
                self._conversation.begin_copy()
                if copy.whole is None:
                    self._transport.send(self._conversation.take_output(), more=True)
                    copy.run(self._transport, self._connection.check_cancelled)
            if copy.whole is not None:
                self._conversation.copy(copy.whole)
            self._conversation.end_copy()
        except BaseException as error:
            self._account(error)
            raise

    def _open(self, command: BasebackupCommand) -> OpenBasebackup:
        held = self._source.open_held(command)
        if held is not None:
            return held
        self._leave()
        with lifecycle.callback():
            return self._source.open(command, self._connection.check_cancelled)

    def _account(self, failure: BaseException | None) -> None:
        """Count and log the command that has been served last, if that has not been done."""
        served, self._served = self._served, None
        if served is None:
            return
        ended = EndedCommand(
            served.command,
            self._connection.peer,
            served.origin,
            failure,
            served.sent_bytes(failure),
            self._clock() - served.started_s,
            self._wall_clock(),
        )
        self._metrics.copied_bytes.inc(ended.sent_bytes)
        if not isinstance(failure, ShutdownError):  # which Neon does not observe either
            self._metrics.served(ended.result, ended.origin, ended.seconds)
        self._command_log.add(ended)

    def _check_permission(self, command: BasebackupCommand) -> None:
        try:
            self._permission.check(command.tenant_id, command.timeline_id, self._wall_clock())
        except UnauthorizedError as error:
            log.warning("%s for %s was refused: %s", command, self._connection.peer, error)
            raise

    def _say_farewell(self, error: PageServiceError) -> None:
        """Tell the client why it must go, where it can still be told; nobody waits for it."""
        if isinstance(error, DisconnectedError):
            self._account(error)
            return
        self._conversation.fail(error)
        try:
            self._send_output(_FAREWELL_TIMEOUT_S)
        except DisconnectedError:
            log.debug("%s is gone already", self._connection.peer)


def _verified(verifier: Verifier, token: str) -> Permission:
    """What a token opens. Of a verifier that fails, only the kind of its failure is told."""
    try:
        return verifier.verify(token)
    except PageServiceError:
        raise
    except Exception as error:  # noqa: BLE001 - its text and traceback may have the token
        kind = type(error).__name__
    raise BadTokenError(f"the token cannot be verified: {kind}")


def _ending_of(error: PageServiceError) -> Ending:
    kinds: dict[type[PageServiceError], Ending] = {
        BadTokenError: Ending.UNAUTHORIZED,
        DisconnectedError: Ending.BROKEN,
        IdleTimeoutError: Ending.TIMEOUT,
        ProtocolError: Ending.PROTOCOL,
        ShutdownError: Ending.SHUTDOWN,
        TlsRequiredError: Ending.UNAUTHORIZED,
    }
    return kinds.get(type(error), Ending.FAILED)
