"""Few-shot meta-learning under one roof and one protocol.

`__init__.pyi` lists the public names, for people, type checkers and this file. Each is imported when it is first
used, so that `import fewshot` costs nothing. Configurations and saved runs name classes and readers by these names,
wherever in the package they live.
"""

import ast
from importlib import import_module
from pathlib import Path
from typing import Any

# Each public name, with its module.
_PLACES = {
    name.name: str(line.module)
    for line in ast.parse(Path(__file__).with_suffix(".pyi").read_text(encoding="utf-8")).body
    if isinstance(line, ast.ImportFrom)
    for name in line.names
}
# Names that runs were saved with before a class was renamed.
_FORMER = {"Leo": "LEO", "LeoRegression": "LEORegression", "Maml": "MAML"}
__all__ = sorted(_PLACES)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    name = _FORMER.get(name, name)
    if name not in _PLACES:
        raise AttributeError(f"module 'fewshot' has no attribute {name!r}")
    return getattr(import_module(_PLACES[name]), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
