"""The way from a command line to a function, shared by the tools: one line for a person's mistake, no traceback."""

from __future__ import annotations

import argparse
import codecs
import io
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

from hydra import version
from hydra._internal.hydra import Hydra
from hydra._internal.utils import get_args_parser
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.main import _get_rerun_conf
from hydra.types import RunMode
from omegaconf import Container, DictConfig, OmegaConf
from omegaconf.errors import (
    ConfigAttributeError,
    ConfigKeyError,
    MissingMandatoryValue,
    OmegaConfBaseException,
)

from fewshot.core.checks import did_you_mean
from fewshot.core.device import out_of_memory, tune_malloc
from fewshot.core.errors import FewshotError, one_line
from fewshot.core.paths import CONF, expand_configuration, expand_home
from fewshot.experiment.command_line import check_overrides, open_hydra, parse_flags, parse_overrides
from fewshot.experiment.config import check_groups, fill_view, key_names
from fewshot.experiment.sweeps import exit_with_parent, objective, print_sweep_summary, sweep_status_dir, write_note

MISTAKES = (FewshotError, OmegaConfBaseException, OSError)  # of a person or a machine
T = TypeVar("T")
SPELT = {"±": "+-", "×": "x", "…": "...", "–": "-", "—": "-"}  # where a terminal has ASCII alone


def main(
    function: Callable[[DictConfig], list[Path] | None],
    config: str,
    complete: Callable[[DictConfig, Iterable[str]], None] | None = None,
) -> None:
    """Run a tool under Hydra: compose `conf/<config>.yaml` with the command line, then call `function`.

    A mistake in the command line or the input is one line on stderr and exit code 1. In a sweep a failed run does
    not end the others, in whatever process or machine a launcher puts it; the sweep ends with the table of the
    records that its runs left, and with what failed.

    Args:
        function: returns the records that it wrote, the one that a search goes by first, where it wrote any.
        complete: what `function` fills into the configuration by itself, given the overrides; `--cfg` shows it too.
    """
    sys.argv[1:] = map(expand_home, sys.argv[1:])
    argv, process = sys.argv, os.getpid()
    notes: Path | None = None

    def guarded(cfg: DictConfig) -> float | None:
        if os.getpid() != process:
            _init_worker(argv, process)
        tune_malloc()
        records, failure = [], None
        try:
            expand_configuration(cfg)
            check_groups(cfg)
            fill_view(cfg)
            records = function(cfg) or []
        except Exception as error:
            failure = format_error(error)
            if isinstance(error, MISTAKES) or out_of_memory(error):
                print_error(failure)
            else:
                traceback.print_exc()
        if notes:
            write_note(notes, records, failure)
        elif failure:
            sys.exit(1)
        return objective(records[0]) if notes and records else None

    replace_unprintable()
    try:
        if not CONF.is_dir():
            raise FewshotError(f"{CONF}: not there; run the tools from a clone, installed with `pip install -e .`")
        flags = parse_flags(argv[1:])
        if flags.experimental_rerun is not None:
            with warnings.catch_warnings(action="ignore"):  # that the other words are ignored
                cfg = _opened(lambda: _get_rerun_conf(flags.experimental_rerun, flags.overrides))
            guarded(cfg)
            return
        version.setbase("1.3")
        GlobalHydra.instance().clear()
        hydra = _opened(lambda: open_hydra(flags, config))
        config = flags.config_name or config
        if flags.shell_completion:
            _opened(lambda: hydra.shell_completion(config, flags.overrides))
            return
        runs = not (flags.cfg or flags.info or flags.help or flags.hydra_help)
        sweep = runs and (flags.multirun or hydra.get_mode(config, flags.overrides) == RunMode.MULTIRUN)
        if sweep and int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise FewshotError(
                "-m: torchrun shares one run among processes; start a sweep without it, or run by run with it"
            )
        overrides = parse_overrides(flags.overrides, hydra, sweep)
        words = [override.input_line or "" for override in overrides]
        if not flags.hydra_help:
            check_overrides(overrides, config, hydra, sweep)
        if not runs:
            flags.overrides = words
            _opened(lambda: _show(hydra, config, flags, complete))
        elif not sweep:
            _opened(lambda: hydra.run(config, guarded, [*words, "hydra.mode=RUN"]))
        else:
            words.append("hydra.mode=MULTIRUN")
            place = _opened(lambda: hydra.compose_config(config, words, RunMode.MULTIRUN).hydra.sweep.dir)
            with sweep_status_dir(Path(place), words) as notes:
                launched = _run_sweep(lambda: hydra.multirun(config, guarded, words))
                if not (print_sweep_summary(notes) and launched):
                    sys.exit(1)
    except FewshotError as error:
        if os.environ.get("RANK", "0") == "0":  # all processes of torchrun find the same mistake
            print_error(str(error))
        sys.exit(1)
    except KeyboardInterrupt:
        print("interrupted: the same command, or resume=<run folder>, continues the run", file=sys.stderr)
        sys.exit(130)
    finally:
        GlobalHydra.instance().clear()


