"""The job file: typed and strict; the defaults are the paper's values (arXiv 2501.11929).

An unknown key or a wrong type is an error before anything starts. ``load`` gives the whole job, ``Job.for_language``
one language of it with ``{language}`` filled in.
"""

import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from aloftrag import languages
from aloftrag.errors import UsageError

Auto = Literal["auto"]
Share = Annotated[float, Field(ge=0.0, lt=1.0)]
Similarity = Annotated[float, Field(gt=0.0, le=1.0)]
Count = Annotated[int, Field(ge=1)]
Rating = Annotated[float, Field(ge=0, le=10)]


class Section(BaseModel):
    """A part of the job file: unknown keys and silently converted types are errors."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class Corpus(Section):
    """Which documents: paths or globs of parquet, jsonl, csv, txt or md files."""

    paths: Annotated[list[str], Field(min_length=1)]
    text_column: str = "text"  # for tables; txt and md files are one text each
    chunk_tokens: Annotated[int, Field(ge=16)] | None = None  # None: rows are texts already


class EmbedderPrompts(Section):
    """What some embedders want in front of a question and of a text."""

    query: str = ""
    text: str = ""


class Models(Section):
    """A hub id, a folder, a ``.gguf`` file, or ``package:NAME`` for weights that an installed package carries.

    The language model also as the address of an OpenAI-compatible server that has been started with one of these.
    """

    llm: str = "Qwen/Qwen2.5-7B-Instruct"
    embedder: str = "BAAI/bge-m3"
    embedder_prompts: EmbedderPrompts | None = None


class Drop(Section):
    """Which flaws of a generated question leave it out of training."""

    wrong_language: bool = True  # question or answer is surely in another language than the job's
    refers_to_text: bool = True  # such as "in the text above": nobody who asks has one before him
    copies_instruction: bool = True  # repeats what the model was told


class Annotation(Section):
    """Steps 1 to 3 (paper 3.1 to 3.3)."""

    text_threshold: Rating = 8  # texts rated lower get no questions
    rate_qa: bool = False  # step 3, which the paper found of no use
    qa_threshold: Rating = 8
    questions_per_text: Count = 1
    stop_early: bool = True  # False: questions are written about texts below the threshold too, and left out of training
    layout: Literal["auto", "instructions-first", "text-first"] = "auto"  # of a prompt; auto: what computes fewer tokens
    worked_examples: Annotated[int, Field(ge=0)] = 0  # for models too small to follow an instruction
    max_failed: Annotated[float, Field(ge=0, le=1)] = 0.35  # share of texts that come to nothing, above which the run stops
    drop: Drop = Drop()


class Engine(Section):
    """The language model's engine; ``options`` go to vLLM as they are."""

    max_num_seqs: Count | None = None  # conversations at once; None: vLLM's default
    stall_minutes: Annotated[float, Field(gt=0)] = 10  # a run fails when no row is answered for so long
    options: dict[str, Any] = {}


class Negatives(Section):
    """Step 4 (paper 3.4)."""

    contexts: Annotated[int, Field(ge=2)] | tuple[int, int] = 10  # n: the positive and n - 1 negatives; a range: drawn per chat
    index: Literal["auto", "exact", "ivf"] = "auto"
    near_duplicate_similarity: Similarity | None = None  # from which on texts with the same wording are one; None: only exact copies are
    relative_margin: Share | Auto | None = None  # texts closer to the question than its own text less this share are no negatives
    verify: bool = False  # ask the language model whether what these two skipped answers the question too
    require_self_retrieval: bool = False  # leave out questions that do not find their own text first


# What ``training.preset`` stands for: keys of ``training`` that are not the paper's. Keys given in the job file win.
PRESETS: dict[str, dict[str, Any]] = {
    "paper": {},
    "small-model": {
        "questions_per_chat": 16,
        "citation_weight": 3.0,
        "learning_rate": 1.0e-3,
    },
}


