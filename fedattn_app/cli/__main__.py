"""``python -m fedattn_app.cli`` is the same as ``fedattn``."""

import sys

from fedattn_app.cli.app import main

if __name__ == "__main__":
    sys.exit(main())
