"""What mkdocs is told when it builds the site: the pages at the root of the repository belong to it too.

README.md becomes the front page, CONTRIBUTING.md the first page of "contribute". Links are written for the repository,
where a reader of the sources follows them; here those that leave docs/ are turned towards the pages of the site.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

from docs_tables import anchor  # mkdocs puts this folder on the path while it loads this module
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parent.parent

#: Path in the repository: path in the site.
MOVED = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contribute/index.md",
    "SECURITY.md": "security.md",
    "CHANGELOG.md": "changelog.md",
    "LICENSE": "LICENSE.txt",
}


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Headings get the anchors that they have in the repository's own viewer, so that a link is right in both."""
    config.mdx_configs.setdefault("toc", {})["slugify"] = lambda text, separator: anchor(text)
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages of the repository's root."""
    for source, target in MOVED.items():
        files.append(File.generated(config, target, content=(ROOT / source).read_text(encoding="utf-8")))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turns the links of a page towards the site."""
    site = page.file.src_uri
    source = next((name for name, target in MOVED.items() if target == site), f"docs/{site}")
    return relinked(markdown, source)


def relinked(markdown: str, source: str) -> str:
    """The text of the repository's file `source` with its links as the site needs them."""
    here = posixpath.dirname(site_path(source))

    def link(match: re.Match[str]) -> str:
        path, mark, fragment = match.group(1).partition("#")
        if not path or re.match(r"[a-z]+:", path):
            return match.group(0)
        target = site_path(posixpath.normpath(posixpath.join(posixpath.dirname(source), path)))
        return f"]({posixpath.relpath(target, here or '.')}{mark}{fragment})"

    return re.sub(r"\]\(([^)\s]+)\)", link, markdown)


def site_path(path: str) -> str:
    """Where a file of the repository is in the site."""
    return MOVED.get(path) or path.removeprefix("docs/")
