"""Vocabulary of the synthetic data: everyday words, names, places, and invented words.

The lists are short on purpose. A model of ten million parameters copies words it has met
often far more reliably than rare ones, and `invented_word` supplies what no list contains.
"""

from __future__ import annotations

from random import Random

NOUNS = """
anchor apple apron arch arrow autumn badge bag ball balloon banana bank barn basket beach bear bed bee bell
bench berry bicycle bird blanket boat bone book boot bottle bowl box branch bread brick bridge brook broom
brush bucket button cabin cable cake camel camera candle canoe canyon card carpet carrot castle cat cave
chair chalk cheese cherry chess chicken circle clock cloud clover coat coffee coin comet compass copper
coral corn cotton crane crayon creek crow crown cup curtain daisy deer desert desk diamond dog dolphin door
dragon drawer dream drum duck eagle earth egg elbow elephant engine falcon farm feather fence fern field
finger fire fish flag flame flower flute forest fork fox frog fruit garden gate ghost giraffe glass glove
goat gold goose grape grass guitar hammer harbor hat hawk heart hill honey horse house ice ink iron island
ivory jacket jar jelly jewel journey juice jungle kettle key king kitchen kite kitten knife ladder lake lamp
lantern leaf lemon letter library light lily lion lizard lock lunch magnet mango maple marble market meadow
medal melon mirror monkey moon morning moss mountain mouse mushroom music nail napkin needle nest night
north notebook nut oak ocean olive onion orange orchid otter oven owl paddle paint palace panda paper parrot
path peach peanut pearl pebble pen pencil penguin pepper piano pillow pilot pine pipe planet plate plum
pocket pond pony potato pumpkin puzzle queen quilt rabbit radio rain raven ribbon rice ring river road robin
robot rock rocket roof root rope rose ruby saddle sail salad salt sand scarf school sea seed shadow sheep
shell ship shoe shovel silk silver sister sky snail snow soap sock song soup south spider spoon spring
square squirrel stable star station stone storm story stove straw street sugar summer sun swan table tail
tea teapot temple tent thread thunder ticket tiger timber toast tomato tool torch towel tower town toy train
tree trumpet tulip tunnel turtle umbrella valley vase velvet village violin wagon wall walnut watch water
wave weather whale wheat wheel whistle willow wind window winter wire wolf wood wool yard yarn zebra zipper
""".split()  # noqa: SIM905

ADJECTIVES = """
amber ancient big black blue bold brave bright brown calm cheap clean clear clever cold cool crimson curious
dark deep dry eager early easy empty fancy fast fierce fine flat fresh friendly gentle giant gold gray great
green happy hard heavy hidden high hollow honest hot huge humble icy jolly kind large late lazy light little
lively long loud lucky mild misty modern narrow neat new noble odd old orange pale pink plain polite proud
purple quick quiet rapid rare red rich ripe rough round royal sad safe salty sharp shiny short shy silent
silver simple slow small smooth soft solid spicy steady strong sunny sweet swift tall tame tidy tiny tough
violet warm wet white wide wild wise wooden yellow young
""".split()  # noqa: SIM905

VERBS = """
brings builds buys carries catches cleans climbs closes cooks counts crosses draws drinks drops eats enters
finds fixes follows forgets gives greets hears helps hides holds keeps kicks knows leaves lifts likes loses
loves makes meets moves needs opens paints passes plants plays pulls pushes reads reaches remembers repairs
rides sees sells sends shares shows sings sketches sleeps smells sorts starts stops studies takes teaches
throws touches visits waits walks wants washes watches wears writes
""".split()  # noqa: SIM905

FUNCTION_WORDS = """
a about above across after again all always and any around at away because before behind below beside
between but by down during each every far for from here how in into it its just many more most much near
never next not now of off often on only or our out over past she so some soon still than that the their them
then there they this through to today together tomorrow too under until up very was we were what when where
which while who why will with without yesterday yet you your he his her is are has have had do does did can
could should would may
""".split()  # noqa: SIM905

NAMES = """
Ada Adam Aisha Alan Alice Amir Amy Ana Anna Anton Arthur Ava Ben Bella Boris Bruno Carl Carla Carmen Chen
Chloe Clara Claire Daniel Daria David Diana Diego Dora Edgar Elena Eli Ella Emil Emma Erik Eva Fatima Felix
Fiona Frank Freya George Grace Greta Hana Hannah Harry Hassan Helen Hugo Ian Ines Irina Isaac Ivan Ivy Jack
James Jana Jane Jonas Josef Julia Kai Karl Kate Kenji Lara Laura Lea Leo Liam Lily Lina Linus Lucas Lucy
Luis Maja Marco Maria Mark Marta Max Maya Mei Mia Milo Mina Nadia Nina Noah Nora Olaf Oleg Olga Oliver Omar
Oscar Otto Pablo Paul Peter Petra Priya Rosa Ruth Sam Sara Sofia Stella Sven Tara Theo Thomas Tina Tom Uma
Vera Victor Viola Wei Yara Yusuf Zara Zoe
""".split()  # noqa: SIM905

