"""``python -m streaming.broker``: serve until SIGTERM or SIGINT."""

from __future__ import annotations

import argparse
import logging
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from shared_features.errors import ConfigurationError
from streaming.broker.server import HOST, Broker


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a broker; the exit code: 0 after a signal, 2 if it cannot start."""
    parser = argparse.ArgumentParser(prog="python -m streaming.broker", description=__doc__)
    parser.add_argument("--port", type=int, default=8085, help="TCP port on loopback, 0 for a free one (default 8085)")
    parser.add_argument("--data-dir", type=Path, help="folder that keeps messages over restarts (default: memory)")
    parser.add_argument("--rest-port", type=int, help="TCP port of the REST API, 0 for a free one (default: no REST)")
    parser.add_argument("--max-backlog-bytes", type=int, help="what one topic may keep (default: no limit)")
    chosen = parser.parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    signals = {signal.SIGTERM, signal.SIGINT}
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)  # before threads start, so that only sigwait gets them
    broker = Broker(
        chosen.port, chosen.data_dir, rest_port=chosen.rest_port, max_backlog_bytes=chosen.max_backlog_bytes
    )
    try:
        port = broker.start()
    except ConfigurationError as error:
        print(error, file=sys.stderr)
        return 2
    rest = "" if broker.rest_port is None else f"REST on {HOST}:{broker.rest_port}, "
    print(f"{rest}listening on {HOST}:{port}", flush=True)
    signal.sigwait(signals)
    broker.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main())
