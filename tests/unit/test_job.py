import ast
import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

import aloftrag
from aloftrag.errors import UsageError
from aloftrag.job import PRESETS, Job, Section, Training, load

# The contract's defaults (design.md), and the three keys that have none.
REQUIRED = """
name: xquad
languages: [en, de]
corpus: {paths: ["data/xquad.{language}.parquet"]}
"""
CONTRACT = """
name: xquad
languages: [en, de]
corpus:
  paths: ["data/xquad.{language}.parquet"]
  text_column: text
  chunk_tokens: null
models:
  llm: Qwen/Qwen2.5-7B-Instruct
  embedder: BAAI/bge-m3
  embedder_prompts: null
annotation:
  {text_threshold: 8, rate_qa: false, qa_threshold: 8, questions_per_text: 1, stop_early: true, layout: auto, worked_examples: 0,
   max_failed: 0.35, drop: {wrong_language: true, refers_to_text: true, copies_instruction: true}}
engine:      {max_num_seqs: null, stall_minutes: 10, options: {}}
negatives:
  {contexts: 10, index: auto, near_duplicate_similarity: null, relative_margin: null, verify: false, require_self_retrieval: false}
training:
  {preset: paper, lora_r: 64, lora_alpha: 32, lora_dropout: 0.05, learning_rate: 2.0e-4, epochs: 1, examples_per_step: 1, 
   max_tokens: 20000, questions_per_chat: 1, citation_weight: null, unanswerable: 0.0, validation: 0.1, keep: last, batching: auto,
   strategy: ddp, checkpoint_minutes: 10}
evaluation:  {gold: null, held_out: 0.1, judge: null, max_questions: null, constrained: auto, retrieval: forced}
resources:   {engine_replicas: auto, tensor_parallel: 1, embedder_replicas: auto, training_workers: auto, max_gpus: null}
seed: 0
"""


@pytest.fixture
def write(tmp_path: Path) -> Any:
    def write(text: str) -> Path:
        path = tmp_path / "job.yaml"
        path.write_text(text, encoding="utf-8")
        return path

    return write


def the_error(path: Path, *overrides: str) -> str:
    with pytest.raises(UsageError) as caught:
        load(path, list(overrides))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_defaults_are_the_contracts(write: Any) -> None:
    assert load(write(REQUIRED)).model_dump(mode="json") == yaml.safe_load(CONTRACT)


def test_a_job_that_writes_every_default_out_is_the_same_job(write: Any) -> None:
    short, long = (load(write(text)).for_language("de").model_dump(mode="json") for text in (REQUIRED, CONTRACT))
    assert json.dumps(short) == json.dumps(long)  # 8 and 8.0 would be two fingerprints


def test_a_job_read_back_from_its_run_folder_is_the_same_job(write: Any) -> None:
    job = load(write(REQUIRED)).for_language("de")
    again = load(write(json.dumps(job.model_dump(mode="json"))))
    assert json.dumps(again.model_dump(mode="json")) == json.dumps(job.model_dump(mode="json"))


@pytest.mark.parametrize("missing", ["name", "languages", "corpus", "paths"])
def test_what_has_no_default_is_required(write: Any, missing: str) -> None:
    data = yaml.safe_load(REQUIRED)
    data.pop(missing, None)
    if missing == "paths":
        data["corpus"] = {"text_column": "text"}
    assert the_error(write(yaml.safe_dump(data))).endswith(
        f"job.yaml: {'corpus.paths' if missing == 'paths' else missing}: required, but not given"
    )


@pytest.mark.parametrize(
    ("added", "key"),
    [
        ("epochs: 1", "epochs"),
        ("training: {lora_rank: 1}", "training.lora_rank"),
        ("annotation: {drop: {language: true}}", "annotation.drop.language"),
        ("models: {embedder_prompts: {question: x}}", "models.embedder_prompts.question"),
    ],
)
def test_an_unknown_key_is_an_error_that_names_file_and_key(write: Any, added: str, key: str) -> None:
    path = write(REQUIRED + added)
    assert the_error(path) == f"{path}: {key}: unknown key"


