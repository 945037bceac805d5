"""The supervisor's control socket: bytes from whoever may reach it, requests to the loop.

One ROUTER on ipc, in a directory that is closed to others. What does not decode is answered with a
ControlFailure and never raises. Answers to somebody who is gone vanish.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
import zmq

from zraft import clock
from zraft.api import ControlFailure
from zraft.control_api import STOPPING, SupervisorReply, SupervisorRequest
from zraft.errors import EXIT_LOCKED, ControlError, SupervisorError, ZraftError
from zraft.transport.bind import make_router

MAX_REQUESTS = 64  # a turn
MAX_FRAME_BYTES = 1 << 20
LINGER_MS = 500  # the last answer is on its way when the supervisor ends


class ControlSocket:
    """See the module."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], endpoint: str) -> None:
        """Bind. StorageError or SupervisorError when that is impossible."""
        self.endpoint = endpoint
        self.router = make_router(
            context,
            endpoint,
            max_frame_bytes=MAX_FRAME_BYTES,
            mandatory=True,
            now_ms=clock.now_ms,
        )
        self._decoder: msgspec.json.Decoder[SupervisorRequest] = msgspec.json.Decoder(
            SupervisorRequest
        )
        self._encoder = msgspec.json.Encoder()

    def receive(self) -> Iterator[tuple[bytes, SupervisorRequest]]:
        """Yield who asks and what, at most `MAX_REQUESTS`; refuse what is no request."""
        for _ in range(MAX_REQUESTS):
            try:
                parts = self.router.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            if len(parts) != 2:
                continue
            try:
                request = self._decoder.decode(parts[1])
            except (msgspec.MsgspecError, ValueError, RecursionError) as error:
                why = str(error) if isinstance(error, msgspec.ValidationError) else ""
                self.send(parts[0], failure_of(ControlError("not a request", why=why[:200])))
                continue
            yield parts[0], request

    def send(self, identity: bytes, reply: SupervisorReply) -> None:
        """Answer; nothing happens when nobody is there any more."""
        try:
            self.router.send_multipart((identity, self._encoder.encode(reply)), zmq.NOBLOCK)
        except zmq.ZMQError as error:
            if error.errno not in {zmq.EHOSTUNREACH, zmq.EAGAIN}:
                raise

    def close(self) -> None:
        """Close the socket after the last answers have left."""
        self.router.close(LINGER_MS)


def failure_of(error: ZraftError) -> ControlFailure:
    """Return an error as an answer."""
    return ControlFailure(error.code, error.what, error.why, [*error.try_], error.exit_code)


def stopping(name: str) -> SupervisorError:
    """Return the error for a request to a cluster that is being stopped."""
    error = SupervisorError(
        f'cluster "{name}" is being stopped', try_="again in a moment", exit_code=EXIT_LOCKED
    )
    error.code = STOPPING  # type: ignore[misc]  # whoever asked may wait and start a new one
    return error
