"""`kd guide`: the pages of the manual, which also stand as files in kd_cli/guide/."""

from __future__ import annotations

import re
from pathlib import Path

from kd_cli.commands.table import Request
from kd_cli.errors import ConfigError, suggest

FOLDER = Path(__file__).resolve().parent.parent / "guide"
MARGIN = 100  # columns; longer lines are hard to read
# The pages by what they are for; those that no group names stand under the last title.
GROUPS = {
    "to start": ("commands", "configuration", "losses", "methods", "explain"),
    "data, networks, teachers": (
        "data",
        "text",
        "networks",
        "teachers",
        "augmentation",
        "self-training",
        "recipes",
    ),
    "results": (
        *("runs", "trackers", "compare", "sweeps", "tuning", "report"),
        *("evaluate", "export", "metrics", "evidence"),
    ),
    "reference": (),
}


def run(request: Request) -> int:
    """Lists the pages, or shows one.

    Raises:
        ConfigError: There is no such page.
    """
    words = [word for word in request.words if word not in ("--help", "-h")]
    if not words:
        _list()
        return 0
    topic, *rest = words
    if rest or topic not in topics():
        raise ConfigError(
            f"no page '{' '.join(words)}'{suggest(topic, topics())} (kd guide lists the pages)"
        )
    _show(_text(topic) + (_keys() if topic == "metrics" else ""))
    return 0


def offers(words: list[str]) -> list[str]:
    """The pages, for shell completion."""
    return [] if words else topics()


def topics() -> list[str]:
    """The names of the pages."""
    return sorted(path.stem for path in FOLDER.glob("*.md"))


def _list() -> None:
    """Prints the pages by group, each with what it answers."""
    named = {topic for group in GROUPS.values() for topic in group}
    others = [topic for topic in topics() if topic not in named]
    width = max(map(len, topics()))
    print("kd guide TOPIC shows a page of the manual.")
    for title, group in GROUPS.items():
        print(f"\n{title}")
        for topic in group or others:
            print(f"  {topic:<{width}}  {_answers(topic)}")


def _answers(topic: str) -> str:
    """What a page answers: its first sentence, which is "This page says ...", without these words
    and without the marks of Markdown.
    """
    paragraph = _text(topic).split("\n\n", 2)[1].replace("\n", " ")
    sentence = paragraph.split(". ")[0].rstrip(".").removeprefix("This page says ")
    return sentence.replace("`", "").replace("*", "")


def _text(topic: str) -> str:
    return (FOLDER / f"{topic}.md").read_text(encoding="utf-8")


def _keys() -> str:
    """The keys of metrics.json as a table in Markdown."""
    from kd_cli.runs.record import schema

    rows = []
    for key, (kind, meaning) in schema().items():
        kind = re.sub(r"\b[A-Z]\w+", "object", kind.replace(" | None", " or null"))
        rows.append(f"| `{key}` | {kind} | {meaning} |")
    return "\n".join(["", "| key | type | meaning |", "| --- | --- | --- |", *rows, ""])


def _show(text: str) -> None:
    """Rendered on a terminal; as it stands in the file for a pipe."""
    from rich.console import Console
    from rich.markdown import Markdown

    console = Console()
    if not console.is_terminal:
        print(text, end="")
        return
    console.print(Markdown(text), width=min(console.width, MARGIN))
