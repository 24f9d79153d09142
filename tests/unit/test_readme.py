"""What the README says of the repository itself."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_each_row_of_the_fault_table_names_tests_that_are_there() -> None:
    table = (ROOT / "README.md").read_text().partition("### When something dies")[2].partition("\n## ")[0]
    rows = [line for line in table.splitlines() if line.startswith("| ")][1:]
    tests = {name for path in ROOT.glob("tests/**/test_*.py") for name in re.findall(r"^def (test_\w+)", path.read_text(), re.MULTILINE)}
    for row in rows:
        named = re.findall(r"`(test_\w+)`", row)
        assert named, row
        assert set(named) <= tests, set(named) - tests
