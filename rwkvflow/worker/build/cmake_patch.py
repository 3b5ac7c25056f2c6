"""Patch rules: change what CMake wrote before it is built. Pure: texts in, texts out.

A rule names files by globs below the build folder, a Python regular expression (re.MULTILINE: ^ and $ mean lines),
a replacement, how many matches it expects over all its files, and when it applies. In a pattern and in a
replacement, @SOURCE@, @BUILD@ and @ROOT@ (the folder that holds both) stand for the folders of the build at hand,
so that a rule can speak of them without knowing where they are.
"""

from __future__ import annotations

import contextlib
import difflib
import re
import signal
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

from rwkvflow.worker.errors import WorkerError

RULE_SECONDS = 10.0  # for one rule in one file; a sane pattern needs milliseconds
SHOWN_LINES = 3
SHOWN_FILES = 8
WIDTH = 160
KEYS = frozenset({"name", "files", "pattern", "replace", "expect", "when"})
CONDITIONS = frozenset({"host", "target", "cmake"})


@dataclass(frozen=True)
class CMakeRule:
    """One patch rule; the fields are those of the recipe's PatchRule, and two that only shipped rules have.

    `within`, where not empty, is a pattern for the parts of a file in which `pattern` is looked for.
    """

    name: str
    files: tuple[str, ...]
    pattern: str
    replace: str
    expect: str = "1+"
    when: Mapping[str, str] = field(default_factory=dict)
    shipped: bool = False
    within: str = ""

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> CMakeRule:
        """The rule in a request. Raises WorkerError naming the rule and what is wrong with it."""
        name = str(value.get("name", "without a name"))
        missing = [key for key in ("name", "files", "pattern", "replace") if key not in value]
        unknown = sorted(set(value) - KEYS)
        if missing or unknown:
            what = f"lacks {', '.join(missing)}" if missing else f"has unknown keys {', '.join(unknown)}"
            raise WorkerError(f"patch rule '{name}' {what}")
        rule = cls(
            name,
            tuple(value["files"]),
            value["pattern"],
            value["replace"],
            value.get("expect") or "1+",
            dict(value.get("when") or {}),
        )
        if not re.fullmatch(r"any|\d+|\d+\+", rule.expect):
            raise WorkerError(f"patch rule '{name}': expect must be a number, a number with + or any")
        for glob in rule.files:
            if glob.startswith("/") or ".." in glob.split("/"):
                raise WorkerError(f"patch rule '{name}': {glob}: only files below the build folder are patched")
        if unknown := sorted(set(rule.when) - CONDITIONS):
            raise WorkerError(f"patch rule '{name}': when knows host, target and cmake, not {', '.join(unknown)}")
        return rule


@dataclass(frozen=True)
class Situation:
    """What a rule's conditions and placeholders are about.

    `host` and `target` read <system>-<processor>, such as linux-x86_64. `places` maps a placeholder to the
    spellings of its folder; the first one is what a replacement gets.
    """

    host: str
    target: str
    cmake: str
    places: Mapping[str, Sequence[str]] = field(default_factory=dict)


@dataclass
class Report:
    """What one rule did: its matches by file. `applied` is False where its conditions do not hold."""

    rule: CMakeRule
    applied: bool
    matches: dict[str, int] = field(default_factory=dict)

    @property
    def total(self) -> int:
        """The number of matches in all files."""
        return sum(self.matches.values())


def glob_matches(glob: str, path: str) -> bool:
    """Whether a relative POSIX path matches; * and ? stop at a slash, **/ is any number of folders."""
    return _glob_pattern(glob).fullmatch(path) is not None


def wanted_files(rules: Iterable[CMakeRule], names: Iterable[str]) -> list[str]:
    """Those of `names` that some rule looks at, sorted."""
    patterns = [_glob_pattern(glob) for rule in rules for glob in rule.files]
    return sorted(name for name in names if any(pattern.fullmatch(name) for pattern in patterns))


def applies(rule: CMakeRule, situation: Situation) -> bool:
    """Whether all of a rule's conditions hold."""
    when = rule.when
    return (
        fnmatchcase(situation.host, when.get("host", "*"))
        and fnmatchcase(situation.target, when.get("target", "*"))
        and version_matches(situation.cmake, when.get("cmake", ""), rule.name)
    )


def version_matches(version: str, specifier: str, name: str = "") -> bool:
    """Whether a CMake version meets a comma-separated specifier such as ">=3.25,<4"."""
    have = _version(version)
    for part in filter(None, (piece.strip() for piece in specifier.split(","))):
        found = re.fullmatch(r"(~=|==|!=|>=|<=|>|<)\s*(\d+(?:\.\d+)*)(\.\*)?", part)
        if not found:
            raise WorkerError(f"patch rule '{name}': {part!r} is no version specifier such as >=3.25")
        operator, wanted, prefix = found[1], _version(found[2]), found[3] is not None
        length = len(wanted) if prefix else max(len(have), len(wanted))
        left = (have + (0,) * length)[:length]
        right = (wanted + (0,) * length)[:length]
        holds = {
            "==": left == right,
            "!=": left != right,
            ">=": left >= right,
            "<=": left <= right,
            ">": left > right,
            "<": left < right,
            "~=": left >= right and have[: len(wanted) - 1] == wanted[:-1],
        }
        if not holds[operator]:
            return False
    return True