@pytest.mark.parametrize(
    ("added", "key", "expected"),
    [
        ("training: {epochs: '2'}", "training.epochs", "integer"),
        ("training: {epochs: 2.0}", "training.epochs", "integer"),
        ("training: {epochs: true}", "training.epochs", "integer"),
        ("training: {epochs: 0}", "training.epochs", "greater than or equal to 1"),
        ("training: {learning_rate: fast}", "training.learning_rate", "number"),
        ("training: {validation: 1.0}", "training.validation", "less than 1"),
        ("training: {keep: first}", "training.keep", "'last' or 'best'"),
        ("training: 5", "training", "dictionary"),
        ("annotation: {rate_qa: 1}", "annotation.rate_qa", "boolean"),
        ("annotation: {text_threshold: 11}", "annotation.text_threshold", "less than or equal to 10"),
        ("annotation: {drop: {wrong_language: 'yes'}}", "annotation.drop.wrong_language", "boolean"),
        ("negatives: {contexts: 1}", "negatives.contexts", "greater than or equal to 2"),
        ("evaluation: {constrained: maybe}", "evaluation.constrained", "boolean"),
        ("evaluation: {gold: 5}", "evaluation.gold", "string"),
        ("engine: {options: []}", "engine.options", "dictionary"),
        ("resources: {engine_replicas: 0}", "resources.engine_replicas", "greater than or equal to 1"),
        ("seed: one", "seed", "integer"),
        ("seed: -1", "seed", "greater than or equal to 0"),
        ("corpus: {paths: a.txt}", "corpus.paths", "list"),
        ("corpus: {paths: []}", "corpus.paths", "at least 1 item"),
        ("corpus: {paths: [5]}", "corpus.paths.0", "string"),
        ("languages: en", "languages", "list"),
        ("languages: []", "languages", "at least 1 item"),
        ("languages: [en, xx]", "languages", "'xx' is not a known language; expected ISO 639-1"),
        ("languages: [de, de]", "languages", "each language once"),
        ("name: ../up", "name", "pattern"),
        ("name: ''", "name", "pattern"),
        ("resources: {training_workers: 2}", "resources.training_workers", "does not divide training.examples_per_step (1)"),
        ("{resources: {training_workers: [1, 3]}, training: {examples_per_step: 4}}", "resources.training_workers", "3 does not divide"),
        ("{resources: {training_workers: [4, 2]}, training: {examples_per_step: 4}}", "resources.training_workers", "[fewest, most]"),
        (
            "{resources: {training_workers: [1, 2]}, training: {examples_per_step: 4, strategy: deepspeed-zero3}}",
            "resources.training_workers",
            "expected one number",
        ),
        ("training: {strategy: deepspeed-zero3}", "training.strategy", "there would be one"),
        (
            "{resources: {training_workers: 1}, training: {examples_per_step: 4, strategy: deepspeed-zero2}}",
            "training.strategy",
            "there would be one",
        ),
        ("training: {lora_r: 1000}", "training.lora_r", "512"),
        ("training: {unanswerable: 0.1}", "training.unanswerable", "expected negatives.relative_margin too"),
        ("training: {keep: best, validation: 0.0}", "training.keep", "expected a share for training.validation"),
        ("training: {preset: small}", "training.preset", "'paper' or 'small-model'"),
        ("negatives: {verify: true}", "negatives.verify", "relative_margin or near_duplicate_similarity"),
        ("negatives: {contexts: [5, 3]}", "negatives.contexts", "[fewest, most]"),
        ("negatives: {contexts: [1, 3]}", "negatives.contexts", "from 2 on"),
        ("evaluation: {gold: [], held_out: 0.0}", "evaluation.held_out", "nothing to evaluate with"),
        ("{models: {llm: 'http://h:1/v1'}, engine: {options: {block_size: 32}}}", "engine.options", "models.llm is a server"),
        ("{annotation: {layout: text-first, worked_examples: 3}}", "annotation.layout", "cannot go together"),
        ("engine: {options: {max_model_len: 512}}", "engine.options.max_model_len", "training.max_tokens"),
    ],
)
def test_a_wrong_value_is_one_line_that_names_file_and_key_and_what_was_expected(write: Any, added: str, key: str, expected: str) -> None:
    path = write(yaml.safe_dump({**yaml.safe_load(REQUIRED), **yaml.safe_load(added)}))
    error = the_error(path)
    assert error.startswith(f"{path}: {key}: ")
    assert expected in error


