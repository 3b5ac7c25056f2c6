"""Writes the text that `rwkvflow imatrix` reads where none is named: English, Chinese, code, numbers, dialogue.

    python scripts/calibration_text.py            # compares the file with what is written here
    python scripts/calibration_text.py --write

Every sentence is made from the lists below by a seeded generator, so the text is ours to ship, and may be made again.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from random import Random

PATH = Path(__file__).resolve().parents[1] / "rwkvflow" / "worker" / "data" / "calibration.txt"
SEED = 20261129
ROUNDS = 90

WHO = [
    "the engineer",
    "a young teacher",
    "my neighbour",
    "the old captain",
    "our committee",
    "a visiting doctor",
    "the night watchman",
    "her sister",
]
DID = ["repaired", "described", "forgot", "sold", "carried", "measured", "painted", "borrowed", "explained", "hid"]
WHAT = [
    "a broken clock",
    "the harbour map",
    "two letters",
    "an empty notebook",
    "the garden wall",
    "a bicycle",
    "the town's budget",
    "some glass bottles",
    "the last report",
]
WHERE = [
    "near the river",
    "behind the station",
    "in a quiet office",
    "at the edge of the forest",
    "on the third floor",
    "beside the market",
    "under the bridge",
]
WHEN = [
    "before sunrise",
    "in early spring",
    "after the meeting",
    "during the storm",
    "on a Tuesday",
    "a year later",
    "as the lights went out",
]
WHY = [
    "because nobody else would",
    "so that the children could learn",
    "although the weather was poor",
    "which surprised everyone",
    "since the price had fallen",
    "while the band was playing",
]
FACT = [
    "Water expands when it freezes",
    "A triangle has three sides",
    "Bread rises because yeast makes gas",
    "Sound travels faster in steel than in air",
    "The tide follows the moon",
    "A map is smaller than the land it shows",
    "Iron rusts in damp air",
]

ZH_WHO = ["老师", "我的邻居", "那位工程师", "一个小女孩", "船长", "医生", "图书管理员"]
ZH_DID = ["修好了", "带来了", "忘记了", "仔细检查了", "画了", "卖掉了", "找到了"]
ZH_WHAT = ["一张旧地图", "两封信", "一只坏了的钟", "花园里的木桌", "今年的报告", "几本历史书", "一辆自行车"]
ZH_WHERE = ["在河边", "在车站后面", "在安静的办公室里", "在市场旁边", "在山脚下", "在三楼"]
ZH_WHEN = ["清晨", "春天的时候", "会议结束以后", "下雨的那天", "昨天晚上", "一年以后"]
ZH_FACT = [
    "水结冰时体积会变大。",
    "三角形有三条边。",
    "月亮影响潮汐。",
    "声音在钢铁里比在空气中传得快。",
    "面包因为酵母而发起来。",
]

NAMES = ["total", "count", "index", "value", "limit", "offset", "width", "result", "buffer", "items"]
VERBS = ["read", "write", "merge", "split", "find", "parse", "update", "remove", "scale"]


def english(r: Random) -> str:
    """A paragraph."""
    out = []
    for _ in range(r.randint(3, 5)):
        kind = r.randrange(4)
        if kind == 0:
            out.append(f"{r.choice(FACT)}.")
        elif kind == 1:
            out.append(f"{r.choice(WHEN).capitalize()}, {r.choice(WHO)} {r.choice(DID)} {r.choice(WHAT)}.")
        elif kind == 2:
            out.append(
                f"{r.choice(WHO).capitalize()} {r.choice(DID)} {r.choice(WHAT)} {r.choice(WHERE)}, {r.choice(WHY)}."
            )
        else:
            out.append(f"It is said that {r.choice(WHO)} once {r.choice(DID)} {r.choice(WHAT)} {r.choice(WHEN)}.")
    return " ".join(out)


def chinese(r: Random) -> str:
    """A paragraph."""
    out = []
    for _ in range(r.randint(2, 4)):
        if r.randrange(4) == 0:
            out.append(r.choice(ZH_FACT))
        else:
            out.append(
                f"{r.choice(ZH_WHEN)},{r.choice(ZH_WHO)}{r.choice(ZH_WHERE)}{r.choice(ZH_DID)}{r.choice(ZH_WHAT)}。"
            )
    return "".join(out).replace(",", "\uff0c")


def code(r: Random) -> str:
    """A function in Python, C or JSON."""
    a, b = r.sample(NAMES, 2)
    verb, n = r.choice(VERBS), r.randint(2, 64)
    kind = r.randrange(3)
    if kind == 0:
        return (
            f"def {verb}_{a}({b}: list[int], {a}: int = {n}) -> int:\n"
            f'    """How often {a} fits into what is in {b}."""\n'
            f"    found = 0\n    for each in {b}:\n        if each % {n} == {r.randrange(n)}:\n"
            f"            found += each // {a}\n    return found"
        )
    if kind == 1:
        return (
            f"static int {verb}_{a}(const uint8_t *{b}, size_t length) {{\n    int {a} = {r.randint(0, 9)};\n"
            f"    for (size_t i = 0; i < length; ++i) {{\n        {a} ^= {b}[i] << {r.randrange(8)};\n"
            f"        if ({a} > 0x{r.randrange(4096):03x}) return -1;\n    }}\n    return {a};\n}}"
        )
    return (
        f'{{"{a}": {n}, "{b}": [{r.random():.3f}, {r.random():.3f}], "{verb}": {r.choice(("true", "false", "null"))}}}'
    )


def numbers(r: Random) -> str:
    """Sums, tables, dates."""
    out = []
    for _ in range(r.randint(3, 6)):
        a, b = r.randint(2, 999), r.randint(2, 99)
        out.append(
            r.choice(
                (
                    f"{a} + {b} = {a + b}",
                    f"{a} - {b} = {a - b}",
                    f"{a} * {b} = {a * b}",
                    f"{a * b} / {b} = {a}",
                    f"20{r.randint(10, 29)}-{r.randint(1, 12):02d}-{r.randint(1, 28):02d}, {a / 7:.2f} km, {b}%",
                    f"| {a} | {b} | {a * a} |",
                )
            )
        )
    return "\n".join(out)


def dialogue(r: Random) -> str:
    """A question and its answer, in the form that the models were trained on."""
    what, who = r.choice(WHAT), r.choice(WHO)
    asked, told = r.choice(
        (
            (f"Who {r.choice(DID)} {what}?", f"It was {who}, {r.choice(WHEN)}."),
            (f"Where can I find {what}?", f"You will find it {r.choice(WHERE)}. Ask {who} if it is not there."),
            ("Tell me something that is true.", f"{r.choice(FACT)}."),
            (f"What is {(a := r.randint(2, 60))} plus {(b := r.randint(2, 60))}?", f"{a} plus {b} is {a + b}."),
            ("请告诉我一件事。", r.choice(ZH_FACT)),
        )
    )
    return f"User: {asked}\n\nAssistant: {told}"


PARTS: tuple[Callable[[Random], str], ...] = (english, chinese, code, english, numbers, dialogue)


def text() -> str:
    """All of it."""
    r = Random(SEED)  # noqa: S311
    return "\n\n".join(part(r) for _ in range(ROUNDS) for part in PARTS) + "\n"


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="write the file")
    if parser.parse_args().write:
        PATH.write_text(text(), encoding="utf-8")
        return 0
    return 0 if PATH.read_text(encoding="utf-8") == text() else 1


if __name__ == "__main__":
    sys.exit(main())
