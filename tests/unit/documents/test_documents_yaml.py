"""YAML text to nodes: values of YAML 1.2, places, and every way in which a text can be wrong."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from rwkvflow.base.errors import DocumentError, UsageError
from rwkvflow.documents.yaml.source import (
    MAX_BYTES,
    DocumentSource,
    _Composer,
    decode,
    parse,
    read_text,
    render_path,
    to_python,
)


def value(text: str) -> Any:
    source = parse(text, "r.yaml")
    assert source.findings == []
    return source.to_python()


def problems(text: str | bytes) -> list[str]:
    data = text.encode() if isinstance(text, str) else text
    try:
        return [str(finding) for finding in parse(decode(data, "r.yaml"), "r.yaml").findings]
    except DocumentError as error:
        return [str(finding) for finding in error.findings]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("no", "no"),
        ("on", "on"),
        ("Yes", "Yes"),
        ("true", True),
        ("FALSE", False),
        ("tRue", "tRue"),
        ("~", None),
        ("null", None),
        ("nUll", "nUll"),
        ("3.10", 3.1),
        ("010", 10),
        ("0o17", 15),
        ("0xff", 255),
        ("0b1", "0b1"),
        ("1_000", "1_000"),
        ("64e-5", 64e-5),
        ("1.e+3", 1000.0),
        (".5", 0.5),
        ("-.inf", -math.inf),
        ("3:10", "3:10"),
        ("2024-01-01", "2024-01-01"),
        ("=", "="),
        ("1e", "1e"),
        ("+", "+"),
        ("0o8", "0o8"),
        ("'3.10'", "3.10"),
        ('"true"', "true"),
        ("!!str 3.10", "3.10"),
        ("! 7", "7"),
        ("9" * 5000, "9" * 5000),
    ],
)
def test_scalars_follow_yaml_1_2(text: str, expected: object) -> None:
    found = value(f"a: {text}")["a"]
    assert (type(found), found) == (type(expected), expected)


def test_not_a_number() -> None:
    assert math.isnan(value("a: .nan")["a"])


def test_collections_aliases_and_an_empty_value() -> None:
    text = "a: &x [1, {b: c}]\nd: *x\ne:\nf: |\n  two\n  lines\n"
    assert value(text) == {"a": [1, {"b": "c"}], "d": [1, {"b": "c"}], "e": None, "f": "two\nlines\n"}


def test_places_count_from_one() -> None:
    source = parse("models:\n  - name: a\n    source: é\n  - {name: ü, x: y}\n", "r.yaml")
    assert str(source.finding(("models", 0, "source"), "m")) == "r.yaml:3:13: models[0].source: m"
    assert str(source.finding(("models", 1, "x"), "m")) == "r.yaml:4:18: models[1].x: m"
    assert str(source.finding(("models", 1, "x"), "m", at_key=True)) == "r.yaml:4:15: models[1].x: m"
    assert str(source.finding(("models", 7, "x"), "m")) == "r.yaml:2:3: models[7].x: m"
    assert [(path, text) for path, text in source.texts("models.*.name")] == [
        (("models", 0, "name"), "a"),
        (("models", 1, "name"), "ü"),
    ]


def test_a_value_left_out_is_pointed_at_by_its_key() -> None:
    assert str(parse("a: b\nmodels:\n\n\n", "r.yaml").finding(("models",), "m")) == "r.yaml:2:1: models: m"


def test_paths_show_odd_keys_in_quotes() -> None:
    assert render_path(("a", 0, "b-c")) == "a[0].b-c"
    assert render_path(("a", "\x1b[31m", "b")) == r"a['\x1b[31m'].b"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "1:1: the file is empty"),
        ("# nothing\n", "1:1: the file is empty"),
        ("a: 1\nb: 2\na: 3\n", "3:1: duplicate key 'a'; it first stands on line 1"),
        ("m:\n  - {a: 1, 'a': 3}\n", "2:12: m[0]: duplicate key 'a'; it first stands on line 2"),
        ("a: 1\n\tb: 2\n", "2:1: a tab; YAML is indented with spaces"),
        ("a:\n\t- b\n", "2:1: a tab; YAML is indented with spaces"),
        ("a: 'b\nc: d\n", "1:4: the quote that opens here is not closed"),
        (
            'a: "\\q"\n',
            "1:6: a backslash that escapes nothing known; in single quotes, a backslash is just a backslash",
        ),
        ("a: [b, c\nd: e\n", "2:2: a ',' or ']' is missing in the list that opens on line 1"),
        ("a: {b: c\n", "2:1: a ',' or '}' is missing in the mapping that opens on line 1"),
        ("a: [b]]\n", "1:7: a ']' where none can be; write a text that holds it in quotes"),
        (
            "a: b: c\n",
            "1:5: a ':' where no key can be; check the indentation, or write a text that holds ': ' in quotes",
        ),
        (
            "a: b\n c: d\n",
            "2:3: a ':' where no key can be; check the indentation, or write a text that holds ': ' in quotes",
        ),
        ("a:\n  - b\n c: d\n", "3:2: the indentation differs from that of the block from line 1"),
        ("a: - b\n", "1:4: a list item or key where none can be; check the indentation, or write the text in quotes"),
        ("a: b\nc\nd: e\n", "3:1: the line 2 is no 'key: value' and no '- item'; is a ':' missing there?"),
        ("a: @b\n", "1:4: a value cannot start with '@'; write it in quotes"),
        ("a: *\n", '1:5: a value that starts with * must be in quotes, e.g. "*" or "*-world"'),
        (
            "a: *-world\n",
            '1:4: a: no anchor &-world before this alias; text that starts with * needs quotes: "*-world"',
        ),
        (
            "a: &world 1\nb: *wordl\n",
            "2:4: b: no anchor &wordl before this alias; did you mean 'world'?; "
            'text that starts with * needs quotes: "*wordl"',
        ),
        ("a: &x [*x]\n", "1:8: a[0]: the alias *x stands inside its own anchor"),
        ("a: &x 1\nb: &x 2\n", "2:4: b: the anchor &x is defined twice"),
        ("a: 1\n---\nb: 2\n", "2:1: a second document starts here; one file holds one document"),
        (
            "a: !!python/object:os.system x\n",
            "1:4: a: the tag '!!python/object:os.system' is not supported; "
            "a value that starts with ! must be in quotes",
        ),
        ("a: !!float 3\n", "1:4: a: the tag '!!float' is not supported; a value that starts with ! must be in quotes"),
        (
            "x: &x {a: b}\ny:\n  <<: *x\n",
            "3:3: y: merge keys (<<) are not part of YAML 1.2; write the keys out, or alias a whole value",
        ),
        ("1: 2\n", "1:1: a key must be text, not '1'; write it in quotes"),
        ("a: {true: 2}\n", "1:5: a: a key must be text, not 'true'; write it in quotes"),
        ("? [a]\n: b\n", "1:3: a key must be text; a value that starts with { or [ must be in quotes"),
        (b"a: b\nb: \xc3\xa9\xff\n", "2:5: byte 0xff is not UTF-8; save the file as UTF-8"),
        ("a: b".encode("utf-16"), "1:1: the file is UTF-16; save it as UTF-8"),
        (b"a: b\nc: \x00\n", "2:4: the control character U+0000 cannot stand in YAML"),
        ("a: 1\n<<<<<<< HEAD\nb: 2\n=======\nb: 3\n>>>>>>> x\n", "2:1: the file holds an unresolved merge conflict"),
        (b"x" * (MAX_BYTES + 1), "1:1: larger than 4 MiB; this is no recipe, workflow or lock"),
    ],
)
def test_each_problem_has_its_place_and_remedy(text: str | bytes, expected: str) -> None:
    assert problems(text) == [f"r.yaml:{expected}"]


def test_all_problems_of_composing_are_told_at_once() -> None:
    found = problems("a: 1\na: 2\nb: *none\n3: x\n")
    assert [message.split(":")[1] for message in found] == ["2", "3", "4"]


def test_a_byte_order_mark_is_dropped() -> None:
    assert decode(b"\xef\xbb\xbfa: 1", "r.yaml") == "a: 1"


@pytest.mark.parametrize("opening", ["[", "{a: ", "- ", "? "])
def test_hostile_nesting_is_refused_early(opening: str) -> None:
    assert "nested more than 40 levels deep" in problems(opening * 20_000)[0]


def test_an_alias_bomb_is_refused() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 12)]
    assert "more than 200,000 values, aliases written out" in problems("\n".join(lines))[-1]


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there is no such file"):
        read_text(tmp_path / "none.yaml")
    with pytest.raises(UsageError, match="cannot be read"):
        read_text(tmp_path)


plain_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**12), 10**12) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


@given(plain_values)
def test_what_pyyaml_writes_in_quotes_reads_back(data: object) -> None:
    text = yaml.safe_dump({"top": data}, default_style='"', allow_unicode=False)
    # Quoted and tagged: !!int "7" is refused on purpose, so only texts and collections are compared.
    if "!!" not in text:
        assert value(text) == {"top": data}


def composed(loader: Any, text: str) -> DocumentSource | None:
    try:
        return _Composer("r.yaml").compose(loader, text)
    except (yaml.YAMLError, DocumentError, ValueError):
        return None


yaml_like = st.text(alphabet="ab:- \n'\"[]{},#&*!|>?%@~0.\\", max_size=40)


@pytest.mark.skipif(not hasattr(yaml, "CSafeLoader"), reason="PyYAML was built without libyaml")
@given(yaml_like)
@example("a: {b: [c, *d]}\n")
def test_libyaml_and_pyyaml_give_the_same_values_where_both_understand(text: str) -> None:
    fast, slow = composed(yaml.CSafeLoader, text), composed(yaml.SafeLoader, text)
    if fast is not None and slow is not None and not fast.findings and not slow.findings:
        assert repr(to_python(fast.root)) == repr(to_python(slow.root))


@given(st.text(max_size=60) | yaml_like | st.binary(max_size=60))
@example("a: &a\n")
@example("\x85: ?")
def test_any_text_gives_a_document_or_findings_with_places(text: str | bytes) -> None:
    data = text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass")
    try:
        findings = parse(decode(data, "r.yaml"), "r.yaml").findings
    except DocumentError as error:
        findings = list(error.findings)
        assert findings
    for finding in findings:
        assert finding.line >= 1
        assert finding.column >= 1
        assert "\n" not in str(finding)