@pytest.mark.parametrize("text", ["", "[]", "name", "name: [", "name: x: y", "\x00"])
def test_what_is_no_yaml_mapping_is_an_error_that_names_the_file(write: Any, text: str) -> None:
    path = write(text)
    assert the_error(path).startswith(f"{path}: ")


def test_a_missing_job_file_is_an_error_that_names_it(tmp_path: Path) -> None:
    assert the_error(tmp_path / "none.yaml") == f"{tmp_path}/none.yaml: cannot read the job file: No such file or directory"


def test_a_preset_fills_in_what_the_job_file_does_not_give(write: Any) -> None:
    preset = PRESETS["small-model"]
    assert preset
    training = load(write(REQUIRED + "training: {preset: small-model, learning_rate: 0.5}")).training
    assert training.learning_rate == 0.5
    given = {"preset": "small-model", "learning_rate": 0.5}
    assert training.model_dump() == {**Training().model_dump(), **preset, **given}
    assert load(write(REQUIRED), ["training.preset=paper"]).training == Training()
    assert load(write(REQUIRED), ["training.preset=small-model"]).for_language("en").resolved().training == Training(preset="small-model")


def test_contexts_and_workers_may_be_ranges(write: Any) -> None:
    ranges = ["negatives.contexts=[2, 10]", "training.examples_per_step=8", "resources.training_workers=[2, 8]"]
    job = load(write(REQUIRED), ranges)
    assert (job.contexts, job.context_range, job.resources.training_workers) == (10, (2, 10), (2, 8))
    assert load(write(REQUIRED + "negatives: {contexts: 4}")).context_range == (4, 4)


def test_the_language_code_is_filled_into_every_path(write: Any) -> None:
    job = load(
        write(REQUIRED.replace('"]}', '", "more/{language}/*.{language}.md"]}') + "evaluation: {gold: ['gold.{language}.csv', all.csv]}")
    )
    one = job.for_language("de")
    assert one.corpus.paths == ["data/xquad.de.parquet", "more/de/*.de.md"]
    assert one.evaluation.gold_paths == ["gold.de.csv", "all.csv"]
    assert (one.language, one.languages, job.languages) == ("de", ["de"], ["en", "de"])


def test_a_single_gold_path_is_filled_in_and_no_gold_stays_none(write: Any) -> None:
    assert load(write(REQUIRED), ["evaluation.gold=g.{language}.csv"]).for_language("en").evaluation.gold_paths == ["g.en.csv"]
    assert load(write(REQUIRED)).for_language("en").evaluation.gold is None


LISTED = ["training.epochs=3", "languages=[fi]", "negatives.contexts=4", "annotation.drop.wrong_language=false"]


def test_settings_of_the_command_line_win_over_the_file(write: Any) -> None:
    path = write(REQUIRED + "training: {epochs: 2, lora_r: 8}")
    job = load(path, [*LISTED, "models.embedder_prompts.query='query: '", "training.epochs=5"])
    assert (job.training.epochs, job.training.lora_r, job.languages, job.contexts) == (5, 8, ["fi"], 4)
    assert job.get("models.embedder_prompts") == {"query": "query: ", "text": ""}
    assert job.annotation.drop.wrong_language is False


def test_settings_of_the_command_line_may_be_null_or_hold_an_equals_sign(write: Any) -> None:
    job = load(write(REQUIRED + "evaluation: {max_questions: 5}"), ["evaluation.max_questions=null", "models.llm=a/b=c"])
    assert job.evaluation.max_questions is None
    assert job.models.llm == "a/b=c"


@pytest.mark.parametrize(
    ("override", "named"), [("training.epochs", "KEY=VALUE"), ("=5", "KEY=VALUE"), ("name.x=5", "name is not a section")]
)
def test_a_setting_that_is_no_setting_is_an_error_that_shows_it(write: Any, override: str, named: str) -> None:
    error = the_error(write(REQUIRED), override)
    assert error.startswith(f"--set {override}: ")
    assert named in error


