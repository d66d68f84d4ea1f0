"""`python -m services.ann`."""

import sys

from services.ann.server import main

if __name__ == "__main__":
    sys.exit(main())
