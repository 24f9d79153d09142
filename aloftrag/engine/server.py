"""A running OpenAI-compatible server as the engine, such as ``vllm serve`` on other machines of the cluster.

Prompts go there as token ids, so that they are the same as on an engine of our own. Requests that meet a busy or failing
server are sent again with growing pauses; then the run fails.
"""

import asyncio
import math
import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from aloftrag.engine.port import Completion, PromptRefused
from aloftrag.errors import RunError
from aloftrag.models import local_folder, longest_prompt, served_model
from aloftrag.prompts.chat import ChatPrompt, PlainPrompt, Prompt

_REQUEST_SECONDS = 600
RETRIES = 9  # after pauses of 0.5, 1, 2, 4, 8, 8 ... seconds: about a minute


@dataclass(frozen=True)
class StartServerEngine:
    """Makes a client of the server at ``url``, in the process that calls it."""

    url: str
    max_tokens: int  # of prompt and reply
    requests: int  # at once
    retries: int = RETRIES

    def __call__(self) -> "ServerEngine":
        """The client."""
        return ServerEngine(self)


@dataclass(frozen=True)
class StartChatServerEngine:
    """Makes a client of any OpenAI-compatible server, in the process that calls it: one whose weights need not be here."""

    url: str
    key: str  # of the job file, for errors
    requests: int
    retries: int = RETRIES

    def __call__(self) -> "ChatServerEngine":
        """The client."""
        return ChatServerEngine(self)


class _Client:
    """Sends requests to a server, some at once, again where it is busy or fails."""

    def __init__(self, settings: StartServerEngine | StartChatServerEngine, model: str, key: str):
        from openai import AsyncOpenAI, DefaultAsyncHttpxClient

        self._url, self._model, self._key = settings.url, model, key
        self._places = asyncio.Semaphore(settings.requests)
        # No proxy stands between: texts go to the server that was named and nowhere else.
        self.api = AsyncOpenAI(
            base_url=settings.url,
            api_key=os.environ.get("OPENAI_API_KEY", "none"),
            max_retries=settings.retries,
            timeout=_REQUEST_SECONDS,
            http_client=DefaultAsyncHttpxClient(trust_env=False),
        )

    async def ask(self, create: Callable[..., Awaitable[Any]], asked: Prompt, *, plain: bool = False, **request: Any) -> Any:
        """A server's answer; ``plain``: to a request with nothing that only vLLM knows."""
        from openai import APIError, BadRequestError

        # Else a server takes what the model's generation_config.json says, such as a penalty for repeating the text.
        unpenalised = {"presence_penalty": 0.0, "frequency_penalty": 0.0}
        of_vllm = {"repetition_penalty": 1.0, **({"structured_outputs": {"regex": asked.form}} if asked.form else {})}
        async with self._places:
            try:
                return await create(
                    model=self._model,
                    max_tokens=asked.max_tokens,
                    temperature=0.0,
                    **unpenalised,
                    extra_body=None if plain else of_vllm,
                    **request,
                )
            except BadRequestError as error:
                raise PromptRefused(f"the server refused the prompt: {error.message}") from error
            except APIError as error:
                raise RunError(f"{self._key}: {self._url} gave no answer: {error}") from error


class ServerEngine:
    """Asks a server for completions of token ids."""

    def __init__(self, settings: StartServerEngine):
        from transformers import AutoTokenizer

        served = served_model(settings.url)
        self._longest = min(longest_prompt(settings.url, settings.max_tokens), served.max_tokens or settings.max_tokens)
        self.tokenizer = AutoTokenizer.from_pretrained(local_folder(settings.url, "llm"))
        self.max_num_seqs = settings.requests
        self.is_dead = False  # it is not ours to start again
        self._client = _Client(settings, served.name, "models.llm")

    async def complete(self, prompt: Prompt) -> Completion:
        """See ``aloftrag.engine.port.Engine``; raises ``RunError`` when the server gives no answer in the end."""
        token_ids = prompt.token_ids(self.tokenizer)
        if len(token_ids) + prompt.max_tokens > self._longest:
            raise PromptRefused.too_long(len(token_ids), prompt.max_tokens, self._longest)
        answer = await self._client.ask(
            self._client.api.completions.create,
            prompt,
            prompt=token_ids,
            stop=prompt.stop if isinstance(prompt, PlainPrompt) else None,
            logprobs=prompt.alternatives or None,
        )
        (choice,) = answer.choices
        logprobs = choice.logprobs.token_logprobs if choice.logprobs else None
        return Completion(
            choice.text,
            choice.finish_reason == "stop",
            _tokens(answer),
            _first_tokens(choice.logprobs),
            sum(logprobs) if logprobs else None,
        )

    def close(self) -> None:
        """The server is not ours to end."""


class ChatServerEngine:
    """Asks a server for replies in a chat, as its own template writes it."""

    def __init__(self, settings: StartChatServerEngine):
        self.max_num_seqs = settings.requests
        self.is_dead = False
        self._is_plain = False  # whether the server is known to take plain requests alone
        self._client = _Client(settings, served_model(settings.url, settings.key).name, settings.key)

    async def complete(self, prompt: Prompt) -> Completion:
        """See ``ServerEngine``; of chats that begin no reply."""
        assert isinstance(prompt, ChatPrompt)
        assert not prompt.prefill, "a server's own template begins each reply anew"
        create = self._client.api.chat.completions.create
        try:
            answer = await self._client.ask(create, prompt, plain=self._is_plain, messages=prompt.messages)
        except PromptRefused:
            if self._is_plain:
                raise
            answer = await self._client.ask(create, prompt, plain=True, messages=prompt.messages)
            self._is_plain = True  # it took this one, so it was what only vLLM knows that it refused
        (choice,) = answer.choices
        return Completion(choice.message.content or "", choice.finish_reason == "stop", _tokens(answer))

    def close(self) -> None:
        """The server is not ours to end."""


def _tokens(answer: Any) -> int:
    return answer.usage.total_tokens if answer.usage else 0


def _first_tokens(logprobs: Any) -> dict[str, float] | None:
    """Probabilities by text of the candidates for the first token."""
    if not logprobs or not logprobs.top_logprobs:
        return None
    return {token: math.exp(logprob) for token, logprob in logprobs.top_logprobs[0].items()}
