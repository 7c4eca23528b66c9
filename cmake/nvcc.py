"""Runs nvcc and keeps what ptxas says of each kernel's registers, spills and stack beside the object, for tools/gates.py.

    python nvcc.py LOG nvcc -c kernels.cu -o kernels.o ...

Everything else that nvcc writes, warnings above all, is passed on.
"""

import subprocess
import sys
from pathlib import Path


def main() -> int:
    log, *command = sys.argv[1:]
    result = subprocess.run([*command, "-Xptxas=-v"], stderr=subprocess.PIPE, text=True)
    resources, follows = [], False
    for line in result.stderr.splitlines(keepends=True):
        # The line of stack and spills is indented below the "Function properties" it belongs to.
        follows = line.startswith("ptxas info") or (follows and line.startswith(" "))
        (resources.append if follows else sys.stderr.write)(line)
    temporary = Path(f"{log}.tmp")
    temporary.write_text("".join(resources))
    temporary.replace(log)
    return result.returncode


if __name__ == "__main__":
    raise SystemExit(main())
