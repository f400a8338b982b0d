"""Records as a pandas DataFrame, for a person's own tables and statistics."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from fewshot.report.records import read_records

if TYPE_CHECKING:
    import pandas as pd


def read_runs(folder: str | Path) -> pd.DataFrame:
    """Every record below a folder, a row each, in the order of their paths.

    The tools leave a record of each test; `fewshot.train` and `fewshot.evaluate` leave none.

    The columns are the fields of `record.json` by their dotted names, such as `algorithm`, `protocol.setting` and
    `test.accuracy` (a fraction), and `folder`, that of the record. `read_records` gives the same as dictionaries.

    Raises:
        FewshotError: there is no record, or one cannot be read.
    """
    import pandas as pd  # here, since its import takes long

    return pd.json_normalize(read_records(folder))
