"""Published figures, `results/published.csv`: what others report, each with its source and caveats.

A row holds one figure as printed: `method`, `dataset` and `backbone` by their names here, `label` what the source calls
the method, `value` and `interval` in per cent (accuracy) or plain (mse), `interval_kind` what the interval is, or
`none`. What the source does not say is `unknown`. A caveat that changes how to read the figure is a key of CAVEATS.
"""

from __future__ import annotations

import csv
from pathlib import Path

from fewshot.core.errors import FewshotError, one_line
from fewshot.core.paths import find_own
from fewshot.report.records import METRICS, Record

PUBLISHED = find_own("results/published.csv")
UNKNOWN = "unknown"
COUNTS = ("shot", "way", "query", "episodes", "input_size", "adaptation_steps")  # whole numbers where they are known

MMFEWSHOT = ("MAML", "ProtoNet", "MatchingNet", "Baseline", "Baseline++")  # methods whose README has figures here
# What a table calls each source.
SOURCES = {
    "ANIL paper, Table 2": "ANIL paper",
    "BOIL paper, as cited by LibFewShot": "BOIL paper",
    "Chen et al. 2019, wyharveychen/CloserLookFewShot, record of figures": "Chen et al.",
    "LEO paper, Table 1, after Liu et al. 2018": "LEO paper, Table 1",
    "LEO paper, Table 2": "LEO paper",
    "LEO paper, section 4.3": "LEO paper, 4.3",
    "MAML paper, Table 1": "MAML paper",
    "MAML paper, Table 2": "MAML paper",
    "MAML++ paper, as cited by T-NAS": "MAML++ in T-NAS",
    "MAML++ paper, as listed by Papers with Code": "MAML++ in Papers with Code",
    "Matching Networks paper, as cited by the ProtoNet paper": "Matching Nets paper",
    "Matching Networks paper, fine-tuned, as cited by the ProtoNet paper": "Matching Nets paper, fine-tuned",
    "Meta-LSTM paper, as cited by the ProtoNet paper": "Meta-LSTM paper",
    "Meta-LSTM paper, with FCE, as cited by the ProtoNet paper": "Meta-LSTM, full context",
    "ProtoNet paper, Table 1": "ProtoNet paper",
    "ProtoNet paper, Table 2": "ProtoNet paper",
    "R2-D2 paper, as cited by LibFewShot": "R2-D2 paper",
    "Reptile paper": "Reptile paper",
    "Reptile paper, final version": "Reptile paper",
    "Reptile paper, first version": "Reptile paper, v1",
    "SimpleShot paper, as cited by a reproduction": "SimpleShot paper",
    "deepmind/leo README, released code": "LEO's code",
    "dragen1860/MAML-Pytorch README": "dragen1860",
    "dragen1860/Reptile-Pytorch README": "dragen1860",
    "gaoyuankidult/MAML-tf README": "MAML-tf",
    "gaoyuankidult/MAML-tf, its command run for 58,519 iterations": "MAML-tf, run again",
    "learnables/learn2learn, vision examples' README": "learn2learn",
    **{f"open-mmlab/mmfewshot, {method} README": "mmfewshot" for method in MMFEWSHOT},
}