def apply(
    rules: Sequence[CMakeRule],
    files: Mapping[str, str],
    situation: Situation,
    seconds: float = RULE_SECONDS,
) -> tuple[dict[str, str], list[Report]]:
    """The files with all rules applied in order, and a report for each rule. Checks no expectation: see `check`.

    Raises WorkerError for a pattern or replacement that is not valid and for one that takes longer than `seconds`
    in one file.
    """
    texts = dict(files)
    reports = []
    for rule in rules:
        report = Report(rule, applies(rule, situation))
        reports.append(report)
        if not report.applied:
            continue
        pattern, replacement = _compiled(rule, situation)
        for path in wanted_files([rule], texts):
            try:
                with _time_limit(seconds):
                    texts[path], count = _substitute(pattern, replacement, texts[path], rule.within)
            except _TooSlow:
                raise WorkerError(
                    f"patch rule '{rule.name}': its pattern did not finish in {path} within {seconds:g} s\n"
                    f"  pattern: {rule.pattern}\n"
                    "  what to do: avoid nested repetition such as (a+)+ or (.*)*, and anchor the pattern"
                ) from None
            except (re.error, IndexError) as error:
                raise WorkerError(f"patch rule '{rule.name}': replace: {error}") from error
            report.matches[path] = count
    return texts, reports


def merge(first: Sequence[Report], second: Sequence[Report]) -> list[Report]:
    """Reports of the same rules over two disjoint sets of files, as one."""
    return [Report(a.rule, a.applied, {**a.matches, **b.matches}) for a, b in zip(first, second, strict=True)]


def check(reports: Sequence[Report], files: Mapping[str, str], names: Sequence[str]) -> None:
    """Raise WorkerError with every rule whose number of matches is not the expected one.

    `files` are the texts before patching (for the nearest lines), `names` all files of the build folder.
    """
    problems = [_problem(report, files, names) for report in reports if report.applied and not _as_expected(report)]
    if problems:
        raise WorkerError("\n".join(problems))


def unified_diff(before: Mapping[str, str], after: Mapping[str, str], redact: Mapping[str, str]) -> str:
    """One unified diff of all files that differ, in the order of their names, without times.

    Whatever of this machine is a key of `redact` shows as its value, longest key first. Line numbers count the lines
    that the diff shows: what CMake writes in between is longer on one machine than on another.
    """
    pieces: list[str] = []
    for name in sorted(before):
        if before[name] == after[name]:
            continue
        old, new = (hide(text, redact).split("\n") for text in (before[name], after[name]))
        lines = list(difflib.unified_diff(old, new, f"a/{name}", f"b/{name}", lineterm=""))
        pieces.extend(line + "\n" for line in _counted(lines))
    return "".join(pieces)


_HUNK = re.compile(r"@@ -\d+(?:,(\d+))? \+\d+(?:,(\d+))? @@")


def _counted(lines: Sequence[str]) -> Iterator[str]:
    """The lines of one file's diff, its hunks numbered as if nothing stood between them."""
    before = after = 1
    left = 0  # lines of a hunk that are still to come, of which none is a header
    for line in lines:
        if left == 0 and (match := _HUNK.fullmatch(line)):
            counts = [1 if count is None else int(count) for count in match.groups()]
            yield f"@@ -{before},{counts[0]} +{after},{counts[1]} @@"
            before, after, left = before + counts[0], after + counts[1], sum(counts)
            continue
        left -= 2 if line.startswith(" ") else 1 if left else 0
        yield line


def hide(text: str, redact: Mapping[str, str]) -> str:
    """The text with every key of `redact` replaced by its value, longest key first."""
    for key in sorted((key for key in redact if key), key=lambda key: (-len(key), key)):
        text = text.replace(key, redact[key])
    return text


def _version(text: str) -> tuple[int, ...]:
    found = re.match(r"\d+(?:\.\d+)*", text)
    return tuple(int(part) for part in found[0].split(".")) if found else ()


def _glob_pattern(glob: str) -> re.Pattern[str]:
    pattern = ""
    position = 0
    while position < len(glob):
        if glob.startswith("**/", position):
            pattern += "(?:[^/]+/)*"
            position += 3
            continue
        if glob.startswith("**", position):
            pattern += ".*"
            position += 2
            continue
        character = glob[position]
        end = glob.find("]", position + 2)
        if character == "[" and end > 0:
            inside = glob[position + 1 : end].replace("\\", r"\\")
            pattern += "[" + ("^" + inside[1:] if inside.startswith("!") else inside) + "]"
            position = end
        else:
            pattern += {"*": "[^/]*", "?": "[^/]"}.get(character) or re.escape(character)
        position += 1
    return re.compile(pattern, re.DOTALL)


