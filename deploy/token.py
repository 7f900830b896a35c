"""Write a random token to a file, unless it has one: python token.py FILE."""

import os
import secrets
import sys


def main() -> int:
    """Returns the exit code."""
    path = sys.argv[1]
    if os.path.exists(path):
        return 0
    aside = path + ".new"
    with open(aside, "w") as file:
        file.write(secrets.token_hex(32) + "\n")
    os.chmod(aside, 0o444)  # the services that read it run as different users; the volume is theirs alone
    os.rename(aside, path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
