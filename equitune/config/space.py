"""The search space: distributions, the sections that hold them, and the one walk that turns both into values.

`suggest` knows nothing of Optuna: whoever walks the space hands in a function that picks a value by parameter name.
"""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Annotated, Any

from pydantic import Field, WrapValidator, create_model, model_validator

from equitune import catalog
from equitune.catalog import Arguments
from equitune.config.strict import Location, Mistakes, Strict, checked, mapping_with_text_keys, rule, shown
from equitune.errors import UserError

MOST_STEPS = 10**9  # of a range

Scalar = bool | int | float | str | None
Values = dict[str, Any]  # argument name -> constant or Distribution


class Choice(Strict):
    """One of several constants."""

    choice: Annotated[tuple[Scalar, ...], Field(min_length=1, strict=False)]

    @model_validator(mode="after")
    def _distinct(self) -> "Choice":
        if len({(type(value), value) for value in self.choice}) < len(self.choice):
            raise rule(f"the values of choice must differ, but got {shown(list(self.choice))}")
        return self

    def extremes(self) -> Iterator[tuple[tuple[int | str, ...], Any]]:
        yield from ((("choice", index), value) for index, value in enumerate(self.choice))

    def at(self, share: float) -> Scalar:
        """Return the value at a share in [0, 1) of the choice; each has an equal part."""
        return self.choice[int(share * len(self.choice))]