CAVEATS = {
    "copies_disagree": "two second-hand copies of this figure disagree: both stand here",
    "ensemble": "the released code averages the logits of the five best epochs at test",
    "evaluation_size_unstated": "number of test episodes and settings of this figure are not stated",
    "few_test_tasks": "the program tests on 100 tasks unless told otherwise: a noisy figure",
    "first_order_called_maml": "called MAML there; the code takes first-order gradients, so it stands here as FOMAML",
    "first_order_called_reptile": (
        "called Reptile there; the code applies the query gradient at the adapted weights, so it stands here as FOMAML"
    ),
    "inner_lr_disputed": "inner learning rate 0.01 in the paper, 0.001 by default in the released program",
    "interval_called_std": "the column is headed std there; it is the half width 1.96 sd / sqrt(episodes)",
    "interval_implausible": "an interval of this size is not plausible for so few tasks; given as printed",
    "interval_unexplained": "what the ± means is not stated",
    "multi_view": "features averaged over several crops and mirrors of an image: not those of the other LEO rows",
    "protocol_from_code": "queries, episodes and steps as in the released code, or as the paper's appendix has them",
    "rotated_tests": "test characters are rotated, which makes tasks easier, of MAML and its kin by 0.4 to 2.1 points",
    "rotated_as_classes": "unseen alphabets; each character is four classes, one for each rotation by 90 degrees",
    "second_hand": "from later papers and summaries that cite it, not from the source itself",
    "second_hand_one_copy": "from a single later copy, not from the source itself",
    "stopped_early": "58,519 of the 70,000 iterations of the published command, run by us; no log of it is kept",
    "trained_10_shot": "trained with 10 shots and one step, whatever the shots and steps of the test",
    "training_classes_unstated": "it is not stated whether the validation classes were trained on too",
    # LEO's paper: its author in deepmind/leo, issue 14. ProtoNet on Omniglot: its program.
    "trained_on_val": "trained on the validation classes too",
    "trained_5_shot": "meta-trained 5-way 5-shot with 2 inner steps; selection and test are 1-shot",
    "tested_1_shot_only": "meta-trained 5-way 5-shot; selection and test are 1-shot",
    "selected_at_1_shot": "tested with the checkpoint that was selected at 1 shot",
    "trained_on_test_split": "the program trains on the test split: contaminated, not a figure to compare with",
    "watched_test_split": "the test split was watched during training, 100 episodes at a time",
}

TRAINING_SHOT = {"trained_5_shot": 5, "tested_1_shot_only": 5, "trained_10_shot": 10}  # by caveat
# The functions that published errors are for, as the records of runs describe them; other functions do not compare.
VIEWS = {"sinusoid": "sine: amplitude 0.1 to 5, phase 0 to 3.142; x -5 to 5; noise 0"}


def read_published(path: Path = PUBLISHED) -> list[Record]:
    """The published figures in the form of records.

    The field `published` holds the row of the file: numbers as numbers, the value also as `printed`, and `caveats` as a
    list of keys.

    Raises:
        FewshotError: a row does not have the form that this module's docstring describes.
    """
    records = []
    with path.open(encoding="utf-8", newline="") as file:
        for line, row in enumerate(csv.DictReader(file), start=2):
            try:
                records.append(_parse(row))
            except (KeyError, ValueError) as error:
                raise FewshotError(f"{path} line {line}: {one_line(error)}") from error
    return records


def _parse(row: dict[str, str]) -> Record:
    if None in row or None in row.values():
        raise ValueError("it has more or fewer fields than the first line")
    if row["metric"] not in METRICS:
        raise ValueError(f"metric {row['metric']!r} is none of {', '.join(METRICS)}")
    caveats = row["caveats"].split(";") if row["caveats"] else []
    if unknown := [caveat for caveat in caveats if caveat not in CAVEATS]:
        raise ValueError(f"no footnote for the caveat {unknown[0]!r}; there are {', '.join(CAVEATS)}")
    figure = {
        **row,
        **{field: int(row[field]) for field in COUNTS if row[field].isdecimal()},
        "printed": f"{row['value']} ± {row['interval']}" if row["interval"] else row["value"],
        "value": float(row["value"]),
        "interval": float(row["interval"]) if row["interval"] else None,
        "caveats": caveats,
        "short": SOURCES.get(row["source"], row["source"]),
    }
    stated = {key: None if value == UNKNOWN else value for key, value in figure.items()}
    task = {"dataset": row["dataset"], "way": figure["way"] or 1, "shot": figure["shot"]}  # a regression has way 1
    unit = 100 if row["metric"] == "accuracy" else 1
    interval = figure["interval"]
    return {
        **task,
        "shot": None,
        "train": {"shot": next((TRAINING_SHOT[caveat] for caveat in caveats if caveat in TRAINING_SHOT), None)},
        "algorithm": row["method"],
        "backbone": stated["backbone"],
        "seed": None,
        "protocol": {
            **task,
            **{key: stated[key] for key in ("query", "episodes", "setting", "adaptation_steps")},
            **({"view": VIEWS[row["dataset"]]} if row["dataset"] in VIEWS else {}),
        },
        "test": {
            row["metric"]: figure["value"] / unit,
            "ci95": None if interval is None else interval / unit,
            "episodes": stated["episodes"],
        },
        "input_size": stated["input_size"],
        "folder": row["source"],
        "published": figure,
    }
