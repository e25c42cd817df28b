"""Lists, Markdown tables and JSON objects made from fields in the prompt."""

from __future__ import annotations

import json
from random import Random
from typing import Any

from demo_model.sample import Check, Sample, assistant, user
from demo_model.words import ADJECTIVES, CITIES, COLORS, NAMES, NOUNS, any_word, code

NUMBERED = [
    "Make a numbered list of: {}",
    "Write a numbered list: {}",
    "Number these items: {}",
    "Turn this into a numbered list: {}",
]
BULLETS = [
    "Make a bullet list of: {}",
    "Write a bulleted list: {}",
    "List these as bullet points: {}",
    "Turn this into a bullet list: {}",
]
COMMAS = [
    "Join these items with commas:\n{}",
    "Write this list on one line:\n{}",
    "Put these items on one line, with commas:\n{}",
]
TABLE = [
    "Make a table with the columns {c} from: {r}", "Write a Markdown table. Columns: {c}. Rows: {r}",
    "Turn this into a table with columns {c}: {r}", "Make a Markdown table with columns {c} and rows {r}",
]  # fmt: skip
JSON_ASK = [
    "Write a JSON object with {}.", "Make a JSON object: {}", "Give me JSON with {}",
    "Return a JSON object with these fields: {}",
    "Answer in JSON: {}", "Turn this into JSON: {}", "Write this as JSON: {}",
    "Create a JSON object with {}. Answer with JSON only.",
]  # fmt: skip
FIELDS = [
    "name", "age", "city", "color", "email", "price", "count", "active", "tags", "id", "title", "score", "country",
    "year", "status", "size", "weight", "email_sent", "first_name", "last_name", "quantity", "code",
    "notes", "verified",
]  # fmt: skip
COLUMNS = ["name", "age", "city", "color", "price", "item", "score", "count", "code", "country"]


def _items(rng: Random) -> list[str]:
    pool = rng.choice([NOUNS, NOUNS, NAMES, CITIES])
    items = rng.sample(pool, k=rng.randint(2, 9))
    return [f"{rng.choice(ADJECTIVES)} {item}" for item in items] if rng.random() < 0.2 else items


def lists(rng: Random) -> Sample:
    """A numbered list, a bullet list, or a list joined back to one line."""
    items = _items(rng)
    shape = rng.random()
    if shape < 0.4:
        text = "\n".join(f"{number}. {item}" for number, item in enumerate(items, 1))
        question = rng.choice(NUMBERED).format(", ".join(items))
    elif shape < 0.8:
        text = "\n".join(f"- {item}" for item in items)
        question = rng.choice(BULLETS).format(", ".join(items))
    else:
        text = ", ".join(items)
        marked = (
            [f"- {item}" for item in items]
            if rng.random() < 0.5
            else [f"{i}. {item}" for i, item in enumerate(items, 1)]
        )
        question = rng.choice(COMMAS).format("\n".join(marked))
    return Sample("lists", [user(question), assistant(text)], Check("exact", text))


def _cell(rng: Random, column: str) -> str:
    if column == "name":
        return rng.choice(NAMES)
    if column in ("age", "score", "count", "price"):
        return str(rng.randint(0, 999))
    if column in ("city", "country"):
        return rng.choice(CITIES)
    if column == "color":
        return rng.choice(COLORS)
    return code(rng) if column == "code" else rng.choice(NOUNS)


def tables(rng: Random) -> Sample:
    """A Markdown table of two to four columns and one to six rows."""
    columns = rng.sample(COLUMNS, k=rng.randint(2, 4))
    rows = [[_cell(rng, column) for column in columns] for _ in range(rng.randint(1, 6))]
    given = "; ".join(", ".join(row) for row in rows)
    question = rng.choice(TABLE).format(c=", ".join(columns), r=given)
    grid = [columns, ["---"] * len(columns), *rows]
    text = "\n".join("| " + " | ".join(row) + " |" for row in grid)
    return Sample("tables", [user(question), assistant(text)], Check("exact", text))


def _json_value(rng: Random) -> Any:
    roll = rng.random()
    if roll < 0.3:
        return rng.choice([rng.choice(NAMES), rng.choice(CITIES), rng.choice(NOUNS), rng.choice(COLORS)])
    if roll < 0.4:
        return f"{rng.choice(ADJECTIVES)} {any_word(rng)}"
    if roll < 0.48:
        return code(rng)
    if roll < 0.72:
        return rng.randint(0, 10 ** rng.randint(1, 5))
    if roll < 0.8:
        return round(rng.uniform(0, 100), rng.randint(1, 2))
    if roll < 0.9:
        return rng.random() < 0.5
    if roll < 0.93:
        return None
    return [rng.choice(NOUNS) for _ in range(rng.randint(1, 4))]


def _spoken(value: Any) -> str:
    """How a prompt writes a value: bare words and numbers, `yes`-style booleans kept as true and false."""
    if isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False)


def json_object(rng: Random) -> Sample:
    """A JSON object of one to seven fields, whose values the prompt gives as text."""
    keys = [
        key if rng.random() < 0.8 else rng.choice(NOUNS) for key in rng.sample(FIELDS, k=rng.randint(1, 7))
    ]
    # A code of digits alone would leave the prompt silent on whether a string or a number is meant.
    values: dict[str, Any] = {}
    for key in keys:
        value = _json_value(rng)
        while isinstance(value, str) and not any(char.isalpha() for char in value):
            value = _json_value(rng)
        values[key] = value
    glue, joiner = rng.choice(
        [(" = ", ", "), (": ", ", "), (" is ", ", "), (": ", "\n"), (" = ", "\n"), (" ", "; ")]
    )
    given = joiner.join(f"{key}{glue}{_spoken(value)}" for key, value in values.items())
    template = rng.choice(JSON_ASK)
    question = template.format(("\n" if joiner == "\n" else "") + given)
    text = json.dumps(values, ensure_ascii=False)
    return Sample("json", [user(question), assistant(text)], Check("json", values))
