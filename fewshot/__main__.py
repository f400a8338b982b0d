"""The tools of an installed package: `fewshot train algorithm=maml` is `python tools/train.py algorithm=maml`."""

from __future__ import annotations

import runpy
import sys

from fewshot.core.checks import did_you_mean
from fewshot.core.paths import find_own

TOOLS = find_own("tools")


def main() -> None:
    """Run the tool that the first word of the command line names."""
    names = sorted(path.stem for path in TOOLS.glob("*.py"))
    if sys.argv[1:2] in (["-h"], ["--help"]):
        print(f"fewshot <{' | '.join(names)}> key=value ...\nfewshot <tool> --help shows its groups and keys.")
        return
    if len(sys.argv) < 2 or sys.argv[1] not in names:
        complaint = f"{sys.argv[1]}: no such tool{did_you_mean(sys.argv[1], names) or ';'} " if sys.argv[1:] else ""
        print(f"error: {complaint}name a tool: fewshot <{' | '.join(names)}> key=value ...", file=sys.stderr)
        sys.exit(2)
    tool = sys.argv.pop(1)
    sys.argv[0] = f"tools/{tool}.py"  # records name the command, and no place on this machine
    runpy.run_path(str(TOOLS / f"{tool}.py"), run_name="__main__")


if __name__ == "__main__":
    main()
