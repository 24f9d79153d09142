"""What can be checked of a job before any engine starts; every error is a ``UsageError`` of one line."""

from aloftrag import models
from aloftrag.corpus import check_columns
from aloftrag.evaluation import judge
from aloftrag.evaluation.questions import GOLD_COLUMNS, gold_files, read_gold
from aloftrag.job import Job
from aloftrag.prompts import no_answer
from aloftrag.prompts.worked_examples import worked_examples
from aloftrag.steps.load_texts import corpus_files


def check(job: Job) -> None:
    """Paths, columns, worked examples and models of a job for one language (``Job.for_language``).

    A model that is not here yet is fetched or converted now. Raises ``UsageError`` naming the key and what was expected.
    """
    for file in corpus_files(job.corpus):
        check_columns(file, [job.corpus.text_column], "corpus.paths")
    for file in gold_files(job):
        check_columns(file, GOLD_COLUMNS, "evaluation.gold")
        read_gold(file)
    worked_examples(job.language, job.annotation.worked_examples)
    if job.may_be_absent:
        no_answer.statement(job.language)
    models.local_folder(job.models.llm, "llm")
    models.local_folder(job.models.embedder, "embedder")
    if job.evaluation.judge:
        judge.find(job.evaluation.judge)
