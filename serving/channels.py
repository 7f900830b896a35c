"""One gRPC channel per process, target and credentials, shared by all clients that use it."""

from __future__ import annotations

import os
import threading
from typing import Any

import grpc

from serving.client_access import ClientAccess

_LOOPBACK = ("127.", "localhost", "[::1]", "::1", "unix:", "ipv4:127.")
_MESSAGE_LIMIT = -1  # the server's affair; gRPC's default of 4 MB would refuse blocks of a few thousand rows

# A target that stands for several servers, such as the name of a headless service of Kubernetes: all of them are asked
# in turn, and the name again soon after a connection has ended; gRPC would stay with the first, and wait for 30 s.
_SEVERAL: list[tuple[str, Any]] = [
    ("grpc.lb_policy_name", "round_robin"),
    ("grpc.dns_min_time_between_resolutions_ms", 2000),
]

_lock = threading.Lock()
_Key = tuple[int, str, int, ClientAccess | None]
# The credentials are kept with their channel: the id of an object that is gone may become another one's.
_channels: dict[_Key, tuple[grpc.Channel, int, grpc.ChannelCredentials | None]] = {}


def acquire(
    target: str, credentials: grpc.ChannelCredentials | None = None, access: ClientAccess | None = None
) -> grpc.Channel:
    """The process's channel to `target`; hand it back with `release`.

    Args:
        credentials: for TLS; None takes those of ``access``, and plaintext where that has none.
        access: raises OSError or ValueError if its files cannot be used.
    """
    key = (os.getpid(), target, id(credentials), None if credentials is not None else access or ClientAccess())
    with _lock:
        channel, users, kept = _channels.get(key, (None, 0, credentials))
        if channel is None:
            kept = credentials or (access or ClientAccess()).credentials()
            options = _options(target)
            if kept is None:
                channel = grpc.insecure_channel(target, options)
            else:
                channel = grpc.secure_channel(target, kept, options)
        _channels[key] = (channel, users + 1, kept)
        return channel


def release(channel: grpc.Channel) -> None:
    """Give a channel back; the last user closes it."""
    with _lock:
        for key, (known, users, credentials) in _channels.items():
            if known is channel:
                if users > 1:
                    _channels[key] = (known, users - 1, credentials)
                    return
                del _channels[key]
                break
    channel.close()


def _options(target: str) -> list[tuple[str, Any]]:
    return [
        *(_SEVERAL if target.startswith(("dns:", "ipv4:", "ipv6:")) else []),
        ("grpc.max_send_message_length", _MESSAGE_LIMIT),
        ("grpc.max_receive_message_length", _MESSAGE_LIMIT),
        # gRPC's own pauses between connection attempts grow to two minutes: a server that is back must be found.
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.min_reconnect_backoff_ms", 1000),
        ("grpc.max_reconnect_backoff_ms", 2000),
        # http_proxy in the environment is not for this machine's own servers.
        ("grpc.enable_http_proxy", 0 if target.startswith(_LOOPBACK) else 1),
    ]