class Training(Section):
    """Step 5 (paper 3.5 and appendix C)."""

    preset: Literal["paper", "small-model"] = "paper"
    lora_r: Annotated[int, Field(ge=1, le=512)] = 64  # vLLM serves no higher rank
    lora_alpha: Count = 32
    lora_dropout: Share = 0.05
    learning_rate: Annotated[float, Field(gt=0)] = 2.0e-4
    epochs: Count = 1
    examples_per_step: Count = 1  # chats for each step of the optimiser, over all workers
    max_tokens: Annotated[int, Field(ge=64)] = 20000  # longest chat
    questions_per_chat: Count = 1  # questions about one set of contexts, one turn each
    citation_weight: Annotated[float, Field(gt=0)] | None = None  # None: one mean over all target tokens
    unanswerable: Share = 0.0  # of the chats, which lack the text that answers: the wanted reply cites none and says so
    validation: Share = 0.1  # of the texts, for the validation loss alone
    keep: Literal["last", "best"] = "last"  # which adapter: that of the last step, or of the lowest validation loss
    batching: Literal["auto", "by-length", "packed"] = "auto"  # of the rows of a step
    strategy: Literal["ddp", "deepspeed-zero2", "deepspeed-zero3"] = "ddp"  # workers share nothing, the optimiser, the weights too
    checkpoint_minutes: Annotated[float, Field(gt=0)] = 10

    @model_validator(mode="before")
    @classmethod
    def _fill_in_preset(cls, data: Any) -> Any:
        preset = data.get("preset") if isinstance(data, dict) else None
        return {**PRESETS[preset], **data} if isinstance(preset, str) and preset in PRESETS else data


class Evaluation(Section):
    """Step 6 (paper 4.3)."""

    gold: str | list[str] | None = None  # tables of context, question, answer (or a list, answers)
    held_out: Share = 0.1  # of the texts, where there is no gold: training asks nothing about them, and they are the test
    judge: str | None = None  # a model's name, as of models.llm, or the address of any OpenAI-compatible server
    max_questions: Count | None = None  # drawn evenly over the texts
    constrained: bool | Auto = "auto"  # replies in the asked form only; auto: if the base keeps it in under 90 % of the questions
    retrieval: Literal["forced", "as-is"] = "forced"  # whether a question's text is shown though the retriever did not find it

    @property
    def gold_paths(self) -> list[str]:
        """The gold paths as a list, empty without gold."""
        return [self.gold] if isinstance(self.gold, str) else list(self.gold or [])


class Resources(Section):
    """Where the work runs; never what it makes."""

    engine_replicas: Count | Auto = "auto"
    tensor_parallel: Count = 1  # GPUs of one engine
    embedder_replicas: Count | Auto = "auto"
    training_workers: Count | tuple[int, int] | Auto = "auto"  # a range: as many as the cluster has at the time
    max_gpus: Count | None = None  # that one language takes at a time

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.max_gpus is None:
            return self
        replicas = 1 if self.engine_replicas == "auto" else self.engine_replicas
        workers = self.training_workers[1] if isinstance(self.training_workers, tuple) else self.training_workers
        for key, asked in (
            ("engine_replicas x tensor_parallel", replicas * self.tensor_parallel),
            ("embedder_replicas", self.embedder_replicas),
            ("training_workers", workers),
        ):
            if isinstance(asked, int) and asked > self.max_gpus:
                raise ValueError(f"resources.max_gpus: {key} is {asked}; expected at least as many, but got {self.max_gpus}")
        return self


# Options of vLLM that have a setting of their own, which other parts read too.
ENGINE_SETTINGS = {
    "max_model_len": "training.max_tokens",
    "max_num_seqs": "engine.max_num_seqs",
    "tensor_parallel_size": "resources.tensor_parallel",
}


