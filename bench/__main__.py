"""`python -m bench`: the benches that need nothing but what `make test` installs, one after another."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
RUNS = (
    ("scorers.py", "--rounds", "3", "--players", "5", "--only", "int16", "float32", "numpy"),
    ("receipts.py", "--rounds", "3"),
    ("ledger.py",),
    ("gas.py", "--payees", "64", "1000"),
)

for script, *arguments in RUNS:
    print(f"\n== python bench/{script} {' '.join(arguments)}", flush=True)
    subprocess.run([sys.executable, str(HERE / script), *arguments], check=True)
