"""Planted false negatives: copies in other words of some texts, which answer the questions about these as well."""

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from aloftrag.job import EmbedderPrompts
from aloftrag.retrieval import guard
from aloftrag.retrieval.embedder import Embedder
from aloftrag.retrieval.guard import Rules
from aloftrag.retrieval.index import Index, index_of
from aloftrag.retrieval.shard import Shard
from aloftrag.steps import mine_negatives
from tests.conftest import EMBEDDER

CONTEXTS = 10
TOPICS = """ferry, bakery, glacier railway, bee garden, opera house, salt mine, observatory, lifeboat, vineyard, printing press,
ski jump, aquarium, windmill, tram depot, chocolate factory, ice rink, paper mill, botanical garden, fire station, cheese cellar,
clock tower, dry dock, gold mine, horse market, indigo works, jam kitchen, kite club, lace school, marble quarry, night school,
oyster bank, pottery, quilt workshop, rope walk, silk farm, toll bridge, umbrella shop, violin workshop, wool exchange,
zoo""".replace("\n", " ").split(", ")
PEOPLE = ["Ada Moss", "Ben Hale", "Cora Lind", "Dan Frey", "Eva Rust", "Finn Gray", "Gwen Pike", "Hugo Vane", "Iris Bell", "Jon Cole"]
PLACES = ["Norwick", "Ferrow", "Hollin", "Oster", "Ellmoor", "Tarn", "Wexby"]
# A text about each topic in five ways, and a question about each; the first has a copy in other words.
TEXTS = [
    ("The {topic} was founded in {year} by {person}, who had come from {place}.", "Who founded the {topic}?"),
    ("Visitors may enter the {topic} from {hour} o'clock on; children come in free.", "From when on may visitors enter the {topic}?"),
    ("In winter {person} keeps the {topic} warm with {hour} stoves that burn birch wood.", "How is the {topic} kept warm in winter?"),
    ("A fire destroyed the roof of the {topic} in {year}; nobody was hurt.", "When did a fire destroy the roof of the {topic}?"),
    ("The {topic} employs {hour} people, most of them from {place}.", "How many people does the {topic} employ?"),
]
COPY = "It was {person} of {place} who started the {topic}, back in the year {year}."


def filled(form: str, number: int) -> str:
    return form.format(
        topic=TOPICS[number], year=1700 + 7 * number, person=PEOPLE[number % 10], place=PLACES[number % 7], hour=number % 12 + 6
    )


@pytest.fixture(scope="module")
def planted() -> tuple[Index, np.ndarray, pa.Table]:
    """The index over texts and copies; the questions' vectors, and the questions."""
    embedder = Embedder(EMBEDDER, EmbedderPrompts())
    texts, rows = {}, []
    for number in range(len(TOPICS)):
        texts[f"copy-{number}-0"] = filled(COPY, number)
        for kind, (text, question) in enumerate(TEXTS):
            key = f"text-{number}-{kind}"
            texts[key] = filled(text, number)
            rows.append({"question_id": f"{key}-0", "text_id": key, "question": filled(question, number)})
    vectors = embedder.embed(list(texts.values()), "text")
    queries = embedder.embed([row["question"] for row in rows], "query")
    return index_of([Shard.of(np.array(list(texts), bytes), vectors)]), queries, pa.Table.from_pylist(rows)


def mined(planted: tuple[Index, np.ndarray, pa.Table], margin: float | None) -> list[dict[str, Any]]:
    index, queries, rows = planted
    found: list[dict[str, Any]] = mine_negatives.mine(index, queries, rows, Rules(CONTEXTS - 1, margin)).to_pylist()
    return found


def copies_among_negatives(rows: list[dict[str, Any]]) -> int:
    return sum(row["text_id"].replace("text", "copy") in row["negative_ids"] for row in rows)


def test_without_a_guard_copies_are_negatives_and_with_it_none_is(planted: tuple[Index, np.ndarray, pa.Table]) -> None:
    index, queries, rows = planted
    unguarded = mined(planted, None)
    assert copies_among_negatives(unguarded) >= 0.9 * len(TOPICS)

    own = rows["text_id"].to_pylist()
    ids, similarities = index.search(queries, CONTEXTS)
    margin = guard.auto_margin(guard.gaps(ids, similarities, np.asarray(own), index.similarity(queries, own)))
    guarded = mined(planted, margin)
    assert copies_among_negatives(guarded) == 0
    assert all(len(row["negative_ids"]) == CONTEXTS - 1 for row in guarded)

    # What the guard costs: neighbours that are no answers, and are replaced by less similar ones.
    true = [(row["text_id"], text_id) for row in unguarded for text_id in row["negative_ids"] if not text_id.startswith("copy")]
    kept = {(row["text_id"], text_id) for row in guarded for text_id in row["negative_ids"]}
    lost = sum(pair not in kept for pair in true) / len(true)
    planted_before = f"{copies_among_negatives(unguarded)} of {len(TOPICS)} copies are negatives without the guard"
    print(f"{planted_before}; with a margin of {margin:.3f} none, for {lost:.1%} of the true neighbours")
    assert lost < 0.15
