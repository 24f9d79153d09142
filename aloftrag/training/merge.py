"""An adapter merged into a copy of its base model: what a CPU serves, where LoRA requests are slow."""

from pathlib import Path

from aloftrag import storage
from aloftrag.models import local_folder


def merge_adapter(model: str, adapter: Path, destination: Path) -> None:
    """Write the merged model and its tokeniser to ``destination``, unless it is there already."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if storage.is_whole(destination):
        return
    folder = local_folder(model, "llm")
    base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with storage.published(destination) as unfinished:
        PeftModel.from_pretrained(base, storage.local(adapter)).merge_and_unload().save_pretrained(unfinished, safe_serialization=True)
        AutoTokenizer.from_pretrained(folder).save_pretrained(unfinished)
