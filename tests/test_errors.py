"""Errors: what made them."""

from kd_cli.errors import was_interrupted


def test_an_interrupt_is_found_behind_other_errors():
    error = RuntimeError("of C++ code")
    error.__context__ = ValueError("on the way")
    assert not was_interrupted(error)
    error.__context__.__cause__ = KeyboardInterrupt()
    assert was_interrupted(error)


def test_errors_that_stand_in_a_circle_end():
    first, second = RuntimeError("first"), RuntimeError("second")
    first.__cause__, second.__context__ = second, first
    assert not was_interrupted(first)
