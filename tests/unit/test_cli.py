import subprocess
import sys

import pytest

HEAVY = ["torch", "ray", "vllm", "faiss", "transformers", "sentence_transformers", "polars", "deepspeed", "pyarrow", "scipy"]
IMPORT = "import aloftrag.cli"
HELP = """
import aloftrag.cli
try:
    aloftrag.cli.main({arguments})
except SystemExit as stopped:
    assert stopped.code == 0, stopped.code
"""


@pytest.mark.parametrize(
    "code",
    [IMPORT, HELP.format(arguments=["--help"]), HELP.format(arguments=["run", "--help"])],
    ids=["import", "help", "help of run"],
)
def test_the_command_line_answers_without_a_heavy_library(code: str) -> None:
    code += f"\nimport sys\nprint('LOADED', sorted(set(sys.modules) & set({HEAVY})))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "LOADED []"
