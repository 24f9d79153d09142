"""A finished run made by hand, for what only reads one: five questions in the run's own language and script."""

import json
from pathlib import Path
from typing import Any

from aloftrag import artifacts, languages, schemas
from aloftrag.artifacts import Run
from aloftrag.job import Job
from aloftrag.prompts import rag
from aloftrag.steps import score_answers
from tests.steps import tables

# Texts, questions and answers; the first text tries to be markup.
WORDS = {
    "en": [
        ("The mill <script>alert('x')</script> & its <b>wheel</b> were built by Ada.", "Who built the mill?", "Ada"),
        ("The ferry leaves pier four at dawn.", "When does the ferry leave?", "at dawn"),
        ("The owl nests in the hollow oak.", "Where does the owl nest?", "in the hollow oak"),
    ],
    "ar": [
        ("بُنيت الطاحونة القديمة عام 1812 على يد آدا موس.", "من بنى الطاحونة؟", "آدا موس"),
        ("تغادر العبّارة الرصيف رقم 4 عند الفجر.", "متى تغادر العبّارة؟", "عند الفجر"),
        ("تعيش البومة في شجرة البلوط المجوفة.", "أين تعيش البومة؟", "في شجرة البلوط"),
    ],
    "ja": [
        ("古い水車は1812年にエイダ・モスが建てた。", "水車を建てたのは誰ですか。", "エイダ・モス"),
        ("渡し船は夜明けに第四埠頭を出る。", "渡し船はいつ出ますか。", "夜明け"),
        ("フクロウは空洞のある樫の木に巣を作る。", "フクロウはどこに巣を作りますか。", "樫の木"),
    ],
}
REASONS = [None, "does not find its own text first", "no usable question"]
# What base and adapter cite: a gain, a loss, and a reply that nothing can be read from.
CITED: dict[str, list[list[int] | None]] = {"base": [[2], [2], None], "adapter": [[1], [1], [3]]}


def write(runs: Path, language: str = "en", questions_from: str = "gold") -> Run:
    """The run, with scores.json, but without its page."""
    run = Run.of(Job.model_validate({"name": "by-hand", "languages": [language], "corpus": {"paths": ["unused.md"]}}), language, runs)
    words = WORDS[language]
    ids = [f"t{number}" for number in range(len(words))]
    texts = [text for text, *_ in words]
    tables.write(run.artifact("texts"), schemas.TEXTS, tables.text_rows(dict(zip(ids, texts, strict=True))))
    written = [
        tables.annotation(f"{key}-0", text_rating=float(7 + number), question=question, answer=answer)
        for number, (key, (_, question, answer)) in enumerate(zip(ids, words, strict=True))
    ]
    written[2] |= {"question": None, "answer": None, "error": "no question and answer in the reply", "reply": "I <i>cannot</i>."}
    tables.write(run.artifact("annotations"), schemas.ANNOTATIONS, written)
    tables.write(run.artifact("negatives"), schemas.NEGATIVES, [tables.negative(f"{key}-0", set(ids) - {key}) for key in ids])
    selection = [
        {"question_id": f"{key}-0", "text_id": key, "split": None if reason else "train", "drop_reason": reason}
        for key, reason in zip(ids, REASONS, strict=True)
    ]
    tables.write(run.artifact("selection"), schemas.SELECTION, selection)
    asked = [_asked(number, ids, texts, words, language) for number in range(len(words))]
    tables.write(run.artifact("questions"), schemas.QUESTIONS, asked)
    for variant, cited in CITED.items():
        replies = [_reply(row, variant, positions) for row, positions in zip(asked, cited, strict=True)]
        tables.write(run.artifact("answers") / variant, schemas.ANSWERS, replies)
    run.artifact("adapter").mkdir()
    lines = [{"step": step, "steps": 300, "loss": 3 / (1 + step / 50), "tokens": 9} for step in range(1, 301)]
    lines.insert(150, {"step": 150, "validation_loss": 1.4})
    lines.append({"step": 300, "validation_loss": 0.8})
    (run.artifact("adapter") / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    for name, counts in {**_COUNTS, "answers": {"questions_from": questions_from, "constrained": True, "engines": {"tokens": 678}}}.items():
        artifacts.finish(run.artifact(name), name, {}, counts, 75.0)
    scored = score_answers.make(run, run.artifact("scores"), runs)
    artifacts.finish(run.artifact("scores"), "score_answers", {}, scored, 1.0)
    run.write_job()
    return run


_COUNTS: dict[str, dict[str, Any]] = {
    "texts": {"files": 1, "read": 3, "texts": 3},
    "annotations": {"rated": 3, "questions": 2, "engines": {"busy": 0.9, "tokens": 12345}},
    "negatives": {
        "texts": 3,
        "questions": 2,
        "found_own_text_first": 1,
        "found_own_text_among_contexts": 2,
        "fewer_negatives": 0,
        "also_positive": 0,
        "skipped": {},
        "relative_margin": None,
        "near_duplicates": 0,
        "index": {"kind": "exact", "nprobe": None, "recall": 1.0, "why": "few"},
    },
    "chats": {"kept": {"train": 1}, "left_out": {}},
    "adapter": {"chats": 1, "tokens": 2700, "steps": 300, "lowest_validation_loss": 0.8},
}


def _asked(number: int, ids: list[str], texts: list[str], words: list[tuple[str, str, str]], language: str) -> tables.Row:
    _, question, answer = words[number]
    return {
        "question_id": f"q{number}",
        "text_id": ids[number],
        "question": question,
        "gold_answers": [answer],
        "context_ids": ids,
        "similarities": [0.5] * len(ids),
        "positive_position": number + 1,
        "also_positive_positions": [],
        "most_similar_position": 1,
        "most_words_position": 1,
        "is_hard": number == 2,
        "messages": rag.first_turns(texts, question, languages.english_name(language)),
    }


def _reply(asked: tables.Row, variant: str, cited: list[int] | None) -> tables.Row:
    return {
        **{name: asked[name] for name in schemas.ANSWERS.names if name in asked},
        "variant": variant,
        "completion": "no form <here>",
        "completion_free": "no form <here>" if variant == "base" else None,
        "cited_positions": cited,
        "answer": asked["gold_answers"][0] if cited else None,
    }
