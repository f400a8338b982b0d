"""What the tools print of an error: one line on stderr."""

from __future__ import annotations

import re
import sys

from hydra.errors import HydraException
from omegaconf.errors import (
    ConfigAttributeError,
    ConfigKeyError,
    MissingMandatoryValue,
    OmegaConfBaseException,
)

from fewshot.core.device import out_of_memory
from fewshot.core.errors import FewshotError, error_location, one_line
from fewshot.experiment.config import wanted_type

MISTAKES = (FewshotError, OmegaConfBaseException, OSError)  # of a person or a machine, not of this code
TRACEBACK = "HYDRA_FULL_ERROR=1 shows the traceback"


def print_error(text: str) -> None:
    """Print an error on one line of stderr, with line breaks escaped."""
    print("error:", "\\n".join(text.splitlines()), file=sys.stderr)


def format_error(error: Exception) -> str:
    """An error in one line."""
    if full := out_of_memory(error):
        reason = next((line for line in str(full).splitlines() if line), type(full).__name__)
        return f"out of memory: take a smaller network, fewer shots or queries, or a larger machine ({reason})"
    if isinstance(error, OmegaConfBaseException):
        return _format_key_error(error)
    if isinstance(error, (*MISTAKES, HydraException)):
        reason = (error.__cause__ or error) if isinstance(error, HydraException) else error
        line = next(iter(str(reason).strip().splitlines()), type(error).__name__)
        in_own_file = (
            isinstance(error, FewshotError) and error.__cause__ is not None and error_location(error.__cause__)
        )
        return f"{line}; {TRACEBACK}" if in_own_file else line
    line, location = f"{type(error).__name__}: {one_line(error)}", error_location(error)
    where, ends = (f"{location}: ", [TRACEBACK]) if location else ("", [])  # in a person's own file
    return "; ".join([f"{where}{line}", *getattr(error, "__notes__", []), *ends])


def _format_key_error(error: OmegaConfBaseException) -> str:
    """An error of OmegaConf in one line that begins with the key."""
    key, text = error.full_key, next(iter(str(error).strip().splitlines()), type(error).__name__)
    missing = re.search(r"interpolation: Missing mandatory value: (\S+)", text)
    if lacking := missing[1] if missing else key if isinstance(error, MissingMandatoryValue) else None:
        return f"{lacking}: has no value; set {lacking}=<{'run folder' if lacking == 'run' else 'value'}>"
    if isinstance(error, ConfigAttributeError | ConfigKeyError) and key:
        return f"{key}: is needed and not in the configuration; a ~ deleted it, or its file in conf lacks it"
    return f"{key}: {wanted_type(text)}" if key and key not in text else text
