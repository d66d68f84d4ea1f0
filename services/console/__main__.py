"""`python -m services.console`."""

import sys

from services.console.server import main

if __name__ == "__main__":
    sys.exit(main())
