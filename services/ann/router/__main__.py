"""`python -m services.ann.router`."""

import sys

from services.ann.router.server import main

if __name__ == "__main__":
    sys.exit(main())
