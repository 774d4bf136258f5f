"""torchvision and timm import, whether or not torchvision's compiled operators load."""

import subprocess
import sys

import pytest


def run(code: str) -> None:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("first", ["torchvision", "timm", "torchvision.transforms"])
def test_both_import_in_a_fresh_process(first: str) -> None:
    run(
        f"import equitune, {first}\n"
        "import torchvision, timm, importlib.util\n"
        "assert torchvision.transforms.ToTensor and timm.create_model('resnet10t', num_classes=3)\n"
        "assert importlib.util.find_spec('torchvision').origin == torchvision.__file__"
    )


def test_importing_the_package_imports_nothing_else() -> None:
    run("import sys, equitune\nassert not {'torch', 'torchvision', 'ray', 'pydantic'} & set(sys.modules)")


def test_the_mend_steps_aside_where_the_operators_exist() -> None:
    # The operators are declared beforehand, as a working build of torchvision does when it loads.
    run(
        "import equitune, torch\n"
        "from equitune import torchvision_mend as mend\n"
        "library = torch.library.Library('torchvision', 'DEF')\n"
        "for schema in mend.MISSING: library.define(schema)\n"
        "import torchvision\n"
        "assert mend.declared == []"
    )


def test_other_failures_of_the_import_are_not_hidden() -> None:
    run(
        "from equitune.torchvision_mend import Loader\n"
        "class Broken:\n"
        "    def exec_module(self, module): raise RuntimeError('another problem')\n"
        "try: Loader(Broken()).exec_module(None)\n"
        "except RuntimeError as error: assert 'another problem' in str(error)\n"
        "else: raise AssertionError"
    )
