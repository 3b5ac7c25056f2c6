"""The demo models' training text: the fables in demo_corpus/ and stories built from templates by a seeded generator.

All of it was written for this project. `python3 scripts/demo_stories.py` prints the text that train_demo.py learns.
"""

from __future__ import annotations

import random
import sys
from pathlib import Path

FABLES = Path(__file__).resolve().parent / "demo_corpus" / "fables.txt"

ANIMALS = ("fox", "hare", "crow", "bear", "goat", "owl", "wolf", "mouse", "hen", "donkey", "cat", "frog")
PEOPLE = ("miller", "baker", "farmer", "fisherman", "shepherd", "smith", "king", "tailor", "widow", "sailor")
TRAITS = ("old", "young", "clever", "proud", "poor", "little", "quiet", "tired", "happy", "hungry", "kind", "brave")
PLACES = (
    "in a small house by the river",
    "at the edge of the forest",
    "on a hill above the sea",
    "in a village under the mountains",
    "beside the old mill",
    "not far from the king's road",
)
THINGS = (
    ("a lamp", "lamp"), ("a silver coin", "coin"), ("a basket of apples", "basket"), ("an old key", "key"),
    ("a loaf of bread", "bread"), ("a golden ring", "ring"), ("a jar of honey", "jar"), ("a small bell", "bell"),
    ("a red cloak", "cloak"), ("a wooden box", "box"),
)  # fmt: skip
FINDS = (
    "under a stone in the garden",
    "in the long grass",
    "at the bottom of the well",
    "on the road to the market",
    "behind the door of the barn",
    "between the roots of a tree",
)
WEATHER = (
    "It was a cold morning, and there was snow on the roof.",
    "The sun was warm, and the bees were in the flowers.",
    "It had rained all night, and the river was high.",
    "The wind came from the sea, and the leaves were falling.",
    "The moon was bright, and the road was white with dust.",
)
QUESTIONS = (
    "Where are you going?",
    "What have you found?",
    "Why are you sad?",
    "Will you help me?",
    "Do you know the way to the town?",
    "What will you do now?",
)
ANSWERS = {
    "Where are you going?": ("I am going to the market", "I am going home before the night comes"),
    "What have you found?": ("I have found {a}", "I do not know, but it is not mine"),
    "Why are you sad?": ("I have lost {a}", "Nobody will listen to me"),
    "Will you help me?": ("I will help you if I can", "I will help you when my work is done"),
    "Do you know the way to the town?": ("Follow the river until you see the bridge", "I have never been there"),
    "What will you do now?": ("I will wait until the morning", "I will give {a} to the one who needs it"),
}
TURNS = (
    "They walked together until the evening, and the {y} carried the {t}.",
    "The {x} thought about it for a long time, and then put the {t} on the table.",
    "Then a great noise came from the forest, and the {y} ran away as fast as it could.",
    "But the {t} was heavy, and the {x} had to sit down beside the road.",
    "So they shared what they had, and it was enough for both of them.",
    "The {y} took the {t} and laughed, and the {x} said nothing.",
    'In the night the {x} heard a voice, and the voice said, "Look for the {t} where you lost it."',
)
ENDINGS = (
    "In the morning the {x} gave the {t} back, and they were friends from that day.",
    "When the winter came, there was bread in the house, and nobody was hungry.",
    "The {y} was sorry, and came back, and asked to be forgiven.",
    "From that day the {x} never forgot to say thank you.",
    "And if they have not moved away, they are living there still.",
    "The {x} went home and slept, and in the morning the sun was shining.",
)
MORALS = (
    "A kind word costs nothing.",
    "What is given away comes home again.",
    "The one who waits sees more than the one who runs.",
    "It is better to ask twice than to lose the way once.",
    "A small light is enough for a dark road.",
    "Nobody is too small to help.",
)


def story(dice: random.Random) -> str:
    """One story: who and where, a find, a meeting with questions and answers, a turn, an ending."""
    x, y = dice.choice(ANIMALS + PEOPLE), dice.choice(ANIMALS)
    while y == x:
        y = dice.choice(ANIMALS)
    trait, other = dice.sample(TRAITS, 2)
    (a, t), find, place = dice.choice(THINGS), dice.choice(FINDS), dice.choice(PLACES)
    article = "an" if trait[0] in "aeiou" else "a"
    opening = dice.choice(
        (
            f"Once there was {article} {trait} {x} who lived {place}.",
            f"The {trait} {x} lived {place}.",
            f"There was once {article} {trait} {x}, and the {x} lived {place}.",
        )
    )
    lines = [opening]
    if dice.random() < 0.6:
        lines.append(dice.choice(WEATHER))
    lines.append(f"One day the {x} found {a} {find}.")
    lines.append(f"Then the {other} {y} came by.")
    speakers = [y, x]
    for question in dice.sample(QUESTIONS, dice.choice((1, 2, 2))):
        answer = dice.choice(ANSWERS[question]).format(a=a)
        asks = dice.choice((f'"{question}" asked the {speakers[0]}.', f'The {speakers[0]} asked, "{question}"'))
        lines.append(f'{asks} "{answer}," said the {speakers[1]}.')
        if dice.random() < 0.3:
            speakers.reverse()
    lines.extend(turn.format(x=x, y=y, t=t) for turn in dice.sample(TURNS, dice.choice((1, 2))))
    lines.append(dice.choice(ENDINGS).format(x=x, y=y, t=t))
    if dice.random() < 0.5:
        lines.append(dice.choice(MORALS))
    return " ".join(lines)


def corpus(stories: int = 600, seed: int = 20) -> str:
    """The whole text, ASCII. The same arguments give the same text in every Python from 3.2 on."""
    dice = random.Random(seed)  # noqa: S311 - a story is no secret
    told = [story(dice) for _ in range(stories)]
    fables = FABLES.read_text(encoding="ascii").strip().split("\n\n")
    paragraphs = [line for line in fables if len(line) > 60]
    for index, paragraph in enumerate(paragraphs * 3):
        told.insert((index * 29) % len(told), paragraph)
    return "\n\n".join(told) + "\n"


if __name__ == "__main__":
    sys.stdout.write(corpus())
