"""``aloftrag ask``: retrieve from a run's texts and answer with its adapter."""

import asyncio
import functools
import tempfile
from pathlib import Path

from pydantic import ValidationError

from aloftrag import artifacts, languages, storage
from aloftrag import models as local_models
from aloftrag.artifacts import Run
from aloftrag.engine import starter
from aloftrag.engine.vllm import on_gpu
from aloftrag.errors import RunError
from aloftrag.job import Job
from aloftrag.prompts import rag
from aloftrag.prompts.chat import ChatPrompt
from aloftrag.retrieval import near_duplicates, shards
from aloftrag.retrieval.embedder import Embedder
from aloftrag.retrieval.text_store import TextStore
from aloftrag.training.base_model import hold_adapter, is_trained
from aloftrag.training.merge import merge_adapter


def open_run(folder: Path) -> Run:
    """The run in a folder, from its job.json; raises ``RunError`` when there is none."""
    if not (folder / "job.json").is_file():
        raise RunError(f"{folder}: no run there (no job.json); expected RUNS/JOB/LANGUAGE")
    try:
        job = Job.model_validate_json((folder / "job.json").read_text(encoding="utf-8"))
    except ValidationError as error:
        raise RunError(f"{folder}/job.json: not a job of this version ({error.errors()[0]['msg']})") from error
    return Run(job, folder.resolve() if storage.is_local(folder) else folder)


def ask(run: Run, question: str) -> tuple[list[str], str]:
    """The ids of the cited texts and the answer; raises ``RunError`` when the adapter is not finished or its reply is unusable."""
    for artifact in ("texts", "negatives", "adapter"):
        if artifacts.manifest(run.artifact(artifact)) is None:
            raise RunError(f"{run.folder}: {artifact} is not finished; run the job first")
    adapter = run.artifact("adapter")
    hold_adapter(adapter, run.job)
    if not is_trained(adapter):
        raise RunError(f"{adapter}: never trained, B is 0 in all its layers; run the job with --redo tune_adapter")
    from transformers import AutoTokenizer

    models = run.job.models
    queries = Embedder(models.embedder, models.embedder_prompts).embed([question], "query")
    clusters_of = functools.partial(near_duplicates.clusters_of, run.job, run.artifact("clusters"))
    index = shards.open_here(run.artifact("index"))
    (found,) = near_duplicates.nearest_distinct(index, queries, run.job.contexts, [None], clusters_of)
    context_ids = list(found)
    texts = TextStore(run.artifact("texts")).texts(context_ids)
    longest = local_models.longest_prompt(models.llm, run.job.training.max_tokens)
    tokenizer = AutoTokenizer.from_pretrained(local_models.local_folder(models.llm, "llm"))
    language = languages.english_name(run.job.language)
    while True:  # as many contexts as the model takes, the most similar first
        messages = rag.first_turns([texts[text_id] for text_id in context_ids], question, language, may_be_absent=run.job.may_be_absent)
        prompt = ChatPrompt(messages, rag.reply_tokens(longest), form=rag.form(len(context_ids), may_be_absent=run.job.may_be_absent))
        if len(prompt.token_ids(tokenizer)) + prompt.max_tokens <= longest:
            break
        if len(context_ids) == 1:
            raise RunError("the question and its most similar text are longer than the model takes")
        context_ids.pop()
    completion = asyncio.run(_complete(run, prompt))
    reply = rag.read(completion, len(context_ids), may_be_absent=run.job.may_be_absent)
    if reply is None:
        raise RunError(f"the model's reply cites nothing that can be read: {completion!r}")
    return [context_ids[position - 1] for position in reply.cited_positions], reply.answer


async def _complete(run: Run, prompt: ChatPrompt) -> str:
    adapter = storage.local(run.artifact("adapter"))
    with tempfile.TemporaryDirectory() as folder:
        if on_gpu():
            engine = starter(run, adapter=adapter)()
        else:
            merged = Path(folder) / "merged"
            merge_adapter(run.job.models.llm, adapter, merged)
            engine = starter(run, model=str(merged))()
        try:
            return (await engine.complete(prompt)).text
        finally:
            engine.close()
