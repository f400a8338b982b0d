"""The way from a command line to a function, shared by the tools: one line for a person's mistake, no traceback."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hydra
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from fewshot.config import CONF, key_names, near, of_functions
from fewshot.device import keep_freed_memory, out_of_memory
from fewshot.errors import FewshotError, one_line
from fewshot.paths import expand_configuration, expand_home
from fewshot.sweeps import check_plugin, end_of_sweep, end_with, notes_of_sweep, objective, write_note

MISTAKES = (FewshotError, OmegaConfBaseException, OSError)  # of a person or a machine


def main(function: Callable[[DictConfig], list[Path] | None], config: str) -> None:
    """Run a tool under Hydra: compose `conf/<config>.yaml` with the command line, then call `function`.

    A mistake in the command line or the input is one line on stderr and exit code 1. In a sweep a failed run does
    not end the others, in whatever process or machine a launcher puts it; the sweep ends with the table of the
    records that its runs left, and with what failed.

    Args:
        function: returns the records that it wrote, the one that a search goes by first, where it wrote any.
    """
    sys.argv[1:] = map(expand_home, sys.argv[1:])
    argv, process = sys.argv, os.getpid()
    words = [word for word in argv[1:] if not word.startswith("-")]
    sweep = bool({"-m", "--multirun"} & set(argv[1:]))
    notes: Path | None = None

    def guarded(cfg: DictConfig) -> float | None:
        if os.getpid() != process:
            _settle(argv, process)
        keep_freed_memory()
        records, failure = [], None
        try:
            expand_configuration(cfg)
            records = function(cfg) or []
        except Exception as error:
            failure = said(error)
            if isinstance(error, MISTAKES) or out_of_memory(error):
                print(f"error: {failure}", file=sys.stderr)
            elif notes is None:
                raise
            else:
                traceback.print_exc()
        if notes:
            write_note(notes, records, failure)
        elif failure:
            sys.exit(1)
        return objective(records[0]) if notes and records else None

    run = hydra.main(config_path=str(CONF), config_name=config, version_base="1.3")(guarded)
    try:
        if not CONF.is_dir():
            raise FewshotError(f"{CONF}: not there; run the tools from a clone, installed with `pip install -e .`")
        if sweep and int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise FewshotError(
                "-m: torchrun shares one run among processes; start a sweep without it, or run by run with it"
            )
        place = check_overrides(words, config, sweep)
        if not sweep:
            run()
            return
        with notes_of_sweep(place, words) as notes:
            launched = _launched(run)
            if not (end_of_sweep(notes) and launched):
                sys.exit(1)
    except FewshotError as error:
        if os.environ.get("RANK", "0") == "0":  # all processes of torchrun find the same mistake
            print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("interrupted: the same command, or resume=<run folder>, continues the run", file=sys.stderr)
        sys.exit(130)


def _settle(argv: list[str], process: int) -> None:
    """Make a process of a launcher one of the sweep that `process` started with `argv`."""
    sys.argv = argv  # for the record
    os.environ["TTY_COMPATIBLE"] = "0"  # no progress bars: those of several processes would overwrite each other
    if os.getppid() == process:
        end_with(process)


def _launched(run: Callable[[], None]) -> bool:
    """Let Hydra launch a sweep; False, and a line, where the launcher or the search broke down."""
    before = os.environ.get("HYDRA_FULL_ERROR")
    os.environ["HYDRA_FULL_ERROR"] = "1"  # what breaks is raised, rather than printed at length
    try:
        run()
    except Exception as error:
        if before:
            traceback.print_exc()
        print(f"error: the sweep ended early: {said(error)}; the same command runs what is missing", file=sys.stderr)
        return False
    finally:
        if before is None:
            del os.environ["HYDRA_FULL_ERROR"]
    return True


def said(error: Exception) -> str:
    """An error in one line."""
    if full := out_of_memory(error):
        reason = next((line for line in str(full).splitlines() if line), type(full).__name__)
        return f"out of memory: take a smaller network, fewer shots or queries, or a larger machine ({reason})"
    if isinstance(error, (*MISTAKES, HydraException)):
        return str(error).strip().splitlines()[0]
    return f"{type(error).__name__}: {one_line(error)}"


def check_overrides(overrides: list[str], config: str, sweep: bool) -> Path:
    """Hold the command line against the configuration before Hydra does, to answer in one line with near names.

    Returns:
        The folder below which Hydra's sweep works.

    Raises:
        FewshotError: an override that is no override, an unknown key, option or type of value, or a plugin that is
            not installed.
    """
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        try:
            parsed = OverridesParser.create().parse_overrides(overrides)
        except HydraException as error:
            raise FewshotError(f"command line: {str(error).splitlines()[0]}; write key=value") from error
        parsed.sort(key=lambda override: not _options(override.key_or_group))  # what brings keys before the keys
        singles = []
        for override in parsed:
            if override.is_sweep_override() and not sweep:
                raise FewshotError(f"{override.input_line}: several values are a sweep; add -m")
            options = _options(override.key_or_group)
            values = _values(override)
            for value in values:
                if options and value not in options:
                    raise FewshotError(
                        f"{override.key_or_group}={value}: no such option{near(str(value), options)}; "
                        f"there are {', '.join(options)}"
                    )
                if override.key_or_group == "dataset" and config != "train" and _named_for_functions(str(value)):
                    raise FewshotError(
                        f"dataset={value}: functions are for tools/train.py alone; there is nothing of them to prepare"
                    )
                if override.key_or_group in ("hydra/launcher", "hydra/sweeper"):
                    if not sweep:
                        raise FewshotError(f"{override.input_line}: is for sweeps; add -m")
                    if "RANK" in os.environ:
                        raise FewshotError(f"{override.input_line}: not under torchrun, which shares out single runs")
                    check_plugin(override.key_or_group, str(value))
                elif not override.key_or_group.startswith("hydra"):
                    _compose(config, [*singles, f"{override.key_or_group}={value}"], override.key_or_group)
            if values and not override.key_or_group.startswith("hydra"):
                singles.append(f"{override.key_or_group}={values[0]}")
        fixed = [o.input_line or "" for o in parsed if not o.is_sweep_override()]
        place = _place_of_sweep(config, fixed) if sweep else Path()
    GlobalHydra.instance().clear()
    return place


def _values(override: Override) -> list[Any]:
    """What an override gives its key: one value, each of a sweep, or the ends of an interval."""
    if not override.is_sweep_override():
        return [override.get_value_element_as_str()]
    value = override.value()
    return [value.start, value.end] if isinstance(value, IntervalSweep) else list(override.sweep_string_iterator())


def _place_of_sweep(config: str, overrides: list[str]) -> Path:
    """Hydra composes a sweep once without the swept values; where that fails it says a thing no one can act on."""
    try:
        compose(config, [override for override in overrides if not override.startswith("hydra")])
    except HydraException as error:
        raise FewshotError(
            f"{str(error).splitlines()[0]} without what is swept; choose its group for the whole sweep, such as "
            "features=conv4"
        ) from error
    try:
        return Path(compose(config, overrides, return_hydra_config=True).hydra.sweep.dir)
    except HydraException as error:
        raise FewshotError(f"command line: {one_line(error)}") from error


def _options(group: str) -> list[str]:
    return sorted(path.stem for path in (CONF / group).glob("*.yaml")) if group.isidentifier() else []


def _named_for_functions(dataset: str) -> bool:
    """Whether the dataset of this name is one of functions; only their files say more than `dataset`."""
    said = OmegaConf.load(CONF / "dataset" / f"{dataset}.yaml")
    return isinstance(said, DictConfig) and "dataset" in said and of_functions(said.dataset)


def _compose(config: str, overrides: list[str], key: str) -> None:
    try:
        compose(config, overrides)
    except (HydraException, OmegaConfBaseException) as error:
        known = key_names(compose(config, overrides[:-1]))
        if key not in known:
            named = [name for name in known if name.endswith(f".{key}")]
            hint = f", did you mean {' or '.join(named[:3])}?" if named else near(key, known)
            raise FewshotError(f"{key}: no such key{hint}") from error
        if "'features/" in str(error) and any(
            o.startswith("dataset=") and _named_for_functions(o[8:]) for o in overrides
        ):
            raise FewshotError(
                f"{overrides[-1]}: features are of images; functions are learned by maml, fomaml, reptile and "
                "leo_regression"
            ) from error
        cause = error.__cause__ or error
        raise FewshotError(f"{overrides[-1]}: {str(cause).splitlines()[0]}") from error
