"""`kd guide`: the pages of the manual, which also stand as files in kd_cli/guide/."""

from __future__ import annotations

from pathlib import Path

from kd_cli.commands.table import Request
from kd_cli.errors import ConfigError, suggest

FOLDER = Path(__file__).resolve().parent.parent / "guide"
MARGIN = 100  # columns; longer lines are hard to read


def run(request: Request) -> int:
    """Lists the pages, or shows one.

    Raises:
        ConfigError: There is no such page.
    """
    words = [word for word in request.words if word not in ("--help", "-h")]
    if not words:
        width = max(map(len, topics()))
        print("kd guide TOPIC shows a page of the manual:\n")
        for topic in topics():
            print(f"  {topic:<{width}}  {_first_sentence(topic)}")
        return 0
    topic, *rest = words
    if rest or topic not in topics():
        raise ConfigError(
            f"no page '{' '.join(words)}'{suggest(topic, topics())} (kd guide lists the pages)"
        )
    _show((FOLDER / f"{topic}.md").read_text(encoding="utf-8"))
    return 0


def offers(words: list[str]) -> list[str]:
    """The pages, for shell completion."""
    return [] if words else topics()


def topics() -> list[str]:
    """The names of the pages."""
    return sorted(path.stem for path in FOLDER.glob("*.md"))


def _first_sentence(topic: str) -> str:
    """What a page answers: its first sentence after the title, without the marks of Markdown."""
    text = (FOLDER / f"{topic}.md").read_text(encoding="utf-8")
    paragraph = text.split("\n\n", 2)[1].replace("\n", " ")
    return paragraph.split(". ")[0].rstrip(".").replace("`", "").replace("*", "")


def _show(text: str) -> None:
    """Rendered on a terminal; as it stands in the file for a pipe."""
    from rich.console import Console
    from rich.markdown import Markdown

    console = Console()
    if not console.is_terminal:
        print(text, end="")
        return
    console.print(Markdown(text), width=min(console.width, MARGIN))