def _opened(step: Callable[[], T]) -> T:
    """What a step of Hydra returns; what it raises, in one line."""
    try:
        return step()
    except FewshotError:
        raise
    except Exception as error:
        if os.environ.get("HYDRA_FULL_ERROR"):
            traceback.print_exc()
        raise FewshotError(format_error(error)) from error


def _show(
    hydra: Hydra,
    config: str,
    flags: argparse.Namespace,
    complete: Callable[[DictConfig, Iterable[str]], None] | None,
) -> None:
    """What `--help`, `--hydra-help`, `--info` and `--cfg` print."""
    words = flags.overrides
    if flags.help:
        hydra.app_help(config, get_args_parser(), flags)
    elif flags.hydra_help:
        hydra.hydra_help(config, get_args_parser(), flags)
    elif flags.info:
        hydra.show_info(flags.info, config, words)
    else:
        cfg = hydra.compose_config(config, words, RunMode.RUN)
        HydraConfig.instance().set_config(cfg)
        OmegaConf.set_readonly(cfg.hydra, None)
        fill_view(cfg)
        if complete is not None:
            complete(cfg, words)
        shown: Any = hydra.get_sanitized_cfg(cfg, flags.cfg)
        if flags.package not in (None, "_global_"):
            if flags.package not in (names := key_names(shown)):
                raise FewshotError(f"--package={flags.package}: no such part{did_you_mean(flags.package, names)}")
            shown = OmegaConf.select(shown, flags.package)
        if not isinstance(shown, Container):
            print(shown)
            return
        if shown._get_parent() is not None:
            print(f"# @package {flags.package}")
        if flags.resolve:
            expand_configuration(cfg)
            OmegaConf.resolve(shown)
        print(OmegaConf.to_yaml(shown), end="")


def replace_unprintable() -> None:
    """Let stdout and stderr spell out what their encoding lacks, rather than fail."""
    codecs.register_error("spelt", _spelt)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="spelt")


def _spelt(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    letters = error.object[error.start : error.end]
    return "".join(SPELT.get(each, ascii(each)[1:-1]) for each in letters), error.end


def _init_worker(argv: list[str], process: int) -> None:
    """Make a process of a launcher one of the sweep that `process` started with `argv`."""
    sys.argv = argv  # for the record
    replace_unprintable()
    os.environ["TTY_COMPATIBLE"] = "0"  # no progress bars: those of several processes would overwrite each other
    if os.getppid() == process:
        exit_with_parent(process)


def _run_sweep(sweep: Callable[[], Any]) -> bool:
    """Let Hydra launch a sweep; False, and a line, where the launcher or the search broke down."""
    try:
        sweep()
    except Exception as error:
        if os.environ.get("HYDRA_FULL_ERROR"):
            traceback.print_exc()
        print_error(f"the sweep ended early: {format_error(error)}; the same command runs what is missing")
        return False
    return True


def print_error(text: str) -> None:
    """One line on stderr, whatever a person typed."""
    print("error:", "\\n".join(text.splitlines()), file=sys.stderr)


def format_error(error: Exception) -> str:
    """An error in one line."""
    if full := out_of_memory(error):
        reason = next((line for line in str(full).splitlines() if line), type(full).__name__)
        return f"out of memory: take a smaller network, fewer shots or queries, or a larger machine ({reason})"
    if isinstance(error, OmegaConfBaseException):
        return _said_of_key(error)
    if isinstance(error, (*MISTAKES, HydraException)):
        reason = (error.__cause__ or error) if isinstance(error, HydraException) else error
        return next(iter(str(reason).strip().splitlines()), type(error).__name__)
    return f"{type(error).__name__}: {one_line(error)}"


def _said_of_key(error: OmegaConfBaseException) -> str:
    """What is wrong with a value of the configuration, by its key."""
    key, text = error.full_key, next(iter(str(error).strip().splitlines()), type(error).__name__)
    if isinstance(error, MissingMandatoryValue) and key:
        return f"{key}: has no value; set {key}=<value>"
    if isinstance(error, ConfigAttributeError | ConfigKeyError) and key:
        return f"{key}: is needed and not in the configuration; a ~ deleted it, or its file in conf lacks it"
    return f"{key}: {text}" if key and key not in text else text
