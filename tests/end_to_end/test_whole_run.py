"""The whole pipeline with real models, engine, embedder and trainer on a handful of texts, cut off from every network."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest

from aloftrag import artifacts, schemas
from tests.end_to_end.driver import environment, finish, start

DEMO = Path(__file__).parents[2] / "jobs" / "demo"
TEXTS = 4

# Loopback, and a way out that leads nowhere but counts what is sent there.
NAMESPACE = """
set -e
sysctl -qw net.ipv6.conf.all.disable_ipv6=1 net.ipv6.conf.default.disable_ipv6=1
ip link set lo up
ip link add outside type veth peer name nowhere
ip link set nowhere up
ip addr add 10.77.0.1/24 dev outside
ip link set outside up
ip route add default via 10.77.0.2 dev outside
ip neigh add 10.77.0.2 lladdr 02:00:00:00:00:02 dev outside nud permanent
"$@"
echo "packets sent outside: $(ip -s link show outside | awk '/TX:/ {getline; print $2}')"
"""


def can_make_namespaces() -> bool:
    tools = all(shutil.which(tool) for tool in ("unshare", "ip", "sysctl"))
    return tools and subprocess.run(["unshare", "--net", "--mount", "true"], capture_output=True).returncode == 0


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A finished run on a few texts of the demo, and what it printed."""
    folder = tmp_path_factory.mktemp("whole")
    files = sorted((DEMO / "en").glob("station-*.md"))[:TEXTS]
    gold = [json.loads(line) for line in (DEMO / "gold.en.jsonl").read_text().splitlines()]
    contexts = {file.read_text().strip() for file in files}
    (folder / "gold.jsonl").write_text("".join(json.dumps(row) + "\n" for row in gold if row["context"] in contexts))
    settings = {
        "corpus.paths": [str(file) for file in files],
        "evaluation.gold": str(folder / "gold.jsonl"),
        "evaluation.max_questions": 4,
        "annotation.questions_per_text": 2,
        "negatives.require_self_retrieval": False,
        "training.questions_per_chat": 4,
    }
    changes = [part for key, value in settings.items() for part in ("--set", f"{key}={json.dumps(value)}")]
    arguments = ["run", str(DEMO.with_suffix(".yaml")), "--language", "en", "--runs", str(folder / "runs"), *changes]
    command = [sys.executable, "-m", "aloftrag.cli", *arguments]
    if can_make_namespaces():
        command = ["unshare", "--net", "--mount", "bash", "-c", NAMESPACE, "run", *command]
    result = subprocess.run(command, capture_output=True, text=True, env=environment(), timeout=900)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    (folder / "arguments.json").write_text(json.dumps(arguments))
    return folder / "runs" / "demo" / "en", result.stdout


def test_every_artifact_is_there_and_keeps_its_schema(finished: tuple[Path, str]) -> None:
    run, _ = finished
    for name, schema in (
        ("texts", schemas.TEXTS),
        ("annotations", schemas.ANNOTATIONS),
        ("negatives", schemas.NEGATIVES),
        ("clusters", schemas.CLUSTERS),
        ("chats", schemas.CHATS),
        ("selection", schemas.SELECTION),
        ("questions", schemas.QUESTIONS),
        ("answers/base", schemas.ANSWERS),
        ("answers/adapter", schemas.ANSWERS),
    ):
        assert artifacts.count_rows(run / name) > 0, name
        artifacts.hold_schema(run / name, schema)
    for name in ("texts", "annotations", "negatives", "chats", "adapter", "answers"):
        assert artifacts.manifest(run / name), name
    assert artifacts.count_rows(run / "texts") == TEXTS
    assert pl.read_parquet(run / "annotations/*.parquet")["text_id"].n_unique() == TEXTS


def test_the_scores_have_the_form_of_the_contract(finished: tuple[Path, str]) -> None:
    run, printed = finished
    scores = json.loads((run / "scores.json").read_text())
    variant_keys = {
        "citation_accuracy", "citation_exact", "citation_precision", "citation_recall", "citation_f1", "format_ok", "answer_accuracy",
        "answer_f1", "answer_contains", "right_answer_wrong_citation", "easy", "hard",
    }  # fmt: skip
    assert {
        "job", "language", "questions", "questions_from", "contexts", "baselines", "against_baselines", "retrieval", "constrained",
        "base", "adapter", "difference", "verdict", "why",
    } == set(scores)  # fmt: skip
    assert variant_keys <= set(scores["base"])
    assert variant_keys == set(scores["adapter"])
    assert set(scores["difference"]) == {"citation_accuracy", "citation_exact", "answer_f1"}
    assert set(scores["difference"]["citation_exact"]) == {"mean", "ci95", "p"}
    assert scores["questions"] == 4
    assert scores["questions_from"] == "gold"
    assert scores["contexts"] == 4
    assert scores["baselines"]["chance"] == 0.25
    assert scores["verdict"].upper() in printed
    assert "most_similar" in printed


