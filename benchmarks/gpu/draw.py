"""The pictures of a run, from its CSV: python -m benchmarks.gpu.draw FILE.csv"""

import sys
from pathlib import Path

from .record import read
from .report import draw

if __name__ == "__main__":
    source = Path(sys.argv[1])
    print(*draw([m for m in read(source) if m.group not in ("host", "network")], source.with_suffix(""), source.stem))
