"""Benchmarks: each measures two things side by side in one run and ends with one JSON object on a line of its own."""

import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

SHARED = Path(__file__).parents[3] / "shared"


def in_a_process_of_its_own(module: str, *arguments: object) -> dict[str, Any]:
    """What ``python -m MODULE ARGUMENTS`` prints as its last line, a JSON object."""
    command = [sys.executable, "-m", module, *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    found: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    return found


def show(title: str, rows: Sequence[Mapping[str, object]]) -> None:
    """A small table."""
    print(f"\n{title} ({os.cpu_count()} CPUs, {platform.processor() or platform.machine()})")
    names = list(rows[0])
    cells = [names, *([_cell(row[name]) for name in names] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for line in cells:
        print(
            "  ".join(
                cell.ljust(width) if place == 0 else cell.rjust(width) for place, (cell, width) in enumerate(zip(line, widths, strict=True))
            )
        )
    sys.stdout.flush()


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.2f}"
    return f"{value:,}" if isinstance(value, int) else str(value)
