"""The client of an OpenAI-compatible server, against one that fails as it is told to."""

import asyncio
import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from aloftrag import cli
from aloftrag.engine import Completion, PromptRefused
from aloftrag.engine.server import ServerEngine, StartChatServerEngine, StartServerEngine
from aloftrag.errors import RunError, UsageError
from aloftrag.models import local_folder, served_model
from aloftrag.prompts.chat import ChatPrompt

MESSAGES = [{"role": "user", "content": "Is it seven?"}]
ASKED = ChatPrompt(MESSAGES, 5, form="(yes|no)", alternatives=2)  # type: ignore[arg-type]


class Server:
    """Answers "yes", after the failures that were put into ``failures`` (a status code; 0 drops the connection)."""

    def __init__(self, model: Path):
        self.failures: list[int] = []
        self.is_strict = False  # refuses what is not in OpenAI's interface
        self.requests: list[dict[str, Any]] = []
        self.at_once = self.most_at_once = 0
        self.seconds = 0.0  # that an answer takes
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self._send(200, {"object": "list", "data": [{"id": "tiny", "object": "model", "root": str(model), "max_model_len": 64}]})

            def do_POST(self) -> None:
                request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                server.requests.append(request)
                if server.is_strict and "structured_outputs" in request:
                    self._send(400, {"error": {"message": "unknown field structured_outputs"}})
                    return
                if server.failures:
                    status = server.failures.pop(0)
                    if status:
                        self._send(status, {"error": {"message": f"failure {status}"}})
                    else:
                        self.connection.close()
                    return
                server.at_once += 1
                server.most_at_once = max(server.most_at_once, server.at_once)
                time.sleep(server.seconds)
                server.at_once -= 1
                logprobs = {"top_logprobs": [{"yes": -0.1, "no": -2.5}], "token_logprobs": [-0.1, -0.2]}
                said: dict[str, Any] = {"text": "yes", "logprobs": logprobs}
                if self.path.endswith("/chat/completions"):
                    said = {"message": {"role": "assistant", "content": "Yes."}}
                self._send(200, {"object": "text_completion", "choices": [{**said, "finish_reason": "stop"}]})

            def _send(self, status: int, data: Any) -> None:
                body = json.dumps(data).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def server(tiny_llm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("openai._base_client.INITIAL_RETRY_DELAY", 0.01)
    served_model.cache_clear()
    started = Server(tiny_llm)
    yield started
    started.close()
    served_model.cache_clear()


def complete(server: Server, prompts: list[ChatPrompt], requests: int = 8, retries: int = 5) -> list[Completion]:
    async def ask() -> list[Completion]:
        engine: ServerEngine = StartServerEngine(server.url, 1000, requests, retries)()
        return await asyncio.gather(*(engine.complete(prompt) for prompt in prompts))

    return asyncio.run(ask())


def test_a_prompt_goes_as_the_token_ids_of_our_own_engine_and_the_reply_comes_back(server: Server, tiny_llm: Path) -> None:
    from transformers import AutoTokenizer

    (completion,) = complete(server, [ASKED])
    assert (completion.text, completion.ended) == ("yes", True)
    assert completion.first_tokens == pytest.approx({"yes": 0.9048, "no": 0.0821}, abs=1e-4)
    assert completion.logprob == pytest.approx(-0.3)
    (request,) = server.requests
    assert request["prompt"] == ASKED.token_ids(AutoTokenizer.from_pretrained(tiny_llm))
    assert request["structured_outputs"] == {"regex": "(yes|no)"}
    assert (request["model"], request["max_tokens"], request["temperature"], request["logprobs"]) == ("tiny", 5, 0.0, 2)


@pytest.mark.parametrize("failure", [429, 500, 503, 0])
def test_a_busy_or_failing_server_is_asked_again(server: Server, failure: int) -> None:
    server.failures = [failure] * 3
    assert complete(server, [ASKED])[0].text == "yes"
    assert len(server.requests) == 4


@pytest.mark.parametrize(("failure", "tries"), [(503, 3), (0, 3), (404, 1)])
def test_a_server_that_does_not_answer_in_the_end_is_one_line(server: Server, failure: int, tries: int) -> None:
    server.failures = [failure] * 10
    with pytest.raises(RunError, match=rf"models\.llm: {server.url} gave no answer"):
        complete(server, [ASKED], retries=2)
    assert len(server.requests) == tries


def test_a_prompt_that_the_server_refuses_is_an_error_of_its_row(server: Server) -> None:
    server.failures = [400]
    with pytest.raises(PromptRefused, match=r"^the server refused the prompt: .*failure 400"):
        complete(server, [ASKED])
    assert complete(server, [ASKED])[0].text == "yes"


def test_no_more_requests_are_under_way_than_allowed(server: Server) -> None:
    server.seconds = 0.1
    assert len(complete(server, [ASKED] * 20, requests=4)) == 20
    assert server.most_at_once == 4


def test_a_prompt_longer_than_the_server_takes_is_not_sent(server: Server) -> None:
    long = ChatPrompt([{"role": "user", "content": "seven " * 60}], 5)
    with pytest.raises(PromptRefused, match=r"text too long: .* the model takes 64"):
        complete(server, [long])
    assert not server.requests


def test_the_weights_are_those_that_the_server_was_started_with_also_after_it_ended(server: Server, tiny_llm: Path) -> None:
    assert local_folder(server.url, "llm") == tiny_llm
    server.close()
    served_model.cache_clear()
    assert local_folder(server.url, "llm") == tiny_llm


def test_a_chat_goes_to_any_server_as_it_is(server: Server) -> None:
    async def ask() -> Completion:
        return await StartChatServerEngine(server.url, "evaluation.judge", requests=2, retries=2)().complete(ChatPrompt(MESSAGES, 5))

    assert asyncio.run(ask()) == Completion("Yes.", ended=True)
    (request,) = server.requests
    assert (request["messages"], request["max_tokens"], request["temperature"]) == (MESSAGES, 5, 0.0)
    server.failures = [503] * 9
    with pytest.raises(RunError, match=rf"evaluation\.judge: {server.url} gave no answer"):
        asyncio.run(ask())


def test_a_server_that_knows_nothing_of_vllm_is_asked_plainly(server: Server) -> None:
    server.is_strict = True

    async def ask() -> list[Completion]:
        engine = StartChatServerEngine(server.url, "evaluation.judge", requests=1)()
        return [await engine.complete(ChatPrompt(MESSAGES, 5, form="(yes|no)")) for _ in range(3)]

    assert [completion.text for completion in asyncio.run(ask())] == ["Yes."] * 3
    assert ["structured_outputs" in request for request in server.requests] == [True, False, False, False]


def test_judge_check_asks_a_server_and_tells_how_far_it_agrees(server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    row = {"context": "The lift has been out of use since May.", "question": "Since when?", "answer": "May", "reply": "May"}
    file = tmp_path / "labels.jsonl"
    file.write_text("".join(json.dumps({**row, "is_correct": label}) + "\n" for label in (True, True, False, "yes")))
    assert cli.main(["judge-check", str(file), "--judge", server.url]) == 0
    printed = capsys.readouterr().out
    assert "answers            4 (0 without a verdict)" in printed
    assert "agreement          75.0%" in printed
    assert "judge too lenient  1" in printed
    assert "The lift has been out of use" in server.requests[0]["messages"][1]["content"]
    file.write_text(json.dumps({**row, "is_correct": "perhaps"}))
    assert cli.main(["judge-check", str(file), "--judge", server.url]) == 2
    assert "row 1: is_correct is 'perhaps'; expected true or false" in capsys.readouterr().err
    assert cli.main(["judge-check", str(tmp_path / "none.csv"), "--judge", server.url]) == 2


def test_where_nobody_answers_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with pytest.raises(UsageError, match=r"^models\.llm: 'http://127\.0\.0\.1:9/v1': no OpenAI-compatible server answers there"):
        local_folder("http://127.0.0.1:9/v1", "llm")
