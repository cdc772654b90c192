"""Importing this makes `import portconv` find the checkout that this folder lies in, whatever else is installed."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