def test_nothing_is_sent_outside(finished: tuple[Path, str]) -> None:
    if not can_make_namespaces():
        pytest.skip("network namespaces can only be made by root with iproute2")
    assert "packets sent outside: 0" in finished[1]


def test_the_same_command_again_does_nothing(finished: tuple[Path, str]) -> None:
    run, _ = finished
    arguments = json.loads((run.parents[2] / "arguments.json").read_text())
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file() and path.name != "report.html"}
    output = finish(start(arguments), seconds=120)
    assert output.count("done before") == 7
    assert before == {path: path.stat().st_mtime_ns for path in before}


VLLM = """
import json, os, sys
os.environ.update(VLLM_CPU_KVCACHE_SPACE="1", VLLM_CPU_OMP_THREADS_BIND="nobind", VLLM_ENABLE_V1_MULTIPROCESSING="0")
from vllm import LLM, SamplingParams
from vllm.lora.request import LoRARequest
if __name__ == "__main__":
    model, adapter = sys.argv[1:]
    llm = LLM(model, dtype="float32", enforce_eager=True, enable_lora=True, max_lora_rank=16, max_model_len=256)
    sampling = SamplingParams(temperature=0, max_tokens=1, logprobs=20)
    prompt = {"prompt_token_ids": list(range(100, 140))}
    for request in (None, LoRARequest("adapter", 1, adapter)):
        (output,) = llm.generate([prompt], sampling, lora_request=request)
        print("LOGPROBS", json.dumps({token: found.logprob for token, found in output.outputs[0].logprobs[0].items()}))
"""


def test_plain_vllm_and_plain_peft_load_the_adapter_and_agree_on_the_next_token(
    finished: tuple[Path, str], smollm2: Path, tmp_path: Path
) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    adapter = finished[0] / "adapter"
    assert artifacts.read_json(adapter / "adapter_config.json")["base_model_name_or_path"] == str(smollm2)
    (tmp_path / "serve.py").write_text(VLLM)
    command = [sys.executable, str(tmp_path / "serve.py"), str(smollm2), str(adapter)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr[-3000:]
    in_vllm = [json.loads(line.partition(" ")[2]) for line in result.stdout.splitlines() if line.startswith("LOGPROBS")]
    base = AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32)
    token_ids = torch.arange(100, 140)[None]
    with torch.no_grad():
        in_peft = [base(token_ids).logits[0, -1].log_softmax(-1)]
        in_peft.append(PeftModel.from_pretrained(base, adapter)(token_ids).logits[0, -1].log_softmax(-1))  # this changes the base
    for served, logprobs in zip(in_vllm, in_peft, strict=True):
        assert len(served) >= 20
        assert [logprobs[int(token)].item() for token in served] == pytest.approx(list(served.values()), abs=1e-2)
    changed = [in_vllm[1][token] - in_vllm[0][token] for token in in_vllm[0].keys() & in_vllm[1].keys()]
    assert max(map(abs, changed)) > 1e-4  # few steps; the same computed twice differs by 1e-6


def test_the_adapters_card_tells_the_scores(finished: tuple[Path, str]) -> None:
    card = (finished[0] / "adapter" / "README.md").read_text()
    assert f"verdict {artifacts.read_json(finished[0] / 'scores.json')['verdict']}" in card


def test_ask_prints_the_cited_texts_and_then_an_answer(finished: tuple[Path, str]) -> None:
    run, _ = finished
    command = [sys.executable, "-m", "aloftrag.cli", "ask", str(run), "What is the call sign of Hightarn?"]
    result = subprocess.run(command, capture_output=True, text=True, env=environment(), timeout=300)
    assert result.returncode == 0, result.stderr[-3000:]
    *cited, answer = result.stdout.splitlines()
    known = set(pl.read_parquet(run / "texts/*.parquet")["text_id"])
    assert cited
    assert set(cited) <= known
    assert answer.strip()
    assert answer not in known


def test_status_and_report_tell_of_the_run(finished: tuple[Path, str]) -> None:
    run, _ = finished
    status = finish(start(["status", str(run)]))
    assert status.count("done") == 7
    report = finish(start(["report", str(run)]))
    assert "demo/en" in report
    page = (run / "report.html").read_text()
    assert "<script" not in page
    assert "http" not in page.replace("http-equiv", "")
