"""docs/estimators.md: its code runs, and it states every public signature as it is."""

import inspect
import re
from pathlib import Path

import numpy as np
import pytest

import telescope

PAGE = (Path(__file__).parents[1] / "docs" / "estimators.md").read_text(encoding="utf-8")


def test_the_example_runs() -> None:
    names: dict[str, object] = {}
    for block in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL):
        exec(block, names)
    np.testing.assert_allclose(names["next_values"], [0.4, 0.0, 0.7, 0.9], rtol=1e-6)


@pytest.mark.parametrize("name", [name for name in telescope.__all__ if name != "load"])
def test_every_signature_is_there(name: str) -> None:
    stated = re.search(rf"^{name}\((.*?)\) ->", PAGE, re.DOTALL | re.MULTILINE)
    assert stated is not None
    parameters = inspect.signature(getattr(telescope, name)).parameters.values()
    plain = [parameter.replace(annotation=inspect.Parameter.empty) for parameter in parameters]
    expected = str(inspect.Signature(plain))[1:-1]
    assert " ".join(stated[1].split()) == expected