class Job(Section):
    """A whole job file."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    languages: Annotated[list[str], Field(min_length=1)]
    corpus: Corpus
    models: Models = Models()
    annotation: Annotation = Annotation()
    engine: Engine = Engine()
    negatives: Negatives = Negatives()
    training: Training = Training()
    evaluation: Evaluation = Evaluation()
    resources: Resources = Resources()
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0

    @model_validator(mode="after")
    def _check(self) -> Self:
        unknown = [code for code in self.languages if not languages.is_known(code)]
        if unknown:
            raise ValueError(f"languages: {unknown[0]!r} is not a known language; expected ISO 639-1 codes such as en, de")
        if len(set(self.languages)) < len(self.languages):
            raise ValueError("languages: each language once")
        if not self.evaluation.gold_paths and not self.evaluation.held_out:
            raise ValueError("evaluation.held_out: 0 leaves nothing to evaluate with; expected a share of the texts, or evaluation.gold")
        for option, key in ENGINE_SETTINGS.items():
            if option in self.engine.options:
                raise ValueError(f"engine.options.{option}: expected the job file's own setting for it, {key}")
        if self.annotation.layout == "text-first" and self.annotation.worked_examples:
            raise ValueError(
                "annotation.layout: text-first and annotation.worked_examples cannot go together, since examples stand before the text; "
                "expected auto or instructions-first"
            )
        if self.models.llm.startswith(("http://", "https://")) and self.engine.options:
            raise ValueError("engine.options: models.llm is a server, which has been started with its own; expected none")
        guards = (self.negatives.relative_margin, self.negatives.near_duplicate_similarity)
        if self.negatives.verify and guards == (None, None):
            raise ValueError(
                "negatives.verify: without a guard no text is skipped that could be asked about; "
                "expected negatives.relative_margin or near_duplicate_similarity too"
            )
        fewest, most = self.context_range
        if not 2 <= fewest <= most:
            raise ValueError(f"negatives.contexts: expected a number from 2 on or [fewest, most], but got {[fewest, most]}")
        self._check_training()
        return self

    def _check_training(self) -> None:
        training, workers = self.training, self.resources.training_workers
        if training.unanswerable and self.negatives.relative_margin is None:
            raise ValueError(
                "training.unanswerable: only the guard can tell that no other text answers a question; "
                "expected negatives.relative_margin too"
            )
        if training.keep == "best" and not training.validation:
            raise ValueError("training.keep: the best adapter is told by the validation loss; expected a share for training.validation too")
        if isinstance(workers, tuple) and not 1 <= workers[0] <= workers[1]:
            raise ValueError(f"resources.training_workers: expected a number or [fewest, most], but got {list(workers)}")
        counts = workers if isinstance(workers, tuple) else (workers, workers)
        for count in counts:
            if isinstance(count, int) and training.examples_per_step % count:
                raise ValueError(
                    f"resources.training_workers: {count} does not divide training.examples_per_step ({training.examples_per_step})"
                )
        if training.strategy != "ddp" and 1 in (workers, training.examples_per_step):
            raise ValueError(
                f"training.strategy: {training.strategy} parts the model's state among workers, and there would be one; "
                "expected more for resources.training_workers and training.examples_per_step"
            )
        if isinstance(workers, tuple) and training.strategy != "ddp":
            raise ValueError(
                f"resources.training_workers: {training.strategy} goes on with as many workers as began it; expected one number"
            )

    def get(self, key: str) -> Any:
        """The value of a dotted key such as ``annotation.text_threshold``, as plain data."""
        value: Any = self
        for part in key.split("."):
            value = getattr(value, part)
        return value.model_dump(mode="json") if isinstance(value, Section) else value

    @property
    def contexts(self) -> int:
        """n: how many texts stand in a RAG prompt (paper 3.4), at most."""
        return self.context_range[1]

    @property
    def context_range(self) -> tuple[int, int]:
        """The fewest and the most texts in a chat."""
        contexts = self.negatives.contexts
        return contexts if isinstance(contexts, tuple) else (contexts, contexts)

    @property
    def may_be_absent(self) -> bool:
        """Whether the model is taught, and so told, that a question may have its answer in no text."""
        return self.training.unanswerable > 0

    def for_language(self, code: str) -> "Job":
        """This job for one of its languages, with ``{language}`` filled in."""
        data = self.model_dump()
        data["languages"] = [code]
        data["corpus"]["paths"] = [path.replace("{language}", code) for path in self.corpus.paths]
        data["evaluation"]["gold"] = [path.replace("{language}", code) for path in self.evaluation.gold_paths] or None
        return Job.model_validate(data)

    def resolved(self) -> "Job":
        """This job with every ``auto`` that can change the result decided, as far as the job alone decides it.

        The layout of prompts without worked examples is left to step 1, which counts the texts' tokens; the index to step 4.
        """
        data = self.model_dump()
        if self.annotation.worked_examples:
            data["annotation"]["layout"] = "instructions-first"
        return Job.model_validate(data)

    @property
    def language(self) -> str:
        """The language of a job made by ``for_language``."""
        (code,) = self.languages
        return code


class _YamlLoader(yaml.SafeLoader):
    """YAML 1.2 where 1.1 surprises: ``no`` is Norwegian, ``1e-3`` is a number."""


_YamlLoader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:bool"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_YamlLoader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile("true|false|True|False|TRUE|FALSE"), list("tfTF"))
_YamlLoader.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+"), list("-+0123456789"))


def load(path: str | Path, overrides: list[str] | None = None) -> Job:
    """Read and check a job file.

    ``overrides`` are ``a.b=value`` settings with YAML values, which win over the file.
    Raises ``UsageError`` with one line that names the file, the key and what was expected.
    """
    try:
        data = yaml.load(Path(path).read_text(encoding="utf-8"), _YamlLoader)
    except OSError as error:
        raise UsageError(f"{path}: cannot read the job file: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: not a YAML file: {' '.join(str(error).split())}") from error
    if not isinstance(data, dict):
        raise UsageError(f"{path}: expected a mapping with at least name, languages and corpus.paths")
    for override in overrides or []:
        _set(data, override)
    try:
        # Through JSON types: a YAML list may fill a tuple, while a text never becomes a number.
        return Job.model_validate(_tuples(data))
    except ValidationError as error:
        raise UsageError(f"{path}: {_first_error(error)}") from error


def _set(data: dict[str, Any], override: str) -> None:
    key, separator, value = override.partition("=")
    if not separator or not key:
        raise UsageError(f"--set {override}: expected KEY=VALUE, such as training.epochs=2")
    *parents, last = key.split(".")
    for parent in parents:
        data = data.setdefault(parent, {})
        if not isinstance(data, dict):
            raise UsageError(f"--set {override}: {parent} is not a section of the job file")
    try:
        data[last] = yaml.load(value, _YamlLoader)
    except yaml.YAMLError as error:
        raise UsageError(f"--set {override}: {value!r} is not a YAML value") from error


def _tuples(data: dict[str, Any]) -> dict[str, Any]:
    """Ranges are written as YAML lists; a strict tuple wants a tuple."""
    for section, key in (("negatives", "contexts"), ("resources", "training_workers")):
        part = data.get(section)
        if isinstance(part, dict) and isinstance(part.get(key), list):
            part[key] = tuple(part[key])
    return data


def _first_error(error: ValidationError) -> str:
    first = error.errors()[0]
    # Pydantic adds the name of a union's member to the place of an error; a job file has no such keys.
    keys = {name for section in Section.__subclasses__() for name in section.model_fields}
    unknown_key = first["type"] == "extra_forbidden"
    key = ".".join(str(part) for part in first["loc"] if part in keys or isinstance(part, int) or unknown_key)
    if unknown_key:
        return f"{key}: unknown key"
    if first["type"] == "missing":
        return f"{key}: required, but not given"
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "value_error":
        return message
    return f"{key}: {message[0].lower() + message[1:]}, but got {first['input']!r}"
