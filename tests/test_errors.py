"""The error of ours inside Ray's."""

from __future__ import annotations

import pytest
from ray.exceptions import RayTaskError

from pretrainer.errors import PretrainerError, UserError, find_cause


def in_a_task(error: Exception) -> Exception:
    """As Ray raises it from `ray.get`: an instance of the error's class whose text is a traceback."""
    return RayTaskError("train", "Traceback: ...", error).as_instanceof_cause()


def test_a_task_s_error_is_told_without_its_traceback() -> None:
    error = in_a_task(UserError("use 471 or less"))
    assert isinstance(error, UserError) and "Traceback" in str(error)
    assert str(find_cause(error)) == "use 471 or less"


def test_wrappers_of_every_kind_are_looked_through() -> None:
    try:
        try:
            raise in_a_task(UserError("inside"))
        except PretrainerError as error:
            raise RuntimeError("outside") from error
    except RuntimeError as error:
        assert str(find_cause(error)) == "inside"


@pytest.mark.parametrize("error", [ValueError("theirs"), in_a_task(ValueError("theirs"))])
def test_other_errors_are_not_ours(error: Exception) -> None:
    assert find_cause(error) is None
