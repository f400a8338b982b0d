"""From a command line to a function, for every tool. A person's mistake is one line on stderr, without a traceback.

Nothing here imports torch, so that `--help`, `--cfg` and mistakes are answered at once.
"""

from __future__ import annotations

import argparse
import codecs
import io
import os
import shlex
import sys
import traceback
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any, TypeVar

from hydra import version
from hydra._internal.hydra import Hydra
from hydra._internal.utils import get_args_parser
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.types import Override
from hydra.types import RunMode
from omegaconf import Container, DictConfig, OmegaConf

from fewshot.core.checks import did_you_mean
from fewshot.core.device import out_of_memory, tune_malloc
from fewshot.core.distributed import RankZeroFailed, fails_everywhere, is_rank_zero, process_group
from fewshot.core.environment import code
from fewshot.core.errors import FewshotError, error_location
from fewshot.core.interrupt import never_hold_interrupt
from fewshot.core.paths import CONF
from fewshot.experiment.command_line import has_sweep_mode, open_hydra, parse_flags
from fewshot.experiment.config import check_groups, given_overrides, key_names
from fewshot.experiment.messages import MISTAKES, format_error, print_error
from fewshot.experiment.overrides import check_overrides
from fewshot.experiment.parse import parse_overrides
from fewshot.experiment.paths import expand_configuration, expand_home
from fewshot.experiment.recipes import complete
from fewshot.experiment.sweeps import (
    check_launcher,
    check_search,
    exit_with_parent,
    objective,
    only_run,
    own_outputs,
    print_sweep_summary,
    split_sweeps,
    sweep_status_dir,
    write_status,
)

T = TypeVar("T")
NAMED_OUTPUTS = ("predict", "bench", "table", "report", "prepare")  # tools whose files a person names
ASCII = {"±": "+-", "×": "x", "…": "...", "–": "-", "—": "-"}  # for a terminal that shows only ASCII


def main(function: Callable[[DictConfig], list[Path] | None], config: str) -> None:
    """Run a tool under Hydra: compose `conf/<config>.yaml` with the command line, then call `function`.

    A mistake in the command line or the input is one line on stderr and exit code 1. In a sweep a failed run does
    not end the others, in whatever process or machine a launcher puts it. A sweep of trainings ends with the table of
    the records that its runs left, and any sweep with what failed.

    Args:
        function: returns the records that it wrote, if any; a search goes by the first.
    """
    sys.argv[1:] = map(expand_home, sys.argv[1:])
    argv, process = sys.argv, os.getpid()
    remedy = "the same command runs what is missing"  # of a sweep that ended early
    status: Path | None = None  # the folder in which the runs of a sweep leave what became of them

    def guarded(cfg: DictConfig) -> float | None:
        if os.getpid() != process:
            _init_worker(argv, process)
        tune_malloc()
        records, score, failure, everywhere = [], None, None, True  # whether every process of torchrun fails likewise
        try:
            code()  # as records will name it
            if cfg.get("sweeps"):
                advice = "add -m" if status is None else "give each experiment a command of its own"
                raise FewshotError(f"sweeps: this configuration is of several sweeps; {advice}")
            expand_configuration(cfg)
            check_groups(cfg)
            if (recipe := complete(cfg, given_overrides())) and is_rank_zero():
                print(recipe, flush=True)
            if status:
                check_search(OmegaConf.select(cfg, "train.validate_every") != 0)
            everywhere = False
            with own_outputs(cfg) if status and config in NAMED_OUTPUTS else nullcontext():
                records = function(cfg) or []
            score = objective(records[0]) if status and records else None
            if status and records:
                check_search(score is not None)
            sys.stdout.flush()
        except RankZeroFailed:
            failure, everywhere = "process 0 failed", True
        except Exception as error:
            if isinstance(error, BrokenPipeError):
                _end_if_unread()
            failure, everywhere = format_error(error), everywhere or fails_everywhere(error)
            if os.environ.get("HYDRA_FULL_ERROR"):
                traceback.print_exc()
            if isinstance(error, MISTAKES) or out_of_memory(error) or error_location(error):
                if is_rank_zero() or not everywhere:
                    print_error(failure)
            elif not os.environ.get("HYDRA_FULL_ERROR"):
                traceback.print_exc()
        if status:
            write_status(status, records, failure)
        if failure and not (status and everywhere):  # where the others wait in this run, no sweep can go on
            sys.exit(1)
        return score

    replace_unprintable()
    try:
        if not CONF.is_dir():
            raise FewshotError(f"{CONF}: not there; run the tools from a clone, installed with `pip install -e .`")
        _check_clone()
        flags = parse_flags(argv[1:])
        version.setbase("1.3")
        GlobalHydra.instance().clear()
        hydra = _one_line(lambda: open_hydra(flags, config))
        config = flags.config_name or config
        if flags.shell_completion:
            _one_line(lambda: hydra.shell_completion(config, flags.overrides))
            return
        runs = not (flags.cfg or flags.info or flags.help or flags.hydra_help)
        sweep = runs and (flags.multirun or has_sweep_mode(flags, hydra, config))
        overrides = parse_overrides(flags.overrides, hydra, sweep)
        lines = [override.input_line or "" for override in overrides]
        if not flags.hydra_help:
            check_overrides(overrides, config, hydra, sweep)
        if not runs:
            flags.overrides = lines
            _one_line(lambda: _show(hydra, config, flags, overrides))
        elif not sweep:
            _one_line(lambda: hydra.run(config, guarded, [*lines, "hydra.mode=RUN"]))
        else:
            mode = ["hydra.mode=MULTIRUN"]
            if not is_rank_zero():
                mode.append("hydra/hydra_logging=none")  # one process names the jobs
            cfg = _one_line(lambda: hydra.compose_config(config, [*lines, *mode], RunMode.MULTIRUN))
            check_launcher(cfg)
            if cfg.get("force"):
                remedy = "with force=true the same command does all of it again"
            parts = split_sweeps(cfg.get("sweeps") or [], overrides)
            with (
                sweep_status_dir(Path(cfg.hydra.sweep.dir), [Path(argv[0]).name, *argv[1:]]) as folder,
                process_group(),
            ):
                completed = True
                for number, part in enumerate(parts):
                    status = folder / f"{number:03d}"
                    completed &= _run_sweep(lambda part=part: hydra.multirun(config, guarded, [*part, *mode]), remedy)
                if is_rank_zero() and not (print_sweep_summary(folder) and completed):
                    sys.exit(1)
    except FewshotError as error:
        if is_rank_zero():  # every process of torchrun finds the same mistake
            print_error(str(error))
        sys.exit(1)
    except KeyboardInterrupt as error:
        remedy = remedy if status else str(error)
        if is_rank_zero():
            print(f"\ninterrupted{remedy and f': {remedy}'}", file=sys.stderr)
        sys.exit(130)
    finally:
        GlobalHydra.instance().clear()


