"""aloftrag: documents and a language model in, a LoRA adapter that answers about them with citations out."""

import os

# Nothing leaves the cluster: every library's telemetry is off before any of them can be imported.
os.environ.update(
    RAY_USAGE_STATS_ENABLED="0",
    VLLM_NO_USAGE_STATS="1",
    VLLM_DO_NOT_TRACK="1",
    DO_NOT_TRACK="1",
    HF_HUB_DISABLE_TELEMETRY="1",
)
# Each tokeniser is used by one thread of a process; the warning about forks would only confuse.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

__version__ = "0.1.0"
