"""One Arrow schema per artifact; every write is held to it, so that an all-null column keeps its type."""

import pyarrow as pa

TEXTS = pa.schema(
    [
        pa.field("text_id", pa.string(), nullable=False),
        pa.field("text", pa.string(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("copies", pa.int64(), nullable=False),
    ]
)

_QUESTION = [
    pa.field("question", pa.string()),
    pa.field("answer", pa.string()),
    pa.field("question_rating", pa.float64()),
    pa.field("answer_rating", pa.float64()),
    pa.field("wrong_language", pa.bool_()),
    pa.field("refers_to_text", pa.bool_()),
    pa.field("copies_instruction", pa.bool_()),
    pa.field("error", pa.string()),
    pa.field("reply", pa.string()),
    pa.field("question_rating_reply", pa.string()),
    pa.field("answer_rating_reply", pa.string()),
]

# What the engine pass writes: one row per text, its questions as a list.
ANNOTATED_TEXTS = pa.schema(
    [
        pa.field("text_id", pa.string(), nullable=False),
        pa.field("text_rating", pa.float64()),
        pa.field("text_rating_expected", pa.float64()),
        pa.field("text_rating_reply", pa.string()),
        pa.field("error", pa.string()),
        pa.field("questions", pa.list_(pa.struct(_QUESTION))),
    ]
)

# One row per question, one with nulls for a text without.
ANNOTATIONS = pa.schema(
    [
        pa.field("question_id", pa.string(), nullable=False),
        pa.field("text_id", pa.string(), nullable=False),
        pa.field("text_rating", pa.float64()),
        pa.field("text_rating_expected", pa.float64()),
        pa.field("text_rating_reply", pa.string()),
        *_QUESTION,
    ]
)


def vectors(dimensions: int) -> pa.Field:
    """The column of stored vectors."""
    return pa.field("vector", pa.list_(pa.float16(), dimensions), nullable=False)


NEGATIVES = pa.schema(
    [
        pa.field("question_id", pa.string(), nullable=False),
        pa.field("text_id", pa.string(), nullable=False),
        pa.field("question", pa.string(), nullable=False),
        pa.field("negative_ids", pa.list_(pa.string()), nullable=False),
        pa.field("similarities", pa.list_(pa.float64()), nullable=False),
        pa.field("ranks", pa.list_(pa.int64()), nullable=False),
        pa.field("positive_similarity", pa.float64(), nullable=False),
        pa.field("positive_rank", pa.int64(), nullable=False),
        # What is at least as near as the last negative, but is none, and why.
        pa.field(
            "skipped",
            pa.list_(
                pa.struct(
                    [
                        pa.field("text_id", pa.string()),
                        pa.field("similarity", pa.float64()),
                        pa.field("rank", pa.int64()),
                        pa.field("reason", pa.string()),
                        pa.field("answers", pa.bool_()),  # the question, says the language model; null when it was not asked or did not say
                    ]
                )
            ),
            nullable=False,
        ),
        pa.field("also_positive", pa.list_(pa.string()), nullable=False),  # of the skipped, those that the language model says answer it
    ]
)

CLUSTERS = pa.schema(
    [
        pa.field("text_id", pa.string(), nullable=False),
        pa.field("cluster_id", pa.string(), nullable=False),
    ]
)

SELECTION = pa.schema(
    [
        pa.field("question_id", pa.string(), nullable=False),
        pa.field("text_id", pa.string(), nullable=False),
        pa.field("split", pa.string()),  # train, validation, held_out; null when dropped
        pa.field("drop_reason", pa.string()),  # null when kept
    ]
)

MESSAGES = pa.list_(pa.struct([pa.field("role", pa.string()), pa.field("content", pa.string())]))

CHATS = pa.schema(
    [
        pa.field("chat_id", pa.string(), nullable=False),
        pa.field("split", pa.string(), nullable=False),  # train or validation
        pa.field("question_ids", pa.list_(pa.string()), nullable=False),
        pa.field("text_ids", pa.list_(pa.string()), nullable=False),
        pa.field("context_ids", pa.list_(pa.string()), nullable=False),
        pa.field("messages", MESSAGES, nullable=False),
        pa.field("positive_positions", pa.list_(pa.int64()), nullable=False),  # null where the text is withheld
        pa.field("token_ids", pa.list_(pa.int32()), nullable=False),
        pa.field("targets", pa.list_(pa.int8()), nullable=False),  # per token: what it teaches (training.rows)
    ]
)

QUESTIONS = pa.schema(
    [
        pa.field("question_id", pa.string(), nullable=False),
        pa.field("text_id", pa.string(), nullable=False),
        pa.field("question", pa.string(), nullable=False),
        pa.field("gold_answers", pa.list_(pa.string()), nullable=False),
        pa.field("context_ids", pa.list_(pa.string()), nullable=False),
        pa.field("similarities", pa.list_(pa.float64()), nullable=False),
        pa.field("positive_position", pa.int64()),  # null: not shown (evaluation.retrieval: as-is)
        pa.field("also_positive_positions", pa.list_(pa.int64()), nullable=False),  # of texts that answer it too
        pa.field("most_similar_position", pa.int64(), nullable=False),  # 0: it had to give way, and is not shown
        pa.field("most_words_position", pa.int64(), nullable=False),  # of the text with the most words of the question
        pa.field("is_hard", pa.bool_(), nullable=False),
        pa.field("messages", MESSAGES, nullable=False),
    ]
)

ANSWERS = pa.schema(
    [
        pa.field("question_id", pa.string(), nullable=False),
        pa.field("variant", pa.string(), nullable=False),
        pa.field("text_id", pa.string(), nullable=False),
        pa.field("question", pa.string(), nullable=False),
        pa.field("context_ids", pa.list_(pa.string()), nullable=False),
        pa.field("positive_position", pa.int64()),  # null: not shown (evaluation.retrieval: as-is)
        pa.field("also_positive_positions", pa.list_(pa.int64()), nullable=False),
        pa.field("most_similar_position", pa.int64(), nullable=False),  # 0: it had to give way, and is not shown
        pa.field("most_words_position", pa.int64(), nullable=False),  # of the text with the most words of the question
        pa.field("is_hard", pa.bool_(), nullable=False),
        pa.field("completion", pa.string()),
        pa.field("cited_positions", pa.list_(pa.int64())),
        pa.field("answer", pa.string()),
        pa.field(
            "completion_free", pa.string()
        ),  # the base's reply when nothing constrains it (only its beginning, if that is out of form); null for the adapter
        pa.field("gold_answers", pa.list_(pa.string()), nullable=False),
    ]
)
