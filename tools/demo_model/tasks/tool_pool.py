"""Tools that demo conversations offer: name, description, arguments, ways to ask, results and replies.

Each entry of `TOOLS` is `(name, description, {argument: (type, description)}, requests, result, reply)`.
Requests, result and reply are format strings over the arguments and the fields of the result.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

from demo_model.words import ADJECTIVES, CITIES, NAMES, NOUNS, invented_word

ToolSpec = tuple[str, str, dict[str, tuple[str, str]], list[str], list[str], str]

TOOLS: list[ToolSpec] = [
    ("get_weather", "Get the current weather in a city.", {"city": ("string", "Name of the city")},
     ["What is the weather in {city}?", "How is the weather in {city}?", "Weather in {city}",
      "Is it warm in {city}?",
      "Tell me the weather in {city}.", "What's the weather like in {city} today?"],
     ["temperature", "condition"], "In {city} it is {temperature} degrees and {condition}."),
    ("get_time", "Get the current local time in a city.", {"city": ("string", "Name of the city")},
     ["What time is it in {city}?", "Tell me the time in {city}.", "Current time in {city}?",
      "Time in {city}"],
     ["time"], "In {city} it is {time}."),
    ("add", "Add two numbers.", {"a": ("integer", "First number"), "b": ("integer", "Second number")},
     ["Add {a} and {b} with the tool.", "Use the tool to add {a} and {b}.",
      "What is {a} + {b}? Use the tool."],
     ["result"], "The sum is {result}."),
    ("multiply", "Multiply two numbers.", {"a": ("integer", "First number"), "b": ("integer",
     "Second number")},
     ["What is {a} times {b}?", "Multiply {a} by {b}.", "Compute {a} * {b}."],
     ["result"], "{a} times {b} is {result}."),
    ("search", "Search the documents for a query.", {"query": ("string", "Text to search for")},
     ["Search for {query}.", "Find documents about {query}.", "Look for {query} in the documents.",
      "Search: {query}"],
     ["title", "count"], "I found {count} documents. The first one is called {title}."),
    ("get_stock", "Get how many pieces of an item are in stock.", {"item": ("string", "Name of the item")},
     ["How many pieces of {item} are in stock?", "Is {item} in stock?", "Check the stock of {item}.",
      "Stock of {item}?"],
     ["count"], "There are {count} pieces of {item} in stock."),
    ("get_price", "Get the price of an item.", {"item": ("string", "Name of the item")},
     ["What does {item} cost?", "What is the price of {item}?", "Price of {item}?", "How much is {item}?"],
     ["price"], "The price of {item} is {price}."),
    ("set_timer", "Start a timer.", {"minutes": ("integer", "Length in minutes")},
     ["Set a timer for {minutes} minutes.", "Start a timer of {minutes} minutes.",
      "Timer: {minutes} minutes"],
     ["status"], "The timer is set for {minutes} minutes: {status}."),
    ("send_message", "Send a message to a person.",
     {"name": ("string", "Name of the person"), "text": ("string", "Text of the message")},
     ["Send {name} the message: {text}", "Tell {name}: {text}", "Write to {name}: {text}",
      "Message {name}: {text}"],
     ["status"], "The message to {name} was sent: {status}."),
    ("get_user", "Get the record of a user by number.", {"user_id": ("integer", "Number of the user")},
     ["Who is user {user_id}?", "Show user {user_id}.", "Get the record of user {user_id}.",
      "Look up user {user_id}."],
     ["name", "city"], "User {user_id} is {name} from {city}."),
    ("book_room", "Book a hotel room in a city.",
     {"city": ("string", "Name of the city"), "nights": ("integer", "Number of nights")},
     ["Book a room in {city} for {nights} nights.", "I need a hotel in {city} for {nights} nights.",
      "Reserve {nights} nights in {city}."],
     ["code"], "Your room in {city} is booked for {nights} nights. The code is {code}."),
    ("get_distance", "Get the distance between two cities in kilometers.",
     {"start": ("string", "First city"), "end": ("string", "Second city")},
     ["How far is it from {start} to {end}?", "What is the distance between {start} and {end}?",
      "Distance from {start} to {end}"],
     ["kilometers"], "From {start} to {end} it is {kilometers} kilometers."),
    ("convert_currency", "Convert an amount of money.",
     {"amount": ("integer", "Amount"), "source": ("string", "Currency code"), "target": ("string",
      "Currency code")},
     ["Convert {amount} {source} to {target}.", "How much is {amount} {source} in {target}?",
      "{amount} {source} to {target}"],
     ["result"], "{amount} {source} are {result} {target}."),
    ("play_music", "Play a song.", {"title": ("string", "Title of the song")},
     ["Play {title}.", "Please play the song {title}.", "I want to hear {title}.", "Put on {title}."],
     ["status"], "I asked for {title}: {status}."),
    ("set_light", "Set the brightness of the light in a room.",
     {"room": ("string", "Name of the room"), "level": ("integer", "Brightness in percent")},
     ["Set the light in the {room} to {level} percent.", "Light in the {room} to {level}",
      "Dim the {room} light to {level} percent."],
     ["status"], "The light in the {room} is at {level} percent: {status}."),
    ("add_note", "Save a note.", {"text": ("string", "Text of the note")},
     ["Save a note: {text}", "Note: {text}", "Remember this note: {text}", "Write down: {text}"],
     ["id"], "The note is saved under number {id}."),
]  # fmt: skip

_TEXTS = [
    "dinner is at {n}",
    "call me at {n}",
    "the {w} is ready",
    "bring the {w}",
    "see you at the {w}",
    "buy {n} {w}s",
    "meet me in {c}",
]


def _text(rng: Random) -> str:
    return rng.choice(_TEXTS).format(n=rng.randint(1, 99), w=rng.choice(NOUNS), c=rng.choice(CITIES))


def _thing(rng: Random) -> str:
    return rng.choice(NOUNS) if rng.random() < 0.6 else f"{rng.choice(ADJECTIVES)} {rng.choice(NOUNS)}"


ARGUMENT_VALUES: dict[str, Callable[[Random], Any]] = {
    "city": lambda rng: rng.choice(CITIES) if rng.random() < 0.85 else invented_word(rng).capitalize(),
    "start": lambda rng: rng.choice(CITIES),
    "end": lambda rng: rng.choice(CITIES),
    "a": lambda rng: rng.randint(0, 999),
    "b": lambda rng: rng.randint(0, 999),
    "query": lambda rng: " ".join([_thing(rng), *rng.sample(NOUNS, k=rng.randint(0, 2))]),
    "item": _thing,
    "minutes": lambda rng: rng.randint(1, 120),
    "name": lambda rng: rng.choice(NAMES),
    "text": _text,
    "user_id": lambda rng: rng.randint(1, 99999),
    "nights": lambda rng: rng.randint(1, 30),
    "amount": lambda rng: rng.randint(1, 9999),
    "source": lambda rng: rng.choice(["EUR", "USD", "GBP"]),
    "target": lambda rng: rng.choice(["JPY", "CHF", "SEK", "PLN"]),
    "title": lambda rng: f"{rng.choice(ADJECTIVES).capitalize()} {rng.choice(NOUNS).capitalize()}",
    "room": lambda rng: rng.choice(["kitchen", "bedroom", "hall", "library", "garden", "office", "bathroom"]),
    "level": lambda rng: rng.randint(0, 100),
}
RESULT_VALUES: dict[str, Callable[[Random], Any]] = {
    "temperature": lambda rng: rng.randint(-20, 40),
    "condition": lambda rng: rng.choice(
        ["sunny", "cloudy", "rainy", "windy", "snowy", "foggy", "clear", "stormy"]
    ),
    "time": lambda rng: f"{rng.randint(0, 23):02d}:{rng.randint(0, 59):02d}",
    "result": lambda rng: rng.randint(0, 99999),
    "title": lambda rng: f"{rng.choice(ADJECTIVES)} {rng.choice(NOUNS)}",
    "count": lambda rng: rng.randint(0, 999),
    "price": lambda rng: rng.randint(1, 9999),
    "status": lambda rng: rng.choice(["ok", "done", "started", "failed", "accepted", "queued"]),
    "name": lambda rng: rng.choice(NAMES),
    "city": lambda rng: rng.choice(CITIES),
    "code": lambda rng: f"{rng.choice('ABCDEFGH')}{rng.randint(100, 9999)}",
    "kilometers": lambda rng: rng.randint(10, 9999),
    "id": lambda rng: rng.randint(1, 9999),
}
