"""From a model's name to a folder that transformers, vLLM and sentence-transformers load without any network.

A name is a folder, a ``.gguf`` file, ``package:NAME`` (weights that an installed Python package carries), a hub id, or the address of
a server that annotates with the model (``http://HOST:PORT/v1``): its weights are then those that the server says it was started with.
GGUF weights are dequantised once into the cache (``XDG_CACHE_HOME``), and pickled PyTorch weights saved anew as safetensors; the hub
is asked only for an id that is not in its cache.
"""

import contextlib
import functools
import hashlib
import importlib.metadata
import io
import os
import re
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from aloftrag.artifacts import files_digest, read_json, write_json
from aloftrag.errors import UsageError

Role = Literal["llm", "embedder", "judge"]
_KEYS: dict[Role, str] = {"llm": "models.llm", "embedder": "models.embedder", "judge": "evaluation.judge"}
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
PICKLED = "pytorch_model.bin"
HUB_FILES = ["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja", f"*/{PICKLED}", "*.tiktoken"]  # * is any path


def local_folder(name: str, role: Role) -> Path:
    """The folder of model ``name``, fetched or converted when it has to be.

    Raises ``UsageError`` when there is no such model or its folder lacks what ``role`` needs.
    """
    key = f"{_KEYS[role]}: {name!r}"
    if name.startswith("package:"):
        found = _in_package(name.removeprefix("package:"), key)
    elif is_server(name):
        return _weights_of_server(name, role, key)
    elif Path(name).exists():
        found = Path(name).resolve()
    elif HUB_ID.fullmatch(name):
        found = _from_hub(name, key)
    else:
        raise UsageError(f"{key}: no such folder or file, and not a hub id; expected a folder, a .gguf file, package:NAME or a hub id")
    if found.suffix == ".gguf":
        folder = _converted([found], found.parent, found.stem, functools.partial(_dequantise, found))
    elif any(not any(binary.parent.glob("*.safetensors")) for binary in found.rglob(PICKLED)):
        files = sorted(file for file in found.rglob("*") if file.is_file() and (file.suffix != ".bin" or file.name == PICKLED))
        folder = _converted(files, found, found.name, functools.partial(_unpickle, files, found, key=key))
    else:
        folder = found
    _check_folder(folder, role, key)
    return folder


def dimensions(embedder: str) -> int:
    """How many dimensions the vectors of an embedder have, from its configuration."""
    from transformers import AutoConfig

    return int(AutoConfig.from_pretrained(local_folder(embedder, "embedder")).hidden_size)


def is_server(name: str) -> bool:
    """Whether a model's name is the address of a server."""
    return name.startswith(("http://", "https://"))


@dataclass(frozen=True)
class ServedModel:
    """What a server says of the model that it serves."""

    name: str  # what to ask it for
    weights: str  # what it was started with: a folder or a hub id
    max_tokens: int | None


@functools.cache
def served_model(url: str, key: str = "models.llm") -> ServedModel:
    """The first model of an OpenAI-compatible server; raises ``UsageError`` when there is none, or it does not say which weights it has.

    What it said last is kept, so that tuning needs no server any more.
    """
    from openai import APIError, DefaultHttpxClient, OpenAI

    key, kept = f"{key}: {url!r}", cache_folder() / "servers" / f"{hashlib.blake2b(url.encode(), digest_size=16).hexdigest()}.json"
    http = DefaultHttpxClient(trust_env=False)  # no proxy stands between
    try:
        with OpenAI(base_url=url, api_key=os.environ.get("OPENAI_API_KEY", "none"), timeout=10, max_retries=1, http_client=http) as client:
            served = client.models.list().data[0].model_dump()
        write_json(kept, {"name": served["id"], "weights": served.get("root") or served["id"], "max_tokens": served.get("max_model_len")})
    except (APIError, IndexError) as error:
        if not kept.is_file():
            raise UsageError(f"{key}: no OpenAI-compatible server answers there ({error}); expected such as http://HOST:8000/v1") from error
    return ServedModel(**read_json(kept))


def _weights_of_server(url: str, role: Role, key: str) -> Path:
    if role != "llm":
        raise UsageError(f"{key} is a server; expected a folder, package:NAME or a hub id")
    weights = served_model(url).weights
    try:
        return local_folder(weights, role)
    except UsageError as error:
        raise UsageError(f"{key} serves {weights!r}, whose weights are needed here too, for tuning ({error})") from error


def identity(name: str, role: Role) -> str:
    """A digest of the model's files, for fingerprints: other weights under the same name give another one."""
    folder = local_folder(name, role)
    return files_digest(sorted(path for path in folder.rglob("*") if path.suffix in {".safetensors", ".json", ".jinja", ".txt"}), folder)


