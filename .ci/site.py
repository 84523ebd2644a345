"""Let the pages of docs/ link to any file of the repository, and publish the linked files with the site.

In the repository docs/ is a folder beside the others; in the site its pages stand at the top. So
``../benchmarks/README.md`` is right in the one and ``benchmarks/README.md`` in the other.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parent.parent
LINK = re.compile(r"(?<=\]\()(?![a-z]+:|#|/)([^)#\s]+)")
"""The target of a relative link or image, without its fragment."""


def on_files(files: Files, config: Any) -> Files:
    """Add the files outside docs/ that a page links to, and those that these link to."""
    pages = [page.abs_src_path for page in files.documentation_pages()]
    for page in pages:
        for target in LINK.findall(Path(page).read_text(encoding="utf-8")):
            path = _in_repository(Path(page), target)
            inside = (ROOT / path).is_file() and not path.startswith(("docs/", "../"))
            if inside and files.get_file_from_path(path) is None:
                files.append(File.generated(config, path, abs_src_path=str(ROOT / path)))
                if path.endswith(".md"):
                    pages.append(str(ROOT / path))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Turn the links of a page from what they are in the repository into what they are in the site."""
    here = Path(page.file.abs_src_path)

    def in_site(link: re.Match[str]) -> str:
        path = _in_repository(here, link[1]).removeprefix("docs/")
        return posixpath.relpath(path, posixpath.dirname(page.file.src_uri) or ".")

    return LINK.sub(in_site, markdown)


def _in_repository(page: Path, target: str) -> str:
    folder = page.parent.relative_to(ROOT).as_posix()
    return posixpath.normpath(posixpath.join(folder, target))
