"""The catalogue: files are components, signatures are read without importing."""

import inspect
import subprocess
import sys

import pytest
from pydantic import ValidationError

from equitune import catalog
from equitune.errors import UserError

EVERY = [(kind, name) for kind in catalog.KINDS for name in catalog.names(kind)]


@pytest.mark.parametrize(("kind", "name"), EVERY)
def test_what_is_read_is_what_python_sees(kind: str, name: str) -> None:
    component = catalog.describe(kind, name)
    signature = inspect.signature(catalog.entry(kind, name))
    settable = {p.name: p for p in signature.parameters.values() if p.kind is inspect.Parameter.KEYWORD_ONLY}
    assert list(component.parameters) == list(settable)
    for parameter, (_, default) in component.parameters.items():
        assert default == (
            ... if settable[parameter].default is inspect.Parameter.empty else settable[parameter].default
        )
    assert component.summary


@pytest.mark.parametrize(("kind", "name"), EVERY)
def test_defaults_satisfy_their_own_bounds(kind: str, name: str) -> None:
    defaults = {
        key: default for key, (_, default) in catalog.describe(kind, name).parameters.items() if default is not ...
    }
    required = {"path": "x", "architecture": "x"}
    needed = {key: required[key] for key, (_, d) in catalog.describe(kind, name).parameters.items() if d is ...}
    assert catalog.arguments(kind, name)(**defaults, **needed).model_dump() == {**defaults, **needed}


def test_an_unknown_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(UserError, match=r"unknown model 'resnt': did you mean 'resnet'\? known: cnn, resnet"):
        catalog.describe("model", "resnt")


def test_arguments_refuse_wrong_types_and_bounds() -> None:
    model = catalog.arguments("model", "resnet")
    for wrong in ({"width": 0}, {"width": "8"}, {"width": True}, {"width": 8.0}, {"widht": 8}):
        with pytest.raises(ValidationError):
            model(**wrong)


def test_a_model_takes_every_part_for_the_features_of_its_default() -> None:
    maps, tokens = catalog.parts("cnn", "prior"), catalog.parts("vit", "prior")
    assert maps[0] == "conv"
    assert maps[1:] == sorted(maps[1:])
    assert tokens == ["attention", "gpsa"]
    assert {*maps} | {*tokens} == {*catalog.names("prior")}
    assert not {*maps} & {*tokens}
    assert catalog.parts("timm", "prior") == catalog.parts("vit", "downsampler") == []
    assert {*catalog.parts("vit", "stem")} == {*maps} - {"orbit_c4", "partial_p4", "separable_p4"}
    assert catalog.parts("vit", "stem")[0] == "conv"
    assert catalog.parts("resnet", "stem") == []
    for model, default in (("cnn", "pool2"), ("resnet", "stride")):
        assert catalog.parts(model, "prior") == maps
        assert catalog.parts(model, "downsampler")[0] == default
        assert sorted(catalog.parts(model, "downsampler")) == catalog.names("downsampler")


@pytest.mark.parametrize("name", catalog.names("prior"))
def test_a_prior_is_of_the_features_that_it_says(name: str) -> None:
    has_map_layers = hasattr(catalog.entry("prior", name)(), "lift")
    assert catalog.describe("prior", name).constants["FEATURES"] == ("maps" if has_map_layers else "tokens")


def test_reading_the_catalogue_imports_neither_torch_nor_ray() -> None:
    code = (
        "import sys; from equitune import catalog\n"
        "for kind in catalog.KINDS:\n"
        "    for name in catalog.names(kind): catalog.arguments(kind, name)\n"
        "assert not {'torch', 'ray', 'optuna', 'mlflow'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