def longest_prompt(name: str, max_tokens: int) -> int:
    """How many tokens a conversation may have: ``max_tokens``, or fewer where the model takes no more."""
    from transformers import AutoConfig

    return min(max_tokens, int(AutoConfig.from_pretrained(local_folder(name, "llm")).get_text_config().max_position_embeddings))


def cache_folder() -> Path:
    """Where converted models lie."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "aloftrag"


def _in_package(package: str, key: str) -> Path:
    """The model folder or the ``.gguf`` file inside an installed distribution."""
    try:
        distribution = importlib.metadata.distribution(package)
    except importlib.metadata.PackageNotFoundError as error:
        raise UsageError(f"{key}: the Python package {package!r} is not installed") from error
    files = [Path(str(distribution.locate_file(file))) for file in distribution.files or []]
    for file in files:
        if file.suffix == ".gguf":
            return file
    for file in files:
        if file.name == "model.safetensors":
            return file.parent
    raise UsageError(f"{key}: the Python package {package!r} carries no .gguf or model.safetensors file")


def _from_hub(name: str, key: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    try:
        try:
            folder = Path(snapshot_download(name, local_files_only=True, allow_patterns=HUB_FILES))
        except LocalEntryNotFoundError:
            folder = Path(snapshot_download(name, allow_patterns=HUB_FILES))
        if not any(folder.glob("*.safetensors")) and not (folder / PICKLED).is_file():  # some repositories have pickled ones only
            folder = Path(snapshot_download(name, allow_patterns=[*HUB_FILES, PICKLED]))
        return folder
    except (HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled, OSError) as error:
        reason = str(error).splitlines()[0]
        raise UsageError(f"{key}: neither a folder here nor in the hub's local cache, and the hub did not give it ({reason})") from error


def _check_folder(folder: Path, role: Role, key: str) -> None:
    """A model folder must hold a config, safetensors weights and a tokeniser; and a chat template for an LLM."""
    if not folder.is_dir():
        raise UsageError(f"{key}: expected a folder or a .gguf file")
    if not (folder / "config.json").is_file():
        raise UsageError(f"{key}: {folder} has no config.json")
    if not any(folder.glob("*.safetensors")):
        raise UsageError(f"{key}: {folder} has no weights in one of the forms read here: .safetensors, {PICKLED}")
    if not any((folder / file).is_file() for file in ("tokenizer.json", "tokenizer.model", "vocab.txt", "tokenizer_config.json")):
        raise UsageError(f"{key}: {folder} has no tokeniser (tokenizer.json)")
    if role != "embedder" and not _has_chat_template(folder):
        raise UsageError(f"{key}: {folder} has no chat template; expected an instruction-tuned model")


def _has_chat_template(folder: Path) -> bool:
    config = folder / "tokenizer_config.json"
    return (folder / "chat_template.jinja").is_file() or (config.is_file() and '"chat_template"' in config.read_text())


def _converted(files: list[Path], root: Path, name: str, convert: Callable[[Path], None]) -> Path:
    """The cached safetensors folder that ``convert`` writes from other files; made by one process while others wait for it."""
    from filelock import FileLock

    folder = cache_folder() / "models" / f"{name}-{files_digest(files, root)}"
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if not folder.is_dir():
            unfinished = Path(tempfile.mkdtemp(prefix=".converting-", dir=folder.parent))
            try:
                convert(unfinished)
                unfinished.rename(folder)
            finally:
                shutil.rmtree(unfinished, ignore_errors=True)
    return folder


def _unpickle(files: list[Path], root: Path, folder: Path, key: str) -> None:
    """Copy a model folder, pickled weights as safetensors; torch's restricted reader runs no code that a pickle may hold."""
    import pickle

    import torch
    from safetensors.torch import save_file

    for file in files:
        copy = folder / file.relative_to(root)
        copy.parent.mkdir(parents=True, exist_ok=True)
        if file.name != PICKLED:
            shutil.copyfile(file, copy)
        elif not any(file.parent.glob("*.safetensors")):
            try:
                weights = torch.load(file, map_location="cpu", weights_only=True)
            except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
                raise UsageError(f"{key}: {file} is damaged, or holds more than weights, which could run code") from error
            weights = {name: tensor.clone().contiguous() for name, tensor in weights.items()}  # what shares memory cannot be saved
            save_file(weights, copy.with_name("model.safetensors"), metadata={"format": "pt"})


def _dequantise(gguf: Path, folder: Path) -> None:
    """Save a GGUF model as safetensors and a tokeniser.

    transformers refuses to save a model that it dequantised, so its weights go into a model made from the same config
    without the quantisation entry.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    with contextlib.redirect_stderr(io.StringIO()):  # this progress bar has no switch
        dequantised = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    config = dequantised.config
    del config.quantization_config
    model = type(dequantised)(config).to(torch.float32)
    model.load_state_dict(dequantised.state_dict())
    model.save_pretrained(folder, safe_serialization=True)
    tokenizer.save_pretrained(folder)
