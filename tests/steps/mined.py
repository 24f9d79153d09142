"""Twelve texts in six pairs about the same thing, and questions about them."""

from aloftrag.corpus import text_id
from tests.steps import tables
from tests.steps.tables import Row

TEXTS = {
    "rye": "Rye bread is baked with sourdough in the stone oven of the village bakery.",
    "roll": "The village bakery bakes bread rolls from wheat flour every morning.",
    "lens": "The lighthouse lens throws its beam twenty miles out to sea.",
    "horn": "In fog the lighthouse keeper sounds the horn to warn ships at sea.",
    "bee": "The bees of the monastery garden make dark honey from heather.",
    "hive": "Each beehive in the garden holds forty thousand bees in summer.",
    "tram": "Tram number nine runs to the harbour every ten minutes.",
    "fare": "A tram ticket is valid for ninety minutes on all tram lines.",
    "cello": "The cello of the orchestra was built in Cremona in 1701.",
    "choir": "The orchestra and the choir rehearse on Tuesday evenings.",
    "moss": "Moss grows on the north side of the old oak tree in the forest.",
    "owl": "An owl nests in the hollow oak tree of the forest.",
}
PAIRS = [("rye", "roll"), ("lens", "horn"), ("bee", "hive"), ("tram", "fare"), ("cello", "choir"), ("moss", "owl")]
SIBLING = {**dict(PAIRS), **{second: first for first, second in PAIRS}}
IDS = {name: text_id(text) for name, text in TEXTS.items()}
NAMES = {key: name for name, key in IDS.items()}

# The order is not that of the ids; the owl has two questions, the choir none.
QUESTIONS = {
    "owl-0": "Which bird nests in the hollow oak tree?",
    "owl-1": "Where in the forest does the owl nest?",
    "rye-0": "With what is rye bread baked?",
    "lens-0": "How many miles does the lighthouse beam reach?",
    "horn-0": "What does the lighthouse keeper sound in fog?",
    "moss-0": "On which side of the oak does moss grow?",
    "bee-0": "From what do the monastery bees make honey?",
    "hive-0": "How many bees does a beehive hold in summer?",
    "fare-0": "How long is a tram ticket valid?",
    "tram-0": "How often does tram number nine run?",
    "roll-0": "From which flour are the bread rolls baked?",
    "cello-0": "Where was the cello built?",
}


def id_of(question: str) -> str:
    """The question id of ``owl-0``."""
    name, _, number = question.partition("-")
    return f"{IDS[name]}-{number}"


def text_rows() -> list[Row]:
    """The ``texts`` artifact, sorted as it is."""
    return sorted(tables.text_rows({IDS[name]: text for name, text in TEXTS.items()}), key=lambda row: row["text_id"])


def annotation_rows() -> list[Row]:
    """The ``annotations`` artifact, in an order of its own."""
    rows = [tables.annotation(id_of(key), question=question, answer=f"answer {key}") for key, question in QUESTIONS.items()]
    return [*rows, tables.annotation(id_of("choir-0"), question=None, answer=None, error="no question and answer in the reply")]
