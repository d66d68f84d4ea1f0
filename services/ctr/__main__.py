"""`python -m services.ctr`."""

import sys

from services.ctr.server import main

if __name__ == "__main__":
    sys.exit(main())
