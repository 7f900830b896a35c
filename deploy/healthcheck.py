"""Exit code 0 if an address answers 200, else 1: python healthcheck.py URL. For images that have no curl."""

import sys
import urllib.error
import urllib.request


def main() -> int:
    """Returns the exit code."""
    try:
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # a proxy is not for this machine's own
        with opener.open(sys.argv[1], timeout=2) as answer:
            return 0 if answer.status == 200 else 1
    except (OSError, urllib.error.URLError) as error:
        sys.stderr.write(f"{sys.argv[1]} does not answer 200: {error}\n")
        return 1


if __name__ == "__main__":
    sys.exit(main())
