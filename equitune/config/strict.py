"""Validation in one voice: every mistake becomes a place and a sentence, and all of them are reported at once."""

import math
import unicodedata
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError
from pydantic_core import ErrorDetails, InitErrorDetails, PydanticCustomError

from equitune.catalog import shortened, unknown

Location = tuple[int | str, ...]
Model = TypeVar("Model", bound=BaseModel)
T = TypeVar("T")

MOST_INT, MOST_FLOAT = 2**53, 1e100  # in a study

_RULE = "rule"  # the type of an error whose message is already a sentence
_SENTENCES = {
    "missing": "is required",
    "int_type": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_type": "must be a number",
    "bool_type": "must be true or false",
    "string_type": "must be text",
    "dict_type": "must be a mapping",
    "model_type": "must be a mapping",
    "tuple_type": "must be a list",
    "list_type": "must be a list",
    "finite_number": "must be a finite number",
    "greater_than": "must be > {gt}",
    "greater_than_equal": "must be >= {ge}",
    "less_than": "must be < {lt}",
    "less_than_equal": "must be <= {le}",
    "literal_error": "must be one of {expected}",
    "too_short": "needs at least {min_length} value(s)",
    "too_long": "takes at most {max_length} value(s)",
    "string_too_short": "must not be empty",
    "string_too_long": "must have at most {max_length} characters",
}


class Strict(BaseModel):
    """Base of every specification: frozen, exact types, finite numbers, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False, populate_by_name=True)


def rule(sentence: str) -> PydanticCustomError:
    """Return an error that carries a finished sentence; raise it in a validator."""
    return PydanticCustomError(_RULE, "{sentence}", {"sentence": sentence})


def checked(model: type[Model], data: Any) -> Model:
    """Validate `data` as `model`; the errors it raises carry sentences, unknown keys with the nearest known one.

    Raises:
        ValidationError: with one entry for each mistake.
    """
    try:
        return model.model_validate(data)
    except ValidationError as error:
        known = [field.alias or name for name, field in model.model_fields.items()]
        raise _as_error([_sentence(details, known) for details in error.errors()]) from None


def nested(model: type[BaseModel]) -> BeforeValidator:
    """Return what to annotate a field with that holds another specification: `Annotated[Inner, nested(Inner)]`."""
    return BeforeValidator(lambda data: data if isinstance(data, model) else checked(model, data))


class Mistakes:
    """Collects the mistakes of several validations, each below its own location."""

    def __init__(self) -> None:
        self._found: list[InitErrorDetails] = []

    def add(self, location: Location, sentence: str, given: Any = None) -> None:
        self._found.append(InitErrorDetails(type=rule(sentence), loc=location, input=given))

    def under(self, location: Location, validate: Callable[[], T]) -> T | None:
        """Call `validate`; what it finds wrong is kept with `location` in front, and None returned."""
        try:
            return validate()
        except ValidationError as error:
            for details in error.errors():
                sentence = _sentence(details, [])
                self._found.append(InitErrorDetails({**sentence, "loc": (*location, *details["loc"])}))
        except PydanticCustomError as error:
            self.add(location, error.message())
        return None

    def raise_any(self) -> None:
        if self._found:
            raise _as_error(self._found)


def mapping_with_text_keys(data: Any, what: str) -> dict[str, Any]:
    """Return `data` as a dict, where None stands for an empty one. Raises the rule it breaks."""
    if data is None:
        return {}
    if not isinstance(data, Mapping):
        raise rule(f"{what} must be a mapping, but got {shown(data)}")
    return dict(data)


def shown(value: Any) -> str:
    """Return a given value within a sentence, cut to a readable length."""
    return "a mapping" if isinstance(value, Mapping) else shortened(repr(value))


def why_not_text(text: str) -> str | None:
    """Say what is wrong with a text of a user that no file's name and no terminal can hold; None: nothing."""
    for character in text:
        if unicodedata.category(character) in ("Cc", "Cs") and character not in "\n\t":
            return f"must hold neither control characters nor halves of characters, but got {character!a}"
    return None


def why_not_number(number: float) -> str | None:
    """Say what is wrong with a number that is beyond all use; None: nothing. Infinity and NaN are left to the model.

    Arithmetic within the bounds neither overflows nor leaves the whole numbers that a double has.
    """
    if isinstance(number, int):
        inside = -MOST_INT <= number <= MOST_INT
        return None if inside else f"must lie between -2**53 and 2**53, but got {shown(number)}"
    if math.isfinite(number) and number and not 1 / MOST_FLOAT <= abs(number) <= MOST_FLOAT:
        return f"must be 0, or between {1 / MOST_FLOAT:g} and {MOST_FLOAT:g} in size, but got {number:g}"
    return None


def _sentence(details: ErrorDetails, known: list[str]) -> InitErrorDetails:
    kind, given, context = details["type"], details["input"], details.get("ctx", {})
    if kind == _RULE:
        text = details["msg"]
    elif kind == "extra_forbidden":
        text = unknown("name", details["loc"][-1], known)
    elif kind == "missing":
        text = _SENTENCES[kind]
    else:
        expected = _SENTENCES.get(kind, details["msg"][:1].lower() + details["msg"][1:])
        text = f"{expected.format(**context)}, but got {shown(given)}"
    return InitErrorDetails(type=rule(text), loc=details["loc"], input=given)


def _as_error(found: list[InitErrorDetails]) -> ValidationError:
    return ValidationError.from_exception_data("specification", found)
