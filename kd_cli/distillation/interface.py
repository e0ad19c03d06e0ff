"""What a loss is to `kd`: how it is called, what it may need, what it reads of the teacher.

A loss is a function `(labels, student, teacher, *, hyper) -> {term: [B]}`: one value per example
and term; the caller takes the batch mean. `student` and `teacher` are mappings with

    logits    [B, K] in float32
    features  {tap: [B, ...]} in float32, for the taps that the loss's options name
    index     [B] positions of the examples in the training split (of the student's mapping)

A loss whose YAML has `pairs: [[student tap, teacher tap], ...]` gets these features, and `pairs`
as a keyword; `student_taps: [...]` gives it taps of the student alone.

A loss with weights of its own is a `keras.layers.Layer` that is called in the same way:

    build(student, teacher, labels)   shapes without the batch by tap, and of `logits`; the class
                                      numbers [n] of all training images, -1 where not known
    call(labels, student, teacher)    as above; it is only called in training

Its variables are trained with the student and kept in state/, not in model.keras. One that also
changes what is trained, evaluated and saved has a method, called before `build`,

    deploy(network, teacher)          two Keras models -> the one in the place of the student's
                                      network, which sits behind the input adapter

and counts its parameters as `deployed`, the fields of `runs.record.Deployed`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

Outputs = Mapping[str, Any]
Loss = TypeVar("Loss")


@dataclass(frozen=True)
class Needs:
    """What a loss can't do without.

    Attributes:
        labels: It is not defined for images without a label.
        unmixed: It is not defined for mixed images, whose labels are shares of the classes.
        relations: It compares the images of a batch: a batch of one image says nothing.
        head: Whether it teaches the student's last layer. One that compares features alone does
            not, and needs a second loss beside it.
        words: Its formula, for people.
        teacher_part: feature of the teacher [B, ...] -> [B, ...], what the loss reads of it
            instead. It is applied before the cache, so the smaller it is the better.
    """

    labels: bool = False
    unmixed: bool = False
    relations: bool = False
    head: bool = True
    words: str = ""
    teacher_part: Callable[[Any], Any] | None = None


def requires(**needs: Any) -> Callable[[Loss], Loss]:
    """Says of a loss, a function or a class, what it needs; the keywords are those of `Needs`."""

    def mark(loss: Loss) -> Loss:
        loss.needs = Needs(**needs)  # type: ignore[attr-defined]
        return loss

    return mark


def needs_of(loss: Any) -> Needs:
    """What a loss needs; of one that says nothing, nothing."""
    return getattr(loss, "needs", Needs())
