"""Puts this folder last on the search path, where a script of it has put it first.

`strategies.py`, here, has the name of a package that the others need. Import this before that.
"""

import sys
from pathlib import Path

HERE = str(Path(__file__).parent)
sys.path[:] = [*(path for path in sys.path if path != HERE), HERE]
