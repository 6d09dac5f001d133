"""`import clearhead`: cheap, complete, and the same for people and type checkers."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import clearhead

SOURCE = Path(clearhead.__file__)


@pytest.mark.parametrize("name", clearhead._MODULES)
def test_a_public_name_is_there_and_documented(name):
    value = getattr(clearhead, name)
    assert value.__name__ == (clearhead._MODULES[name].partition(":")[2] or name)
    assert value.__doc__
    assert name in dir(clearhead)


def test_type_checkers_see_the_same_names():
    [block] = [node for node in ast.parse(SOURCE.read_text()).body if isinstance(node, ast.If)]
    imports = [node for node in block.body if isinstance(node, ast.ImportFrom)]
    seen = {}
    for node in imports:
        for alias in node.names:
            own = "" if alias.asname == alias.name else f":{alias.name}"
            seen[alias.asname] = node.module.removeprefix("clearhead.") + own
    assert seen == clearhead._MODULES


def test_another_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'expalin'"):
        clearhead.expalin  # noqa: B018


def test_importing_it_imports_nothing_heavy_and_a_function_is_no_module():
    code = (
        "import sys, clearhead\n"
        "assert not {'torch', 'timm', 'torchvision', 'numpy', 'matplotlib'} & sys.modules.keys()\n"
        "from clearhead import tap\n"
        "import clearhead.heads\n"
        "assert callable(clearhead.tap) and clearhead.tap is tap\n"
        "import torchvision\n"  # whatever torch it was built for
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_it_is_typed():
    assert (SOURCE.parent / "py.typed").is_file()