CITIES = """
Accra Athens Austin Bangkok Berlin Bern Bogota Boston Bristol Cairo Chicago Dakar Delhi Denver Dublin
Florence Geneva Hamburg Hanoi Havana Helsinki Istanbul Kyiv Kyoto Lagos Lima Lisbon London Lyon Madrid
Manila Milan Mumbai Munich Nairobi Naples Osaka Oslo Paris Perth Porto Prague Quito Riga Rome Seoul Seville
Sofia Stockholm Sydney Tallinn Tokyo Toronto Turin Vienna Warsaw Zurich
""".split()  # noqa: SIM905

COLORS = """
amber black blue brown crimson gold gray green orange pink purple red silver violet white yellow
""".split()  # noqa: SIM905

PLAIN_WORDS = NOUNS + ADJECTIVES + VERBS + FUNCTION_WORDS

_ONSETS = """
b br c ch cl d dr f fl g gr h j k kr l m n p pl pr qu r s sh sk sl sn st t th tr v w y z
""".split()  # noqa: SIM905
_VOWELS = """
a e i o u ai ea ee ie oa oo ou
""".split()  # noqa: SIM905
_CODAS = [
    "",
    "",
    "",
    "b",
    "ck",
    "d",
    "g",
    "l",
    "ll",
    "m",
    "n",
    "nd",
    "nt",
    "p",
    "r",
    "rt",
    "s",
    "st",
    "t",
    "x",
]

# Ranges whose characters need two to four bytes, so echoing them crosses token boundaries inside a character.
_UNICODE_RANGES = [
    (0x00C0, 0x00FF), (0x0100, 0x017F), (0x0391, 0x03A1), (0x03B1, 0x03C9), (0x0410, 0x044F), (0x05D0, 0x05EA),
    (0x0627, 0x063A), (0x0905, 0x0939), (0x0E01, 0x0E2E), (0x3042, 0x3093), (0x30A2, 0x30F3), (0x4E00, 0x9FA0),
    (0xAC00, 0xD7A3), (0x2190, 0x21FF), (0x2200, 0x22FF), (0x2600, 0x26FF), (0x1F300, 0x1F5FF), (0x1F600, 0x1F64F),
    (0x1F680, 0x1F6C5), (0x1F900, 0x1F9FF),
]  # fmt: skip
EMOJI = """
😀 😂 🙂 😉 😍 🤔 😎 😴 🥳 👍 👋 🙏 🎉 🚀 🌍 🌞 🌧️ 🔥 ⭐ ❤️ 🍎 🍕 ☕ 🐱 🐶 🦊 🐢 🦉 🌲 🌸 📚 ✅ ❌ ⚡ 🎵 🏠 🚲 👩‍💻 🇫🇷 🏳️‍🌈
""".split()  # noqa: SIM905


def invented_word(rng: Random) -> str:
    """A pronounceable word of one to three syllables that no list contains."""
    syllables = rng.randint(1, 3)
    return "".join(rng.choice(_ONSETS) + rng.choice(_VOWELS) + rng.choice(_CODAS) for _ in range(syllables))


def any_word(rng: Random) -> str:
    """Mostly a listed word, at times an invented one."""
    return invented_word(rng) if rng.random() < 0.2 else rng.choice(PLAIN_WORDS)


def unicode_word(rng: Random) -> str:
    """One to six characters from one non-ASCII range, or an emoji."""
    if rng.random() < 0.4:
        return rng.choice(EMOJI)
    low, high = rng.choice(_UNICODE_RANGES)
    return "".join(chr(rng.randint(low, high)) for _ in range(rng.randint(1, 6)))


def code(rng: Random) -> str:
    """A short code such as `K7QX` or `b3-f09`: letters and digits without meaning."""
    alphabet = rng.choice(
        ["ABCDEFGHJKLMNPQRSTUVWXYZ0123456789", "abcdefghijklmnopqrstuvwxyz0123456789", "0123456789abcdef"]
    )
    text = "".join(rng.choices(alphabet, k=rng.randint(3, 8)))
    return f"{text[:3]}-{text[3:]}" if len(text) > 5 and rng.random() < 0.4 else text


def sentence(rng: Random) -> str:
    """One sentence of 4 to 12 words, grammatical enough to read, random enough to need copying."""
    subject = f"{rng.choice(ADJECTIVES)} {rng.choice(NOUNS)}"
    target = f"{rng.choice(ADJECTIVES)} {rng.choice(NOUNS)}"
    place = rng.choice(
        ["near", "under", "behind", "beside", "above", "across", "after", "before", "without", "with"]
    )
    shape = rng.random()
    if shape < 0.4:
        text = f"The {subject} {rng.choice(VERBS)} the {target}"
    elif shape < 0.6:
        text = f"{rng.choice(NAMES)} {rng.choice(VERBS)} a {target} {place} the {rng.choice(NOUNS)}"
    elif shape < 0.75:
        who, count = f"In {rng.choice(CITIES)}, {rng.choice(NAMES)} {rng.choice(VERBS)}", rng.randint(2, 9999)
        text = f"{who} {count} {rng.choice(NOUNS)}s"
    elif shape < 0.9:
        who = f"Every {rng.choice(NOUNS)} {rng.choice(VERBS)}"
        text = f"{who} {rng.choice(FUNCTION_WORDS)} {any_word(rng)} {place} {rng.choice(CITIES)}"
    else:
        text = " ".join(any_word(rng) for _ in range(rng.randint(4, 12))).capitalize()
    return text + rng.choice([".", ".", ".", ".", "!", "?"])
