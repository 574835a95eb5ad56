"""Tells systemd how a service is: `READY=1`, `WATCHDOG=1`, `STATUS=one line`.

The protocol is one datagram per message to the socket named by NOTIFY_SOCKET (sd_notify(3)). Without that
variable nobody listens and nothing is sent, so a daemon started by hand behaves the same. A systemd that is
restarting or too busy must never hold up a beat: a datagram that cannot be taken at once is dropped, the
next beat brings the next one.
"""

import os
import socket


def notify(state: str) -> None:
    """Send `state` to systemd, several assignments separated by newlines; no-op without NOTIFY_SOCKET."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return
    if address.startswith("@"):
        address = "\0" + address[1:]  # Linux's abstract namespace
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as listener:
        try:
            listener.sendto(state.encode(), address)
        except OSError:  # nobody takes it now; see above
            return
