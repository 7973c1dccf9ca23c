"""Free ports of this machine that no outgoing connection takes in the meantime: the kernel gives those from 32768 on away."""

from __future__ import annotations

import contextlib
import random
import socket

BELOW = range(15_000, 32_000)


def free_ports(count: int) -> list[int]:
    """Different ports on which nobody listens. Drawn: two processes that ask at the same time hardly get the same ones."""
    with contextlib.ExitStack() as stack:
        found: list[int] = []
        while len(found) < count:
            port = random.SystemRandom().choice(BELOW)
            with contextlib.suppress(OSError):
                stack.enter_context(socket.socket()).bind(("127.0.0.1", port))
                found.append(port)
        return found
