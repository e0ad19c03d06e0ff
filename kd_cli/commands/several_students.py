"""Commands that train several students: `student=A,B,C`, or a number of students of one network."""

from __future__ import annotations

from collections.abc import Sequence

from kd_cli.commands.sweep import refuse_lists
from kd_cli.errors import ConfigError

MOST = 20


def overrides_of_each(
    overrides: Sequence[str], number: str, why: str, needs: str
) -> list[list[str]]:
    """The overrides of each student.

    Args:
        overrides: As typed.
        number: The key that gives the number of students of one network.
        why: What the command trains; it is said where another key is a list of values.
        needs: What the command needs; it is said where neither or both were typed.

    Raises:
        ConfigError: There is one student alone or too many, both were typed, or another key is a
            list of values.
    """
    count, students, kept = "", [], []
    for override in overrides:
        key, _, value = override.partition("=")
        if key == number:
            count = value
        elif key == "student" and "," in value:
            students = [name.strip() for name in value.strip("[]").split(",") if name.strip()]
        else:
            kept.append(override)
    refuse_lists(kept, why)
    if bool(count) == bool(students):
        raise ConfigError(f"{needs} (one of the two)")
    if students:
        if not 2 <= len(students) <= MOST:
            raise ConfigError(f"student={','.join(students)} must name 2 to {MOST} students")
        return [[*kept, f"student={name}"] for name in students]
    if not count.isdigit() or not 2 <= int(count) <= MOST:
        raise ConfigError(f"{number}={count} must be a whole number from 2 to {MOST}")
    return [list(kept) for _ in range(int(count))]
