"""What `kd explain` says of the losses: formula, taps, and the gradient of each term."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from kd_cli.terminal import print_table
from kd_cli.training.balance import Balance

if TYPE_CHECKING:
    from kd_cli.distillation.objective import Objective


FAINT = 0.01  # share of the gradient norm below which a term has almost no effect


def loss_line(objective: Objective) -> str:
    """The loss with its weights as numbers, and what T^2 is or would be."""
    text, hyper = objective.words(), objective.hyper
    if "t_squared" in hyper and hyper.get("temperature", 1) != 1:
        squared = f"{hyper['temperature'] ** 2:g}"
        text += f" (T^2 = {squared})" if hyper["t_squared"] else f" (without T^2 = {squared})"
    return text


def print_taps(objective: Objective, student: Any, teacher: Any) -> None:
    """A table of what each tap means; nothing for losses of logits alone.

    Args:
        objective: Its parts name the taps.
        student, teacher: Keras models.
    """
    from kd_cli.networks.taps import Graph

    asked = {
        "student": (student, [(p.name, tap) for p in objective.parts for tap in p.student_taps]),
        "teacher": (
            teacher,
            [(p.name, tap) for p in objective.parts if p.wanted for tap in p.wanted.taps],
        ),
    }
    rows = []
    for role, (model, taps) in asked.items():
        graph = Graph(model, role) if taps else None
        for loss, tap in taps:
            place = graph.find(tap)
            shape = "x".join("any" if side is None else str(side) for side in place.shape)
            rows.append([loss, role, tap, place.path, shape, _multiply_adds(graph, tap, model)])
    if rows:
        head = ["loss", "network", "tap", "layer", "shape", "multiply-adds up to it"]
        print_table("", head, rows)


def _multiply_adds(graph: Any, tap: str, model: Any) -> str:
    """For one input, in thousands or millions, and the share of the whole network."""
    from kd_cli.networks.cost import UncountedError, flops

    shape = tuple(model.input_shape[1:])
    if None in shape:
        return ""
    try:
        part = flops(graph.with_taps([tap], logits=False), shape) / 2
        whole = flops(model, shape) / 2
    except UncountedError:
        return "not known"
    share = f" ({100 * part / whole:.0f} %)" if whole else ""
    return f"{part / 1e6:,.1f} M{share}" if part >= 1e6 else f"{part / 1e3:,.1f} k{share}"


def print_balance(found: Balance, init_seed: int, many: str) -> None:
    """The value, gradient and share of each term at the first step; the cosine of each two."""
    print(f"first batch {found.examples} {many}; initial weights of init_seed {init_seed}")
    print_table(
        "",
        ["term", "value", "gradient norm", "share"],
        [
            [name, f"{value:.4g}", f"{norm:.4g}", f"{100 * share:.2f} %"]
            for name, value, norm, share in zip(
                found.terms, found.values, found.norms, found.shares, strict=True
            )
        ],
    )
    for (m, first), (n, second) in itertools.combinations(enumerate(found.terms), 2):
        if np.isfinite(found.cosines[m, n]):
            print(f"cosine of the gradients of {first} and {second}: {found.cosines[m, n]:.3f}")


def remarks(found: Balance, hyper: Mapping[str, Any]) -> list[str]:
    """Warnings about the balance of the terms, a line each, with what to change.

    Args:
        found: From `balance`.
        hyper: The loss's keywords.

    Returns:
        Warnings for a value or gradient that is not finite, and for a term of the loss below 1 %
        of the gradient norm (so that another is above 99 %); a note where alpha asks for that.
    """
    from kd_cli.training.learner import REGULARISATION

    finite = np.isfinite(found.values) & np.isfinite(found.norms)
    if not finite.all():
        name = found.terms[int(np.argmin(finite))]
        return [
            f"warning: the term '{name}' or its gradient is not finite at the first step; look at "
            "the inputs' range (of images: student.input, teacher.input)"
        ]
    loss = [name for name in found.terms if name != REGULARISATION]
    if len(loss) < 2:
        return []
    if not found.norms.any():
        return ["warning: no term has a gradient on this batch: nothing would be learned"]
    lines = []
    strongest = found.terms[int(np.argmax(found.shares))]
    alpha = hyper.get("alpha")
    for name, share in zip(found.terms, found.shares, strict=True):
        if name not in loss or share >= FAINT:
            continue
        if alpha in (0, 1) and (name == "hard") == (alpha == 0):
            lines.append(f"note: alpha={alpha:g} switches the term '{name}' off")
        else:
            lines.append(
                f"warning: the term '{name}' has {100 * share:.2f} % of the gradient norm, "
                f"'{strongest}' {100 * found.shares.max():.2f} %: it has almost no effect on "
                f"the training; "
                f"{_advice(name, found, hyper)}"
            )
    return lines


def _advice(name: str, found: Balance, hyper: Mapping[str, Any]) -> str:
    """What to type so that a faint term counts; numbers of this batch."""
    alpha, temperature = hyper.get("alpha"), hyper.get("temperature")
    loss = [term for term in found.terms if term in ("hard", "soft", "teacher")]
    if name not in loss or "hard" not in loss or len(loss) != 2 or alpha in (None, 0, 1):
        return "give it a larger weight"
    # Without their weights, which are alpha for the labels and 1 - alpha for the teacher.
    hard, other = (
        found.norms[found.terms.index(term)] / weight
        for term, weight in ((loss[0], alpha), (loss[1], 1 - alpha))
    )
    advice = []
    if name == "soft" and temperature and temperature > 1 and not hyper.get("t_squared"):
        factor = temperature**2
        share = (1 - alpha) * other * factor / (alpha * hard + (1 - alpha) * other * factor)
        advice.append(
            f"t_squared=true (T^2 = {factor:g}) would give it {100 * share:.0f} % of the two"
        )
    even = other / (hard + other) if hard + other > 0 else 0.0
    if 0 < float(f"{even:.4g}") < 1:
        advice.append(f"alpha={even:.4g} would balance the two on this batch")
    return ", ".join(advice) or "give it a larger weight"