class IntRange(Strict):
    """A whole number from low to high, both included."""

    bounds: Annotated[tuple[int, int], Field(alias="int", strict=False)]
    log: bool = False
    step: Annotated[int, Field(ge=1)] = 1

    @model_validator(mode="after")
    def _ordered(self) -> "IntRange":
        _check_range(*self.bounds, log=self.log, step=None if self.step == 1 else self.step)
        return self

    def extremes(self) -> Iterator[tuple[tuple[int | str, ...], Any]]:
        yield from ((("int", index), bound) for index, bound in enumerate(self.bounds))

    def at(self, share: float) -> int:
        """Return the value at a share in [0, 1) of the range, of its logarithm where `log` is set."""
        low, high = self.bounds
        if self.log:  # each whole number has the part from half a step below to half a step above
            return min(max(round(_between(low - 0.5, high + 0.5, share, log=True)), low), high)
        return low + self.step * int(share * ((high - low) // self.step + 1))


class FloatRange(Strict):
    """A number from low to high, both included."""

    bounds: Annotated[tuple[float, float], Field(alias="float", strict=False)]
    log: bool = False
    step: Annotated[float, Field(gt=0)] | None = None

    @model_validator(mode="after")
    def _ordered(self) -> "FloatRange":
        _check_range(*self.bounds, log=self.log, step=self.step)
        return self

    def extremes(self) -> Iterator[tuple[tuple[int | str, ...], Any]]:
        yield from ((("float", index), bound) for index, bound in enumerate(self.bounds))

    def at(self, share: float) -> float:
        """Return the value at a share in [0, 1) of the range, of its logarithm where `log` is set."""
        low, high = self.bounds
        if self.step is None:
            return min(max(_between(low, high, share, log=self.log), low), high)
        return stepped(low, self.step, int(share * (round((high - low) / self.step) + 1)))


Distribution = Choice | IntRange | FloatRange
Pick = Callable[[str, Distribution], Scalar]

_KINDS: dict[str, type[Choice] | type[IntRange] | type[FloatRange]] = {
    "choice": Choice,
    "int": IntRange,
    "float": FloatRange,
}


class Call(Strict):
    """A component by name, with what is said of its arguments."""

    name: str
    args: Values = {}


class Section(Strict):
    """A part of the study that becomes component calls: one branch, or several that the search chooses from.

    `path` is the section's place in the YAML file and the prefix of its parameter names.
    """

    path: str
    branches: dict[str, tuple[Call, ...]]
    is_choice: bool = False
    holds_many: bool = False  # several named components a branch: a component's name is part of its parameters' names

    def suggest(self, pick: Pick) -> tuple[Call, ...]:
        """Pick a branch and a value for each of its distributions; ask for nothing outside that branch."""
        prefix, label = self.path, next(iter(self.branches))
        if self.is_choice:
            label = str(pick(self.path, Choice(choice=tuple(self.branches))))
            prefix = f"{self.path}.{label}"
        return tuple(
            Call(
                name=call.name,
                args={
                    key: pick(_join(prefix, call.name if self.holds_many else None, key), value)
                    if isinstance(value, Distribution)
                    else value
                    for key, value in call.args.items()
                },
            )
            for call in self.branches[label]
        )

    def parameters(self) -> Iterator[tuple[str, Distribution]]:
        """Every parameter of the section, whatever branch it belongs to."""
        if self.is_choice:
            yield self.path, Choice(choice=tuple(self.branches))
        for label in self.branches:
            yield from self.parameters_of(label)

    def parameters_of(self, label: str) -> Iterator[tuple[str, Distribution]]:
        """Yield the parameters that a branch has of its own."""
        prefix = f"{self.path}.{label}" if self.is_choice else self.path
        for call in self.branches[label]:
            for key, value in call.args.items():
                if isinstance(value, Distribution):
                    yield _join(prefix, call.name if self.holds_many else None, key), value

    def places_of(self, label: str) -> Iterator[Location]:
        """Where each of a branch's own parameters stands in the study's file."""
        branch = ("choose", label) if self.is_choice else ()
        for call in self.branches[label]:
            for key, value in call.args.items():
                if isinstance(value, Distribution):
                    yield (self.path, *branch, *((call.name,) if self.holds_many else ()), key)

    def plain(self) -> dict[str, Any]:
        """Return the section as JSON: branch -> component -> what was said of its arguments."""
        plain: dict[str, Any] = {}
        for label, calls in self.branches.items():
            args = {call.name: {key: _plain(value) for key, value in call.args.items()} for call in calls}
            plain[label] = args.get(self.path, args)  # settings have no component's name
        return plain if self.is_choice else next(iter(plain.values()))


def component_section(kind: str, path: str, data: Any) -> Section:
    """One component of a kind: its name alone, `{name: ..., argument: value}`, or `{choose: {name: {...}}}`."""
    if isinstance(data, str):
        data = {"name": data}
    data = mapping_with_text_keys(data, f"a {kind}")
    if "choose" in data:
        return _choose(path, data, lambda label, args: (_call(kind, label, args),))
    if "name" not in data:
        raise rule(f"a {kind} needs a name: known: {', '.join(catalog.names(kind))}")
    name = data.pop("name")
    return Section(path=path, branches={str(name): (_call(kind, name, data),)})


def component_map_section(kind: str, path: str, data: Any) -> Section:
    """Several components of a kind, applied in the order written: `{name: {argument: value}, ...}`."""

    def calls(_: str, components: Any) -> tuple[Call, ...]:
        mistakes, found = Mistakes(), []
        for name, args in mapping_with_text_keys(components, f"{kind}s").items():
            found.append(mistakes.under((name,), partial(_call, kind, name, args)))
        mistakes.raise_any()
        return tuple(call for call in found if call is not None)

    data = mapping_with_text_keys(data, f"{kind}s")
    if "choose" in data:
        return _choose(path, data, calls, holds_many=True)
    return Section(path=path, branches={"": calls("", data)}, holds_many=True)


def settings_section(model: type[Arguments], path: str, data: Any) -> Section:
    """Return the settings of one model of values, each a constant or a distribution."""

    def settings(_: str, values: Any) -> tuple[Call, ...]:
        return (Call(name=path, args=_values(model, mapping_with_text_keys(values, path))),)

    data = mapping_with_text_keys(data, path)
    if "choose" in data:
        return _choose(path, data, settings)
    return Section(path=path, branches={"": settings("", data)})


def constant_call(kind: str, data: Any) -> Call:
    """Return a component whose arguments are constants, every default filled in."""
    data = {"name": data} if isinstance(data, str) else mapping_with_text_keys(data, f"a {kind}")
    if "name" not in data:
        raise rule(f"a {kind} needs a name: known: {', '.join(catalog.names(kind))}")
    name = data.pop("name")
    return filled(kind, Call(name=_known(kind, name), args=data))


def filled(kind: str, call: Call) -> Call:
    """Return the call with each of its arguments checked and every default filled in."""
    return Call(name=call.name, args=checked(catalog.arguments(kind, call.name), call.args).model_dump())


def _choose(
    path: str, data: Values, calls: Callable[[str, Any], tuple[Call, ...]], holds_many: bool = False
) -> Section:
    if len(data) > 1:
        other = next(key for key in data if key != "choose")
        raise rule(f"choose stands alone, but got '{other}' beside it: move it into a branch")
    mistakes, branches = Mistakes(), {}
    labels = mapping_with_text_keys(data["choose"], "choose")
    if not labels:
        raise rule("choose needs at least one branch")
    for label, args in labels.items():
        call = mistakes.under(("choose", label), partial(calls, label, args))
        branches[label] = call or ()
    mistakes.raise_any()
    return Section(path=path, branches=branches, is_choice=True, holds_many=holds_many)


def _call(kind: str, name: Any, args: Any) -> Call:
    model = catalog.arguments(kind, _known(kind, name))
    return Call(name=name, args=_values(model, mapping_with_text_keys(args, f"the arguments of {name}")))


def _known(kind: str, name: Any) -> str:
    if not isinstance(name, str):
        raise rule(f"the name of a {kind} must be text, but got {shown(name)}")
    try:
        catalog.describe(kind, name)
    except UserError as error:
        raise rule(str(error)) from None
    return name


def _values(model: type[Arguments], data: Values) -> Values:
    """Return what `data` says of the model's fields; the fields it does not name keep the component's own default."""
    validated = checked(_searchable(model), data)
    return {key: getattr(validated, key) for key in model.model_fields if key in validated.model_fields_set}


def _searchable(model: type[Arguments]) -> type[Arguments]:
    """Return the same fields, where each also takes a distribution over its values."""
    fields: Any = {
        name: (
            Annotated[field.annotation, *field.metadata, WrapValidator(_distribution_or_value)],
            ... if field.is_required() else field.default,
        )
        for name, field in model.model_fields.items()
    }
    return create_model(model.__name__, __base__=Arguments, **fields)


def _distribution_or_value(data: Any, validate: Callable[[Any], Any]) -> Any:
    if isinstance(data, list):
        raise rule(f"takes one value, but got a list: to search over values write {{choice: {data}}}")
    if not isinstance(data, Mapping):
        return validate(data)
    kind = next((key for key in _KINDS if key in data), None)
    if kind is None:
        raise rule("a distribution is {choice: [...]}, {int: [low, high]} or {float: [low, high]}")
    distribution = checked(_KINDS[kind], dict(data))
    mistakes = Mistakes()
    for location, value in distribution.extremes():
        mistakes.under(location, partial(validate, value))
    mistakes.raise_any()
    return distribution


def stepped(low: float, step: float, index: int) -> float:
    """Return the value so many steps above `low`: 0.3, not 0.30000000000000004."""
    return float(f"{low + index * step:.12g}")


def _between(low: float, high: float, share: float, *, log: bool) -> float:
    return low * (high / low) ** share if log else low + share * (high - low)


def _check_range(low: float, high: float, *, log: bool, step: float | None) -> None:
    if low > high:
        raise rule(f"low <= high must hold, but got low={low}, high={high}")
    if log and low <= 0:
        raise rule(f"log: true needs low > 0, but got low={low}")
    if log and step is not None:
        raise rule("log: true and step exclude each other: remove one")
    if step is not None and (high - low) / step > MOST_STEPS:
        raise rule(f"a range has at most {MOST_STEPS:,} steps, but got step={step}, low={low}, high={high}")
    if step is not None and abs((high - low) / step - round((high - low) / step)) > 1e-9:
        raise rule(f"step must divide high - low, but got step={step}, low={low}, high={high}")


def _plain(value: Any) -> Any:
    return (
        value.model_dump(mode="json", by_alias=True, exclude_defaults=True)
        if isinstance(value, Distribution)
        else value
    )


def _join(*parts: str | None) -> str:
    return ".".join(part for part in parts if part)
