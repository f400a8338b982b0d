"""Protocols, `protocol` of a configuration: everything about a test that makes two scores comparable."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from fewshot.core.checks import check_choice, check_number
from fewshot.core.errors import FewshotError
from fewshot.core.paths import CONF
from fewshot.engine.evaluate import SETTINGS
from fewshot.experiment.config import config_hash, resolved
from fewshot.experiment.rows import apply_protocols, set_values
from fewshot.report.records import Record
from fewshot.tasks.sampler import ROTATIONS

LONGEST = 120  # letters of a folder's name
RECORDED = ("name", "split", "query", "episodes", "episode_seed", "rotations")  # as in a record's `protocol`


@dataclass(frozen=True)
class Protocol:
    """How to test a trained run, as conf/protocol says it; the values stand there."""

    name: str  # that of its file, and the values that a person changed: `common, query=5`
    split: str
    query: int  # Q per class; in regression points
    episodes: int
    episode_seed: int
    rotations: str  # of test classes, see `Sampler`
    setting: str  # both | transductive | inductive
    steps: int | list[int] | None  # adaptation steps: one number, several, or None, the learner's own

    @property
    def key(self) -> str:
        """Its key in the configuration: `protocol.common`."""
        return f"protocol.{self.name.split(',')[0]}"

    @property
    def slug(self) -> str:
        """The name as a part of a folder's name: `common-query=5`; of a person's own with a hash of the values."""
        slug = self.name.translate(str.maketrans({",": "-", "[": None, "]": None, " ": None}))
        if len(slug) > LONGEST:
            slug = f"{slug[:LONGEST]}-{hashlib.sha256(slug.encode()).hexdigest()[:8]}"
        is_own = not _shipped_file(self.name.split(",")[0]).is_file()  # and may say something else tomorrow
        return f"{slug}-{config_hash(asdict(replace(self, setting='')))[:8]}" if is_own else slug

    def is_of(self, record: Record) -> bool:
        """Whether a record is of a test by this very protocol, in whatever setting."""
        tested = record["protocol"]
        return all(tested.get(key) == getattr(self, key) for key in RECORDED)

    def settings(self, queries_independent: bool) -> tuple[str, ...]:
        """The settings to test in: the inductive one last, and alone where no query changes another's prediction."""
        if queries_independent:
            return SETTINGS[-1:]
        return SETTINGS if self.setting == "both" else (self.setting,)


def read_protocols(cfg: DictConfig) -> list[Protocol]:
    """The protocols of a configuration.

    Raises:
        FewshotError: a value is of the wrong kind, or a key is missing or unknown.
    """
    return [_read(name, node, cfg) for name, node in resolved(cfg)["protocol"].items()]


def _read(name: str, node: Any, cfg: DictConfig) -> Protocol:
    keys = [field.name for field in fields(Protocol) if field.name != "name"]
    if not isinstance(node, dict) or set(node) != set(keys):
        raise FewshotError(f"protocol.{name}: needs the keys {', '.join(keys)} and no others; see conf/protocol")
    for key, least in (("query", 1), ("episodes", 1), ("episode_seed", 0)):
        check_number(f"protocol.{name}.{key}", node[key], int, least)
    if not isinstance(node["split"], str):
        raise FewshotError(f"protocol.{name}.split={node['split']}: must be one split: train, val or test")
    check_choice(f"protocol.{name}.setting", node["setting"], ("both", *SETTINGS))
    check_choice(f"protocol.{name}.rotations", node["rotations"], ROTATIONS)
    if isinstance(node["steps"], list) and all(type(count) is int for count in node["steps"]):
        steps = sorted(node["steps"])
        node = {**node, "steps": steps[0] if len(steps) == 1 else steps}  # one test has one name
    standard = _standard(name, cfg) if _shipped_file(name).is_file() else node
    changed = [key for key in keys if key != "setting" and (key not in standard or node[key] != standard[key])]
    words = [f"{key}={str(node[key]).replace(' ', '')}" for key in changed]
    return Protocol(name=", ".join([name, *words]), **node)


def keep_changed_values(test: DictConfig, trained: DictConfig, overrides: Iterable[str]) -> None:
    """Let the protocols of a later test have the values that a person changed when the run was trained and tested.

    Args:
        test: the configuration of the test, whose protocols are filled in.
        trained: the configuration that the run was trained with.
        overrides: of the later test; what they set stays.
    """
    overrides, saved = list(overrides), resolved(trained)["protocol"]
    for name in test.protocol:
        if name in saved and _shipped_file(name).is_file() and (standard := _standard(name, trained)):
            changed = {key: value for key, value in saved[name].items() if value != standard.get(key)}
            set_values(test, {f"protocol.{name}.{key}": value for key, value in changed.items()}, overrides)


def _shipped_file(name: str) -> Path:
    return CONF / "protocol" / f"{name}.yaml"


def _standard(name: str, cfg: DictConfig) -> dict[str, Any]:
    """The values of a protocol in conf/protocol for this task; empty if it has no such test."""
    plain = cfg.copy()
    OmegaConf.update(plain, "protocol", {name: OmegaConf.load(_shipped_file(name))}, merge=False)
    try:
        apply_protocols(plain, [])
    except FewshotError:
        return {}
    return resolved(plain)["protocol"][name]