def _check_clone() -> None:
    """Raises FewshotError if a clone's tool has imported the package of another clone, installed in its place."""
    script = Path(getattr(sys.modules["__main__"], "__file__", None) or "").resolve()
    other, own = Path(__file__).resolve().parents[2], script.parent.parent
    if script.parent.name == "tools" and (own / "fewshot").is_dir() and own != other and (other / "tools").is_dir():
        here = shlex.quote(str(own))
        raise FewshotError(f"{script}: {other} is installed, and would run; set PYTHONPATH={here} to run this clone")


def _one_line(step: Callable[[], T]) -> T:
    """The result of a step of Hydra. What it raises becomes a FewshotError of one line."""
    try:
        return step()
    except FewshotError:
        raise
    except Exception as error:
        if isinstance(error, BrokenPipeError):
            _end_if_unread()
        if os.environ.get("HYDRA_FULL_ERROR"):
            traceback.print_exc()
        raise FewshotError(format_error(error)) from error


def _end_if_unread() -> None:
    """End without a word where nobody reads stdout any more, as in `| head`; another pipe may have broken instead."""
    try:
        print(flush=True)  # what failed to be written is not written again
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is left to flush goes nowhere
        sys.exit(1)


def _show(hydra: Hydra, config: str, flags: argparse.Namespace, overrides: list[Override]) -> None:
    """Print what `--help`, `--hydra-help`, `--info` or `--cfg` asks for."""
    lines = flags.overrides
    if flags.hydra_help:
        hydra.hydra_help(config, get_args_parser(), flags)
        return
    if flags.info:
        hydra.show_info(flags.info, config, lines)
        return
    cfg = hydra.compose_config(config, lines, RunMode.RUN)
    if flags.cfg and (resumed := [each for each in overrides if each.key_or_group == "resume" and each.value()]):
        raise FewshotError(f"{resumed[0].input_line}: the run has its own configuration; see config.yaml in its folder")
    if flags.cfg and cfg.get("sweeps"):
        lines = [*only_run(cfg.sweeps, overrides), "hydra.mode=RUN"]
        cfg = hydra.compose_config(config, lines, RunMode.RUN)
    HydraConfig.instance().set_config(cfg)
    OmegaConf.set_readonly(cfg.hydra, None)
    complete(cfg, lines)
    if flags.help:
        cfg.hydra.help.header = f"{(sys.modules['__main__'].__doc__ or config).strip()}\n"
        settings = hydra.get_sanitized_cfg(cfg.copy(), "job")
        text = hydra.get_help(cfg.hydra.help, settings, get_args_parser(), flags.resolve)
        print(text.replace("Choose with group=option:\n\n", ""), flush=True)  # a tool without groups
        return
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
    print(OmegaConf.to_yaml(shown), end="", flush=True)


def replace_unprintable() -> None:
    """Let stdout and stderr replace characters that their encoding lacks, instead of failing."""
    codecs.register_error("replace_unprintable", _replaced)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace_unprintable")


def _replaced(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    characters = error.object[error.start : error.end]
    return "".join(ASCII.get(each, ascii(each)[1:-1]) for each in characters), error.end


def _init_worker(argv: list[str], process: int) -> None:
    """Set up a launcher's worker: restore argv, disable progress bars, exit with the parent `process`."""
    sys.argv = argv  # records name the command
    replace_unprintable()
    os.environ["TTY_COMPATIBLE"] = "0"  # no progress bars: those of several processes would overwrite each other
    if os.getppid() == process:
        exit_with_parent(process)
        never_hold_interrupt()


def _run_sweep(sweep: Callable[[], Any], remedy: str) -> bool:
    """Let Hydra run a sweep. Returns False, after a line on stderr, if the launcher or the search failed."""
    try:
        sweep()
    except Exception as error:
        if os.environ.get("HYDRA_FULL_ERROR"):
            traceback.print_exc()
        if is_rank_zero():
            print_error(f"the sweep ended early: {format_error(error)}; {remedy}")
        return False
    return True
