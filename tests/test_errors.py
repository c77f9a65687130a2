"""The error of ours inside Ray's."""

from __future__ import annotations

import pytest
from ray.exceptions import RayTaskError

from pretrainer.errors import BadDataError, PretrainerError, UserError, find_cause


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


def test_an_error_of_ours_is_found_in_the_text_of_ray_data_s_wrapper() -> None:
    """What a stage raises arrives as UserCodeException without a cause; only its traceback says what it was."""
    text = "ray::MapWorker()\n  File\npretrainer.errors.BadDataError: source a: 60 of 100\n\nThe above exception was\n"
    found = find_cause(RuntimeError(text + "ray.exceptions.UserCodeException: UDF failed"))
    assert type(found) is BadDataError and str(found) == "source a: 60 of 100"
    assert find_cause(RuntimeError("pretrainer.errors.Nobody: x")) is None
