"""Small tokenizers with the chat templates of the common model families, written here so that no model is needed."""

from dataclasses import dataclass
from functools import cache
from typing import Any

CHATML = """{% for message in messages %}{% if loop.first and message.role != 'system' %}<|im_start|>system
You help.<|im_end|>
{% endif %}<|im_start|>{{ message.role }}
{{ message.content }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""

LLAMA = """{{ bos_token }}{% for message in messages %}<|start_header_id|>{{ message.role }}<|end_header_id|>

{{ message.content | trim }}<|eot_id|>{% endfor %}{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>

{% endif %}"""

# No system role, and the roles must alternate.
GEMMA = """{{ bos_token }}{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}\
{% for message in messages %}{% if (message.role == 'user') != (loop.index0 % 2 == 0) %}\
{{ raise_exception('Conversation roles must alternate') }}{% endif %}<start_of_turn>\
{{ 'model' if message.role == 'assistant' else message.role }}
{{ message.content | trim }}<end_of_turn>
{% endfor %}{% if add_generation_prompt %}<start_of_turn>model
{% endif %}"""

MISTRAL = """{{ bos_token }}{% if messages[0].role == 'system' %}{{ raise_exception('Only user and assistant roles are supported') }}\
{% endif %}{% for message in messages %}{% if message.role == 'user' %}[INST]{{ ' ' + message.content }}[/INST]\
{% else %}{{ message.content }}</s>{% endif %}{% endfor %}"""


@dataclass(frozen=True)
class Family:
    """A model family: its template, its special tokens, and the token that ends a turn."""

    name: str
    template: str
    special: tuple[str, ...]
    end_of_turn: str
    has_system_role: bool


FAMILIES = [
    Family("chatml", CHATML, ("<|endoftext|>", "<|im_start|>", "<|im_end|>"), "<|im_end|>", True),
    Family("llama", LLAMA, ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"), "<|eot_id|>", True),
    Family("gemma", GEMMA, ("<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"), "<end_of_turn>", False),
    Family("mistral", MISTRAL, ("<s>", "</s>", "[INST]", "[/INST]"), "</s>", False),
]

_LEARNED_FROM = (
    "### Text 1\nThe mill at Norwick was built in 1812 by Ada Moss.\n\n### Text 2\nThe ferry runs at 6, 7 and 10.",
    "### Question\nWho built the mill?\n\n### Reference\n1, 2\n\n### Answer\nAda Moss\n\nYou answer questions from numbered texts.",
)


# How the families part text before they learn tokens, by regular expressions as their tokenizer files have them.
SPLITS = {
    "qwen": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    "llama": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    "gpt2": r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
}


@cache
def tokenizer_of(family: Family, split: str = SPLITS["gpt2"], learned_from: tuple[str, ...] = _LEARNED_FROM) -> Any:
    """A byte-level BPE tokenizer whose chat template is the family's."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bytewise = Tokenizer(models.BPE())
    bytewise.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(split), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    bytewise.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=600, special_tokens=list(family.special), initial_alphabet=alphabet, show_progress=False)
    bytewise.train_from_iterator(learned_from, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bytewise,
        bos_token=family.special[0],
        eos_token=family.end_of_turn,
        additional_special_tokens=list(family.special),
        chat_template=family.template,
        clean_up_tokenization_spaces=False,
    )
