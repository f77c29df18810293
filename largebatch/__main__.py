"""``python -m largebatch`` is the command ``largebatch``."""

import os
import sys
from contextlib import suppress

if __name__ == "__main__":
    # As for the command: a file in the folder we are in takes no module's place. Python 3.11 sees
    # to that by itself if told to (-P, PYTHONSAFEPATH).
    with suppress(FileNotFoundError):
        safe = getattr(sys.flags, "safe_path", sys.flags.isolated)
        if not safe and os.path.abspath(sys.path[0]) == os.getcwd():
            del sys.path[0]
    from largebatch.cli import main

    sys.exit(main())
