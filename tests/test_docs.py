"""The pages: what they point to exists, and their lines fit a screen."""

import re
from pathlib import Path

import pytest
from test_project import MAY_IMPORT

ROOT = Path(__file__).parent.parent
NAMES = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs/*.md", "upsr_jax/assets/*/*.md")
PAGES = [path for name in NAMES for path in sorted(ROOT.glob(name))]


def anchors(page: Path) -> set[str]:
    """List what GitHub makes of a page's headings."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def page_name(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_links_lead_to_files_and_headings_that_exist(page):
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if re.match(r"https?://", link):
            continue
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_files_of_the_project_that_a_page_names_exist(page):
    folders = "upsr_jax|configs|scripts|tests|docs"
    named = re.findall(rf"(?<![\w/.-])(?:{folders})/[\w/.-]*\w", page.read_text())
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_a_config_that_a_page_names_exists():
    named = re.findall(r"--config (\S+)", "".join(page.read_text() for page in PAGES))
    assert named and all((ROOT / "configs" / f"{name}.py").exists() for name in named)


@pytest.mark.parametrize("page", [page for page in PAGES if page.stem != "CREDITS"], ids=page_name)
def test_no_line_is_over_120_characters(page):
    assert max(len(line) for line in page.read_text().splitlines()) <= 120


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 110


def test_contributors_are_told_of_every_room():
    section = (ROOT / "CONTRIBUTING.md").read_text().partition("## Rooms")[2].partition("## ")[0]
    rows = re.findall(r"^\| (`.+?) \|", section, re.M)
    assert {name for row in rows for name in re.findall(r"`(\w+)`", row)} == (
        set(MAY_IMPORT) - {"upsr_jax"}
    )
