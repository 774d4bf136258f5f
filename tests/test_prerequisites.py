"""A test that cannot be run here is skipped aloud, or fails where somebody relies on it."""

import pytest
from prerequisites import KNOWN, require


@pytest.fixture(autouse=True)
def without_a_browser(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.delenv("EQUITUNE_REQUIRE", raising=False)


@pytest.mark.parametrize("required", ["", "crds,kustomize"])
def test_what_is_missing_is_skipped_and_said(required: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EQUITUNE_REQUIRE", required)
    with pytest.raises(pytest.skip.Exception, match=r"no chromium on this machine: that a page .* stays unproved$"):
        require("chromium")


def test_what_is_relied_on_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EQUITUNE_REQUIRE", "crds,chromium")
    with pytest.raises(pytest.fail.Exception, match="no chromium on this machine"):
        require("chromium")


def test_a_name_that_nobody_knows_is_no_licence_to_skip(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EQUITUNE_REQUIRE", "chromum")
    with pytest.raises(pytest.fail.Exception, match="names chromum, but known are chromium, crds"):
        require("chromium")


def test_what_is_there_is_no_reason_to_skip(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(KNOWN, "chromium", (lambda: "", "nothing"))
    require("chromium")
