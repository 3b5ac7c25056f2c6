"""Recipes: every mistake told at once, in its place, in words; and what a right one means."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from rwkvflow.base.errors import DocumentError, Finding
from rwkvflow.documents.formats import folder_name, format_names, splitting
from rwkvflow.documents.load import load_document, load_recipe, recipe_from_text
from rwkvflow.documents.recipe import Engine, Git, Image, Recipe
from rwkvflow.documents.yaml.nearest import did_you_mean, distance, nearest, one_of
from rwkvflow.documents.yaml.source import decode

ROOT = Path(__file__).resolve().parents[3]
DEMO = ROOT / "recipes" / "demo.yaml"

GOOD = """\
name: r
models:
  - {name: a, source: a.pth}
  - {name: b, source: hf://owner/name@main/b.pth, tokenizer: world}
formats: [ggml-q5_1, ggml-q8_0]
"""


def formats(text: str) -> str:
    return GOOD.replace("[ggml-q5_1, ggml-q8_0]", f"[{text}]")


def load(text: str) -> Recipe:
    return recipe_from_text(text, "r.yaml", Path("no-such-folder"))


def problems(text: str) -> list[str]:
    """Findings without the file's name; [] for a recipe that loads."""
    try:
        load(text)
    except DocumentError as error:
        return [str(finding).removeprefix("r.yaml:") for finding in error.findings]
    return []


def only(text: str) -> str:
    (message,) = problems(text)
    return message


def test_the_shipped_recipes_load() -> None:
    recipes = sorted((ROOT / "recipes").glob("*.yaml"))
    assert DEMO in recipes
    for path in recipes:
        if not path.name.endswith(".lock.yaml"):
            assert load_document(path) == "recipe"


def test_the_demo_asks_for_eight_artifacts_of_each_model() -> None:
    recipe = load_recipe(DEMO)
    assert recipe.name == "demo"
    assert [model.name for model in recipe.models] == ["rwkv4-demo", "rwkv7-demo"]
    assert len(recipe.formats) == 8
    assert [image.name for image in recipe.images] == ["py3.11"]


def test_defaults() -> None:
    recipe = load(GOOD)
    assert recipe.images == (Image(),)
    assert recipe.engine == Engine()
    assert recipe.models[1].tokenizer == "world"
    assert recipe.publish == ()


def test_names_of_images_come_from_python_and_torch() -> None:
    assert Image().name == "py3.11"
    assert Image(python="3.12", torch="2.13.0").name == "py3.12-torch2.13.0"
    assert Image(torch="2.13.0+cpu").name == "py3.11-torch2.13.0-cpu"
    assert load(GOOD + 'image: {python: "3.10", name: old}\n').images[0].name == "old"


def test_image_is_images_with_one_entry() -> None:
    one = load(GOOD + 'image: {python: "3.12"}\n')
    assert one == load(GOOD + 'images: [{python: "3.12"}]\n')
    assert one == Recipe.model_validate(
        {
            "name": "r",
            "models": [
                {"name": "a", "source": "a.pth"},
                {"name": "b", "source": "hf://owner/name@main/b.pth", "tokenizer": "world"},
            ],
            "formats": ["ggml-q5_1", "ggml-q8_0"],
            "image": {"python": "3.12"},
        }
    )


def test_numbers_are_read_as_yaml_1_2_does() -> None:
    model = load(GOOD.replace("source: a.pth", "source: a.pth, group_norm_eps: 64e-5")).models[0]
    assert model.group_norm_eps == 64e-5
    assert load(GOOD + "smoke: {limits: {ggml-q5_1: {logits: 1}}}\n").smoke.limits["ggml-q5_1"].logits == 1
    cmake = load(GOOD + "engine: {cmake: {A: ON, B: true, C: 20, D: no}}\n").engine.cmake
    assert cmake == {"A": "ON", "B": True, "C": 20, "D": "no"}


def test_splits_and_strategies() -> None:
    recipe = load(
        formats(
            "gguf-f16, {format: safetensors, split: 1.5 GiB}, {format: ggml-f16, split: none}, "
            '{format: chatrwkv, strategy: "cuda:1  fp16i8 *10->cuda fp16 *0+ -> cpu fp32"}, chatrwkv-cpu-fp32'
        )
        + "image: {torch: '2.13.0'}\nsplit: 500kB\n"
        "smoke: {limits: {chatrwkv-cuda1-fp16i8-x10-cuda-fp16-x0plus-cpu-fp32: {logits: 2}}}\n"
    )
    long = "chatrwkv-cuda1-fp16i8-x10-cuda-fp16-x0plus-cpu-fp32"
    assert recipe.format_names == ("gguf-f16", "safetensors", "ggml-f16", long, "chatrwkv-cpu-fp32")
    sizes = [recipe.split_of(name) for name in recipe.format_names]
    assert sizes == [500_000, 3 << 29, None, 500_000, 500_000]
    assert load(GOOD).split_of("ggml-q5_1") is None
    assert folder_name("m", "gguf-f16") == ("m-F16-gguf", "m-F16")
    assert folder_name("m", "safetensors") == ("m-safetensors", "m")


def test_an_engine_from_git() -> None:
    source = load(GOOD + "engine: {source: {git: https://example.org/x.git, ref: v1.2}}\n").engine.source
    assert source == Git(git="https://example.org/x.git", ref="v1.2")


UNKNOWN = f"known are {one_of(format_names())}"

CASES = [
    # unknown and missing keys
    ("nmae: x\n" + GOOD, "1:1: unknown key 'nmae'; did you mean 'name'?"),
    (GOOD.replace("source: a.pth", "sorce: a.pth"), "3:15: models[0]: unknown key 'sorce'; did you mean 'source'?"),
    (GOOD + "engine: {source: {gti: x}}\n", "6:19: engine.source: unknown key 'gti'; did you mean 'git'?"),
    (
        GOOD + "publish: [{to: out, xyzzy: 1}]\n",
        "6:21: publish[0]: unknown key 'xyzzy'; known here: to, private, branch, tag",
    ),
    (GOOD + "image: {pyhton: '3.11'}\n", "6:9: image: unknown key 'pyhton'; did you mean 'python'?"),
    (GOOD + "imgae: {}\n", "6:1: unknown key 'imgae'; did you mean 'image'?"),
    (GOOD.replace("name: a, ", ""), "3:5: models[0]: the key 'name' is missing"),
    ("formats: [ggml-f16]\nmodels: [{name: a, source: b}]\n", "1:1: the key 'name' is missing"),
    # wrong types
    (GOOD.replace("name: r", "name: 7"), '1:7: name: expected text, found the number 7; write it in quotes: name: "7"'),
    (
        GOOD + "image: {python: 3.10}\n",
        '6:17: image.python: expected text, found the number 3.10; write it in quotes: python: "3.10"',
    ),
    (
        GOOD + "images:\n  - python: '3.11'\n  - torch: 2.13\n",
        '8:12: images[1].torch: expected text, found the number 2.13; write it in quotes: torch: "2.13"',
    ),
    (GOOD.replace("name: r", "name: true"), '1:7: name: expected text, found true; write it in quotes: name: "true"'),
    (
        GOOD.replace("[ggml-q5_1, ggml-q8_0]", "ggml-q5_1"),
        "5:10: formats: expected a list, found the text 'ggml-q5_1'; write a list: formats: [ggml-q5_1]",
    ),
    (
        GOOD + "image: [{}]\n",
        "6:8: image: expected a mapping of keys to values, found a list; several images go under images:",
    ),
    (GOOD + "engine: zig\n", "6:9: engine: expected a mapping of keys to values, found the text 'zig'"),
    (
        GOOD + "engine: {source: [a]}\n",
        "6:18: engine.source: expected the word builtin, or a mapping with git: or path:, found a list",
    ),
    (
        GOOD + "engine: {source: biultin}\n",
        "6:18: engine.source: expected builtin, found the text 'biultin'; did you mean 'builtin'?",
    ),
    (
        GOOD + "engine: {toolchain: zigg}\n",
        "6:21: engine.toolchain: expected one of zig, system, found the text 'zigg'; did you mean 'zig'?",
    ),
    (
        GOOD + "engine: {cmake: {A: 1.5}}\n",
        "6:21: engine.cmake.A: expected text, true, false or a whole number, found the number 1.5; "
        'write it in quotes: A: "1.5"',
    ),
    (
        GOOD + "engine: {source: {git: x, submodules: yes}}\n",
        "6:39: engine.source.submodules: expected true, false or a list of paths, found the text 'yes'; "
        "write submodules: true",
    ),
    (
        GOOD + "smoke: {tokens: '7'}\n",
        "6:17: smoke.tokens: expected a whole number, found the text '7'; write it without quotes: tokens: 7",
    ),
    (GOOD + "smoke: {tokens: 1.5}\n", "6:17: smoke.tokens: expected a whole number, found the number 1.5"),
    (GOOD + "smoke:\n", "6:1: smoke: expected a mapping of keys to values, found nothing"),
    ("- a\n", "1:1: expected a mapping of keys to values, found a list"),
    # values out of bounds
    (GOOD + "version: 2\n", "6:10: version: expected 1, the only version there is, found the number 2"),
    (GOOD + "smoke: {tokens: 9000}\n", "6:17: smoke.tokens: must be at most 4096, found the number 9000"),
    (GOOD + "smoke: {prompts: []}\n", "6:18: smoke.prompts: the list is empty; give at least one"),
    (GOOD + "images: []\n", "6:9: images: the list is empty; give at least one"),
    (
        GOOD + "smoke: {limits: {ggml-q5_1: {logits: .inf}}}\n",
        "6:38: smoke.limits.ggml-q5_1.logits: expected a finite number, found the number .inf",
    ),
    (
        GOOD + "smoke: {limits: {ggml-q5_1: {logits: 1e999}}}\n",
        "6:38: smoke.limits.ggml-q5_1.logits: expected a finite number, "
        "found the number '1e999', which is out of range",
    ),
    (
        GOOD.replace("name: a,", "name: a/b,"),
        "3:12: models[0].name: expected a name of letters, digits, '.', '-' and '_' that starts with a letter or digit "
        "(100 at most), found the text 'a/b'",
    ),
    (
        GOOD + 'image: {base: "x\\nRUN evil"}\n',
        "6:15: image.base: expected an image reference such as debian:bookworm or registry/name@sha256:…, "
        r"found the text 'x\nRUN evil'",
    ),
    (
        GOOD + 'image: {python: "3.١١"}\n',
        "6:17: image.python: expected a Python version such as \"3.11\" (no patch version), found the text '3.١١'",
    ),
    (
        GOOD + "engine: {cmake: {-DX: a}}\n",
        "6:18: engine.cmake.-DX: expected the name of a CMake option, without -D, found '-DX'",
    ),
    (GOOD + 'engine: {source: {path: ""}}\n', "6:25: engine.source.path: the text is empty"),
    (
        GOOD.replace("a.pth", '"\\ud83d"'),
        "3:23: models[0].source: the text holds half of a surrogate pair, which is no character",
    ),
    # formats
    (GOOD.replace("ggml-q8_0", "ggml-q4_O"), "5:22: formats[1]: unknown format 'ggml-q4_O'; did you mean 'ggml-q4_0'?"),
    (GOOD.replace("ggml-q8_0", "parquet"), f"5:22: formats[1]: unknown format 'parquet'; {UNKNOWN}"),
    (GOOD.replace("ggml-q8_0", "ggml-q5_1"), "5:22: formats[1]: duplicate format 'ggml-q5_1'; the first is formats[0]"),
    (
        GOOD + "smoke: {limits: {ggml-f16: {logits: 1}}}\n",
        "6:18: smoke.limits.ggml-f16: 'ggml-f16' is not among the recipe's formats",
    ),
    (
        GOOD + "smoke: {limits: {ggml-q51: {logits: 1}}}\n",
        "6:18: smoke.limits.ggml-q51: unknown format 'ggml-q51'; did you mean 'ggml-q5_1'?",
    ),
    # names
    (GOOD.replace("name: b", "name: a"), "4:12: models[1].name: duplicate model 'a'; the first is models[0].name"),
    (
        GOOD.replace("name: b", "name: A"),
        "4:12: models[1].name: duplicate model 'A' (it differs from 'a' in case only); the first is models[0].name",
    ),
    (
        GOOD + "images: [{}, {python: '3.11'}]\n",
        "6:14: images[1]: duplicate image 'py3.11'; the first is images[0]",
    ),
    (
        GOOD.replace("name: b", "name: a-Q5_1-from-FP32").replace("ggml-q8_0", "ggml-q5_1-from-f32"),
        None,
    ),
    # sources
    (GOOD.replace("a.pth", "http://example.com/a.pth"), "3:23: models[0].source: http:// is only for this machine"),
    (GOOD.replace("a.pth", "http://127.0.0.1:8000/a.pth"), None),
    (GOOD.replace("a.pth", "htps://example.com/a.pth"), "3:23: models[0].source: unknown scheme 'htps://'"),
    (GOOD.replace("tokenizer: world", "tokenizer: wrold"), "did you mean 'world'?"),
    (GOOD.replace("tokenizer: world", "tokenizer: 20B_tokenizer.json"), None),
    (
        GOOD.replace("tokenizer: world", "tokenizer: ftp://x/t.json"),
        "4:62: models[1].tokenizer: unknown scheme 'ftp://'",
    ),
    # images
    (
        GOOD + "image: {wheels: [torch==2.0]}\n",
        '6:18: image.wheels[0]: PyTorch goes into the key torch, e.g. torch: "2.13.0"',
    ),
    (GOOD + "image: {wheels: [--index-url=x]}\n", "'--index-url=x' is no requirement such as tokenizers==0.20.3"),
    (GOOD + 'image: {wheels: ["a @ https://x/y"]}\n', "a wheel comes from the package index by name and version"),
    (GOOD + "image: {wheels: [tokenizers==0.20.3]}\n", None),
    # engine
    (GOOD + "engine: {source: {git: --upload-pack=x}}\n", "6:24: engine.source.git: "),
    (GOOD + "engine: {source: {git: x, ref: --all}}\n", "6:32: engine.source.ref: '--all' is no branch or tag"),
    (GOOD + "engine: {source: {git: x, folder: ../y}}\n", "engine.source.folder: '../y' must stay below its folder"),
    (GOOD + "engine: {library: /usr/lib/x.so}\n", "engine.library: '/usr/lib/x.so' must stay below its folder"),
    # publish
    (GOOD + "publish: [{to: ftp://a/b}, {to: s3://bucket/folder}, {to: oci://ghcr.io/a/b:v1}]\n", None),
    (GOOD + "publish: [{to: hf://a/b, private: true, branch: next, tag: v1.0}, {to: hf://a/b@old}]\n", None),
    (GOOD + "publish: [{to: s33://a/b}]\n", "6:16: publish[0].to: cannot publish to 's33:'"),
    (GOOD + "publish: [{to: HF://a/b}]\n", "6:16: publish[0].to: the scheme must be lower case: hf:"),
    (GOOD + "publish: [{to: hf://a}]\n", "6:16: publish[0].to: 'hf://a': '' is not a hub name"),
    (GOOD + "publish: [{to: hf:a/b}]\n", "6:16: publish[0].to: 'hf:a/b' lacks the // after the scheme"),
    (GOOD + "publish: [{to: oci://ghcr.io/a/b}]\n", "6:16: publish[0].to: 'oci://ghcr.io/a/b' names no tag"),
    (GOOD + "publish: [{to: oci://ghcr.io/A/b:v1}]\n", "6:16: publish[0].to: 'oci://ghcr.io/A/b:v1': 'A/b' is no name"),
    (GOOD + "publish: [{to: oci://me:pw@ghcr.io/a/b:v1}]\n", "6:16: publish[0].to: a user name or a password would"),
    (GOOD + "publish: [{to: s3://key:secret@bucket/a}]\n", "6:16: publish[0].to: a user name or a password would"),
    (GOOD + "publish: [{to: file:///}]\n", "6:16: publish[0].to: a release replaces its folder as a whole"),
    (GOOD + "publish: [{to: out, private: true}]\n", "6:21: publish[0].private: only hf:// knows private"),
    (GOOD + "publish: [{to: hf://a/b, tag: v 1}]\n", "6:31: publish[0].tag: 'v 1' cannot be a tag"),
    (GOOD + "publish: [{to: hf://a/b@x, branch: y}]\n", "6:28: publish[0].branch: the branch stands in `to` already"),
    (GOOD + "publish: [{to: hf://a/b, branch: a..b}]\n", "6:34: publish[0].branch: 'a..b' cannot be a branch"),
    (GOOD + "publish: [{to: hf://a/b}, {to: hf://a/b}]\n", "6:32: publish[1].to: duplicate place 'hf://a/b'"),
    (GOOD + "publish: [{to: ./}]\n", "6:16: publish[0].to: a release replaces its folder as a whole"),
    (GOOD + "publish: [{to: ../..}]\n", "6:16: publish[0].to: a release replaces its folder as a whole"),
    (GOOD + "publish: [{to: /}]\n", "6:16: publish[0].to: a release replaces its folder as a whole"),
    (
        GOOD + "publish: [{to: out}, {to: x/../out/}]\n",
        "6:27: publish[1].to: duplicate place 'out'; the first is publish[0].to",
    ),
    (GOOD + "smoke: {text: none.txt}\n", "6:15: smoke.text: there is no file 'none.txt' beside the recipe"),
    # matrix
    (
        GOOD + "matrix: {exclude: [{model: 'c*'}]}\n",
        "6:28: matrix.exclude[0].model: 'c*' matches no model of this recipe",
    ),
    (
        GOOD + "matrix: {exclude: [{format: ggml-q5-1}]}\n",
        "6:29: matrix.exclude[0].format: 'ggml-q5-1' matches no format of this recipe; did you mean 'ggml-q5_1'?",
    ),
    (
        GOOD + "matrix: {include: [{format: ggml-q4_O}]}\n",
        "6:29: matrix.include[0].format: unknown format 'ggml-q4_O'; did you mean 'ggml-q4_0'?",
    ),
    (GOOD + "matrix: {include: [{format: ggml-q4_0}]}\n", None),
    (
        GOOD + "matrix: {include: [{format: ggml-q4_0}]}\nsmoke: {limits: {ggml-q4_0: {logits: 1}}}\n",
        None,
    ),
    (
        GOOD + "matrix: {exclude: [{}]}\n",
        "6:20: matrix.exclude[0]: the rule is empty; name a model, a format or an image",
    ),
    (GOOD + 'matrix: {exclude: [{model: "?"}]}\n', "6:1: matrix: the rules exclude everything"),
    # aliases
    (GOOD + "image: {}\nimages: [{}]\n", "6:1: image: image and images are the same; keep one of them"),
    # entries of formats, splits and strategies
    (
        formats("{format: ggml-q4_O}"),
        "5:20: formats[0].format: unknown format 'ggml-q4_O'; did you mean 'ggml-q4_0'?",
    ),
    (formats("{split: 5GB}"), "5:11: formats[0]: the key 'format' is missing"),
    (formats("{format: gguf-f16, spilt: 5GB}"), "5:30: formats[0]: unknown key 'spilt'; did you mean 'split'?"),
    (formats("[gguf-f16]"), "5:11: formats[0]: expected the name of a format, or a mapping with format:, found a list"),
    (
        formats("{format: gguf-f16, split: 5}"),
        '5:37: formats[0].split: expected text, found the number 5; write it in quotes: split: "5"',
    ),
    (
        formats("{format: gguf-f16, split: 5 TB}"),
        "5:37: formats[0].split: expected a size such as 5GB, 500MB or 2GiB, or none, found the text '5 TB'",
    ),
    (
        formats("{format: gguf-f16, split: 0GB}"),
        "5:37: formats[0].split: files of no bytes hold nothing; give a size such as 5GB",
    ),
    (GOOD + "split: 0 kB\n", "6:8: split: files of no bytes hold nothing; give a size such as 5GB"),
    (GOOD + "split: all\n", "6:8: split: expected a size such as 5GB, 500MB or 2GiB, or none, found the text 'all'"),
    (
        formats("{format: ggml-f16, split: 5GB}"),
        "5:37: formats[0].split: ggml-f16 cannot be split: nothing reads it in parts; these can be: "
        + one_of(splitting()),
    ),
    (
        formats("{format: ggml-f16, strategy: cpu fp32}"),
        "5:30: formats[0].strategy: only chatrwkv takes a strategy; 'ggml-f16' has none",
    ),
    (
        formats("{format: chatrwkv, strategy: cpu fp32 -> cpu fp33}"),
        "5:40: formats[0].strategy: not a strategy of the rwkv package: stage 2: 'cpu fp33' names no type; "
        "there are fp16, fp32 and bf16, each also with i8 behind it",
    ),
    (
        formats("chatrwkv"),
        "5:11: formats[0]: chatrwkv needs a strategy, as in "
        '{format: chatrwkv, strategy: "cuda fp16 *10 -> cpu fp32"}; without one there are '
        + one_of([name for name in format_names() if name.startswith("chatrwkv-")]),
    ),
    (
        formats("chatrwkv-cuda-fp16, {format: chatrwkv, strategy: cuda   fp16}"),
        "5:60: formats[1].strategy: duplicate format 'chatrwkv-cuda-fp16'; the first is formats[0]",
    ),
]


@pytest.mark.parametrize(("text", "expected"), CASES)
def test_one_mistake_gives_one_finding(text: str, expected: str | None) -> None:
    if expected is None:
        assert problems(text) == []
    else:
        assert expected in only(text)
        if re.match(r"\d+:\d+: ", expected):
            assert only(text).startswith(expected)


RULE = "engine: {{patches: [{{name: p, files: [build.ninja], pattern: {}, replace: {}}}]}}\n"


@pytest.mark.parametrize(
    ("pattern", "replacement", "expected"),
    [
        ("-march=native", "-march=x86-64-v2", None),
        ("'(?P<flag>-m)(cpu|arch)=native'", r"'\g<flag>\2=\g<1>'", None),
        ("'(?i)x'", "y", None),
        (
            "'(a'",
            "''",
            "engine.patches[0].pattern: not a regular expression: missing ), unterminated subpattern at character 1",
        ),
        ("a", r"'\1'", "engine.patches[0].replace: not a replacement for its pattern: invalid group reference 1"),
        (
            "(?P<q>a)",
            r"'\g<r>'",
            "engine.patches[0].replace: not a replacement for its pattern: unknown group name 'r'",
        ),
        ("a", r"'\q'", "engine.patches[0].replace: not a replacement for its pattern: bad escape"),
    ],
)
def test_patch_rules(pattern: str, replacement: str, expected: str | None) -> None:
    text = GOOD + RULE.format(pattern, replacement)
    if expected is None:
        assert problems(text) == []
    else:
        assert expected in only(text)


def test_when_of_a_patch_rule() -> None:
    rule = RULE.replace("replace: {}", "replace: b, when: {{{}}}")
    assert "when.hots: expected one of host, target, cmake, found 'hots'" in only(GOOD + rule.format("a", "hots: x"))
    assert "when.cmake: '3.25!' is no version" in only(GOOD + rule.format("a", "cmake: '3.25!'"))


def test_all_mistakes_of_a_recipe_are_told_in_the_order_of_the_file() -> None:
    text = (
        "name: my recipe\nnmae: x\nmodels:\n  - {name: a}\n  - {name: a, source: ''}\n"
        "formats: [7, ggml-q4_O]\nformats: []\nimage: {python: 3.10}\npublish: [{to: .}]\n"
    )
    found = problems(text)
    assert [int(message.split(":")[0]) for message in found] == [1, 2, 4, 5, 5, 6, 6, 7, 8, 9]


def test_the_text_for_smoke_is_looked_up_beside_the_recipe(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("words")
    path = tmp_path / "r.yaml"
    path.write_text(GOOD + "smoke: {text: t.txt}\n")
    assert load_recipe(path).smoke.text == "t.txt"


def test_nearest_names() -> None:
    assert nearest("ggml-q4_O", format_names()) == "ggml-q4_0"
    assert nearest("GGML-Q5_1", format_names()) == "ggml-q5_1"
    assert nearest("q5_1", format_names()) is None
    assert nearest("xyzzy", ["name", "models"]) is None
    assert did_you_mean("sytem", ["zig", "system"]) == "; did you mean 'system'?"
    assert distance("ab", "ba") < distance("ab", "ac")
    assert distance("", "abc") == 3


@given(st.text(max_size=8), st.text(max_size=8))
def test_distance_is_one(a: str, b: str) -> None:
    assert (distance(a, b) == 0) == (a == b)
    assert distance(a, b) == pytest.approx(distance(b, a))
    assert distance(a, b) <= max(len(a), len(b))


def check_any(text: str) -> None:
    findings: tuple[Finding, ...] = ()
    try:
        recipe = recipe_from_text(decode(text.encode("utf-8", "surrogatepass"), "r.yaml"), "r.yaml", Path("none"))
    except DocumentError as error:
        findings = error.findings
    else:
        assert isinstance(recipe, Recipe)
        return
    assert findings
    lines = 1 + sum(text.count(end) for end in "\n\r\x85\u2028\u2029")
    for finding in findings:
        assert 1 <= finding.line <= lines
        assert finding.column >= 1
        assert "\n" not in str(finding)


FULL = DEMO.read_text(encoding="utf-8") + (
    "matrix: {exclude: [{model: rwkv4*, format: 'ggml-q?_0'}], include: [{format: ggml-q4_0-from-f32}]}\n"
)
pieces = st.sampled_from(
    ["{", "}", "[", "]", ": ", ",", "- ", "&a ", "*a", "'", '"', "\n", "  ", "\t", "#", "!", "|", "~", "1e999", "true"]
)


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(st.lists(st.tuples(st.integers(0, len(FULL)), st.integers(0, 12), pieces | st.text(max_size=3)), max_size=4))
@example([])
def test_a_damaged_recipe_is_a_recipe_or_findings(edits: list[tuple[int, int, str]]) -> None:
    text = FULL
    for position, removed, inserted in edits:
        text = text[:position] + inserted + text[position + removed :]
    check_any(text)


KEYS = (
    "version name models formats image images engine smoke publish matrix source sha256 tokenizer base python torch "
    "wheels toolchain cmake patches pattern replace files expect when prompts limits logits to exclude include git "
    "path ref folder"
)
keys = st.sampled_from(KEYS.split())
scalars = st.sampled_from(["x", "3.10", "builtin", "ggml-q5_1", "~", "true", "''", "1e9", '"*"', "hf://a/b/c", "("])
trees = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=3).map(lambda items: f"[{', '.join(items)}]")
        | st.dictionaries(keys, inner, max_size=4).map(
            lambda items: "{" + ", ".join(f"{key}: {value}" for key, value in items.items()) + "}"
        )
    ),
    max_leaves=10,
)


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(st.dictionaries(keys, trees, max_size=8))
def test_any_tree_of_known_keys_is_a_recipe_or_findings(parts: dict[str, str]) -> None:
    check_any("".join(f"{key}: {value}\n" for key, value in parts.items()))


def test_reading_documents_imports_neither_numpy_nor_what_runs_things() -> None:
    script = (
        "import sys\n"
        "from pathlib import Path\n"
        "from rwkvflow.documents.load import load_recipe\n"
        "from rwkvflow.plan.matrix import expand\n"
        f"expand(load_recipe(Path({str(DEMO)!r})))\n"
        "heavy = {'numpy', 'torch', 'docker', 'huggingface_hub', 'httpx', 'jinja2', 'rich', 'packaging'}\n"
        "print(sorted(heavy & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
