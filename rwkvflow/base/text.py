"""Text from outside, made fit to be shown: what could move a cursor, hide or reverse other text is spelt out. Sizes."""

from __future__ import annotations

import re

# C0 but tab and line feed, DEL and C1, what changes the direction of text or has no width, line and paragraph
# separators, tags, and halves of surrogate pairs, which no output can encode.
_HOSTILE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u00ad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    "\U000e0000-\U000e007f\ud800-\udfff]"
)


def shown(text: str) -> str:
    r"""The same text with control sequences spelt out, "\x1b[2J" for instance; tabs and line feeds stay."""
    return _HOSTILE.sub(_spell, text)


def shown_line(text: str) -> str:
    r"""The same on one line: a line feed is spelt out as well."""
    return shown(text).replace("\n", "\\n")


def json_shown(text: str) -> str:
    r"""JSON whose strings say the same with \u escapes; nothing outside of strings is touched, since JSON has none."""
    return _HOSTILE.sub(_escape, text)


def yaml_shown(text: str) -> str:
    r"""A double-quoted text of YAML that says the same with escapes; beyond the first plane it has \U, and no pairs."""
    return _HOSTILE.sub(lambda match: _spell(match) if ord(match[0]) > 0xFF else f"\\u{ord(match[0]):04x}", text)


def _spell(match: re.Match[str]) -> str:
    code = ord(match[0])
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def _escape(match: re.Match[str]) -> str:
    code = ord(match[0])
    if code < 0x10000:
        return f"\\u{code:04x}"
    high, low = divmod(code - 0x10000, 0x400)
    return f"\\u{0xD800 + high:04x}\\u{0xDC00 + low:04x}"


def bytes_text(size: float) -> str:
    """1870457 → "1.87 MB": thousands, as disks, hubs and the plots of a card count."""
    for limit, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if size >= 0.999995 * limit:  # 1.00 with two digits
            return f"{size / limit:.2f} {unit}"
    return f"{size:.0f} B"