@pytest.mark.parametrize(
    ("override", "key"), [("training.epoch=5", "training.epoch"), ("training.epochs=many", "training.epochs"), ("train.epochs=1", "train")]
)
def test_a_setting_of_the_command_line_is_checked_like_one_of_the_file(write: Any, override: str, key: str) -> None:
    path = write(REQUIRED)
    assert the_error(path, override).startswith(f"{path}: {key}: ")


# Every key is read.


def keys_of(model: type[Section], above: str = "") -> Iterator[str]:
    for name, field in model.model_fields.items():
        inner = [
            kind
            for kind in (field.annotation, *getattr(field.annotation, "__args__", ()))
            if isinstance(kind, type) and issubclass(kind, Section)
        ]
        yield from keys_of(inner[0], f"{above}{name}.") if inner else [above + name]


@cache
def attributes_read() -> set[tuple[str, str]]:
    """(name, attribute) of every ``name.attribute`` outside the job file's own module; of ``a.b.c``, b and c."""
    found = set()
    package = Path(aloftrag.__file__).parent
    for file in package.rglob("*.py"):
        if file == package / "job.py":
            continue
        nodes = list(ast.walk(ast.parse(file.read_text(encoding="utf-8"))))
        words = {node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)}
        for node in nodes:
            if isinstance(node, ast.Attribute):
                found.add((last_name(node.value), node.attr))
            elif isinstance(node, ast.Call) and last_name(node.func) == "getattr":
                found |= {(last_name(node.args[0]), word) for word in words}
    return found


def last_name(node: ast.AST) -> str:
    name = node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""
    return name.lstrip("_")


# The names under which code holds a section, beside its own, and the properties through which a key is read.
ALSO_HELD_AS = {"training": "settings", "embedder_prompts": "prompts"}
READ_THROUGH = {"languages": "language", "evaluation.gold": "gold_paths"}


IN_JOB_ITSELF = {"training.preset"}  # it fills in others


@pytest.mark.parametrize("key", sorted(set(keys_of(Job)) - IN_JOB_ITSELF))
def test_every_key_of_the_job_file_is_read(key: str) -> None:
    *above, name = key.split(".")
    section = above[-1] if above else "job"
    holders = {section, ALSO_HELD_AS.get(section, section)} | ({"job"} if key == "negatives.contexts" else set())
    assert {(holder, READ_THROUGH.get(key, name)) for holder in holders} & attributes_read(), f"{key} is never read"


def test_a_key_that_nothing_reads_would_be_seen() -> None:
    assert ("training", "colour") not in attributes_read()


def test_the_keys_that_are_walked_are_the_contracts() -> None:
    def dotted(data: dict[str, Any], above: str = "") -> Iterator[str]:
        for name, value in data.items():
            yield from dotted(value, f"{above}{name}.") if isinstance(value, dict) and value else [above + name]

    inner = {"models.embedder_prompts.query", "models.embedder_prompts.text"}
    assert set(keys_of(Job)) - inner == set(dotted(yaml.safe_load(CONTRACT))) - {"models.embedder_prompts"}


@pytest.mark.parametrize(
    ("resources", "asked"),
    [
        ("{max_gpus: 2, tensor_parallel: 4}", "engine_replicas x tensor_parallel is 4"),
        ("{max_gpus: 2, engine_replicas: 3}", "engine_replicas x tensor_parallel is 3"),
        ("{max_gpus: 2, embedder_replicas: 3}", "embedder_replicas is 3"),
        ("{max_gpus: 2, training_workers: 4}", "training_workers is 4"),
        ("{max_gpus: 2, training_workers: [1, 4]}", "training_workers is 4"),
    ],
)
def test_what_asks_for_more_gpus_than_a_job_may_take_is_refused(write: Any, resources: str, asked: str) -> None:
    path = write(REQUIRED + f"training: {{examples_per_step: 12}}\nresources: {resources}")
    assert the_error(path) == f"{path}: resources.max_gpus: {asked}; expected at least as many, but got 2"
    assert load(write(REQUIRED + "resources: {max_gpus: 2, tensor_parallel: 2}")).resources.max_gpus == 2