def _compiled(rule: CMakeRule, situation: Situation) -> tuple[re.Pattern[str], str]:
    pattern, replacement = rule.pattern, rule.replace
    for placeholder, folders in situation.places.items():
        choice = "|".join(re.escape(folder) for folder in sorted(set(folders), key=lambda f: (-len(f), f)))
        pattern = pattern.replace(placeholder, f"(?:{choice})")
        replacement = replacement.replace(placeholder, folders[0].replace("\\", r"\\"))
    try:
        return re.compile(pattern, re.MULTILINE), replacement
    except (re.error, OverflowError, RecursionError) as error:
        raise WorkerError(f"patch rule '{rule.name}': pattern: {error}: {rule.pattern}") from error


def _substitute(pattern: re.Pattern[str], replacement: str, text: str, within: str) -> tuple[str, int]:
    if not within:
        return pattern.subn(replacement, text)
    total = 0

    def inside(found: re.Match[str]) -> str:
        nonlocal total
        part, count = pattern.subn(replacement, found[0])
        total += count
        return part

    return re.sub(within, inside, text, flags=re.MULTILINE), total


class _TooSlow(Exception):
    pass


@contextlib.contextmanager
def _time_limit(seconds: float) -> Iterator[None]:
    """Raise _TooSlow in the block; re looks at signals while it matches. Only the main thread can be limited."""
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "setitimer"):
        yield
        return

    def stop(number: int, frame: object) -> None:
        raise _TooSlow

    previous = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


def _as_expected(report: Report) -> bool:
    expect = report.rule.expect
    if expect == "any":
        return True
    if expect.endswith("+"):
        return report.total >= int(expect[:-1])
    return report.total == int(expect)


def _problem(report: Report, files: Mapping[str, str], names: Sequence[str]) -> str:
    rule = report.rule
    count = f"{report.total} match" + ("" if report.total == 1 else "es")
    lines = [f"patch rule '{rule.name}': {count}, expected {rule.expect}", f"  pattern: {rule.pattern}"]
    if not report.matches:
        lines.append(f"  no file below the build folder matches {', '.join(rule.files)}")
        plain = [glob.rsplit("/", 1)[-1] for glob in rule.files]
        ends = {name.rsplit("/", 1)[-1] for name in names}
        near = sorted({hit for glob in plain for hit in difflib.get_close_matches(glob, ends, 3, 0.6)})
        if near:
            lines.append(f"  there are: {', '.join(near)}")
        lines.append("  what to do: correct `files`, or write `expect: any` if the file need not be there")
        return "\n".join(lines)
    looked = sorted(report.matches)
    shown = [f"{path} ({report.matches[path]})" if report.matches[path] else path for path in looked]
    more = f" and {len(shown) - SHOWN_FILES} more" if len(shown) > SHOWN_FILES else ""
    lines.append(f"  looked at: {', '.join(shown[:SHOWN_FILES])}{more}")
    if report.total == 0:
        near_lines = _nearest(rule.pattern, {path: files[path] for path in looked if path in files})
        if near_lines:
            lines.append("  nearest lines:")
            lines.extend(f"    {line}" for line in near_lines)
        remedy = "correct the pattern or `files`, or write `expect: any` if it need not match"
    else:
        remedy = f'look at the matches; if they are right, write `expect: "{report.total}"` or `"1+"`'
    lines.append(f"  what to do: {remedy}")
    return "\n".join(lines)


def _nearest(pattern: str, files: Mapping[str, str]) -> list[str]:
    """Lines that share the most text with the literal parts of a pattern, as path:line: text."""
    plain = re.sub(r"\\([^A-Za-z0-9])", r"\1", re.sub(r"\(\?[a-zA-Z<!=:P]+|\\[A-Za-z0-9]", " ", pattern))
    words = set(re.findall(r"[A-Za-z0-9_]{2,}", plain))
    if not words:
        return []
    scored = []
    for path in sorted(files):
        for number, line in enumerate(files[path].split("\n"), 1):
            score = sum(len(word) for word in words if word in line)
            if score:
                # Of lines that share equally much, the shorter one says it more clearly.
                scored.append((-score, len(line), path, number, line))
    scored.sort()
    return [f"{path}:{number}: {_around(line, words)}" for _, _, path, number, line in scored[:SHOWN_LINES]]


def _around(line: str, words: Iterable[str]) -> str:
    line = line.strip()
    if len(line) <= WIDTH:
        return line
    at = min(line.find(word) for word in words if word in line)
    start = max(0, min(at - WIDTH // 2, len(line) - WIDTH))
    return ("…" if start else "") + line[start : start + WIDTH] + ("…" if start + WIDTH < len(line) else "")
