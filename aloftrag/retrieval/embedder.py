"""Texts and questions to vectors, with sentence-transformers."""

import os
from collections.abc import Sequence
from typing import Literal

import numpy as np

from aloftrag.cpus import usable_cpus
from aloftrag.job import EmbedderPrompts
from aloftrag.models import local_folder


class Embedder:
    """An embedding model in this process: on a GPU in half precision, on a CPU in float32."""

    def __init__(self, model: str, prompts: EmbedderPrompts | None):
        os.environ["OMP_NUM_THREADS"] = str(usable_cpus())  # Ray gives a worker one thread unless it asks for more CPUs
        import torch
        from sentence_transformers import SentenceTransformer

        on_gpu = torch.cuda.is_available()
        self._model = SentenceTransformer(
            str(local_folder(model, "embedder")),
            device="cuda" if on_gpu else "cpu",
            local_files_only=True,
            model_kwargs={"dtype": torch.float16 if on_gpu else torch.float32},
        )
        self._prompts = prompts or EmbedderPrompts()

    def embed(self, texts: Sequence[str], kind: Literal["query", "text"]) -> np.ndarray:
        """Normalised vectors, float32 [texts, dimensions]; of a text without a direction, none of length 1 (``hold_usable``)."""
        prompt = self._prompts.query if kind == "query" else self._prompts.text
        return np.asarray(
            self._model.encode(list(texts), prompt=prompt or None, normalize_embeddings=True, show_progress_bar=False), np.float32
        )
