"""What settings, protocols and tables are checked by. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ModelWrapValidatorHandler, ValidationError, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError

Own = TypeVar("Own", bound="Strict")


class Strict(BaseModel):
    """Unknown keys are errors, booleans are not numbers, infinity and NaN are refused, and instances are frozen."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, defer_build=True)

    @model_validator(mode="wrap")
    @classmethod
    def _truth_values_are_no_numbers(cls: type[Own], raw: Any, handler: ModelWrapValidatorHandler[Own]) -> Own:
        """YAML reads yes, on and true as true, which Python takes for 1."""
        model = handler(raw)
        if isinstance(raw, Mapping):
            for place in _truth_values(raw, {key: getattr(model, key) for key in raw}, ()):
                raise ValidationError.from_exception_data(cls.__name__, [_no_number(raw, place)])
        return model


def _truth_values(raw: Any, value: Any, place: tuple[str | int, ...]) -> list[tuple[str | int, ...]]:
    """Where a truth value became a number."""
    if isinstance(raw, bool):
        return [place] if isinstance(value, int | float) and not isinstance(value, bool) else []
    if isinstance(raw, Mapping) and isinstance(value, Mapping):
        pairs: list[tuple[str | int, Any, Any]] = [(key, raw[key], value[key]) for key in raw if key in value]
    elif isinstance(raw, list | tuple) and isinstance(value, list | tuple):
        pairs = [(i, *both) for i, both in enumerate(zip(raw, value, strict=False))]
    else:
        return []
    return [place_of_one for key, one, other in pairs for place_of_one in _truth_values(one, other, (*place, key))]


def _no_number(raw: Any, place: tuple[str | int, ...]) -> InitErrorDetails:
    for key in place:
        raw = raw[key]
    message = "Input should be a number; YAML reads yes, no, on and off as truth values"
    return InitErrorDetails(type=PydanticCustomError("number_type", message), loc=place, input=raw)
