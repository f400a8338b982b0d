"""Turn what lies on a disk into what is trained on: `python tools/prepare.py dataset=mini source=<folder or archive>`.

Recognises the layout, converts once, and shows what came out: classes, images, fingerprints, and a picture of a few.
`check=true` reads every byte of it again; `force=true` converts anew; `dataset.reader.download=true` fetches first.
"""

from pathlib import Path

from omegaconf import DictConfig
from tabulate import tabulate

from fewshot.core.errors import FewshotError
from fewshot.data.contact_sheet import contact_sheet
from fewshot.data.sources.convert import check
from fewshot.experiment.build import instantiate_node
from fewshot.experiment.cli import main
from fewshot.experiment.config import resolved


def prepare(cfg: DictConfig) -> None:
    name, reader = cfg.dataset.name, cfg.dataset.reader
    if cfg.source is not None:
        if "root" not in list(reader):  # a root without a value yet is not `in reader`
            raise FewshotError(
                f"source={cfg.source}: {name} are made, not read; say of what it is: dataset=folder, or another"
            )
        if not Path(cfg.source).exists() and not reader.get("download"):
            raise FewshotError(f"source={cfg.source}: no such file or folder; name one that is there")
        reader.root = cfg.source
    resolved(cfg)
    cache = Path(reader.cache)
    before = {path.name for path in cache.iterdir()} if cache.is_dir() else set()
    banks = instantiate_node(reader, overwrite=cfg.force)
    folder = next(iter(banks.values())).folder
    about = next(iter(banks.values())).about
    if cfg.source is not None and not cfg.force and folder.name in before:
        print(f"{cfg.source} was not read: this was there already; force=true converts {cfg.source} in its place")
    if folder.name in before and not cfg.force:
        for note in about.get("notes", []):
            print(f"{name}: {note}")
    print(f"{name}, from {about.get('layout', about.get('source', reader._target_))}: {folder}")
    rows = [
        (split, len(bank.names), len(bank.examples), f"{int(bank.sizes.min())} ({bank.names[bank.sizes.argmin()]})",
         "x".join(map(str, bank.shape)), bank.fingerprint[:12])
        for split, bank in banks.items()
    ]  # fmt: skip
    print(tabulate(rows, ("split", "classes", "images", "smallest class", "shape", "fingerprint"), intfmt=","))
    if about.get("shared_images"):
        print(f"images that two splits share: {about['shared_images']:,}")
    if cfg.check:
        print(f"checked: every byte is as it was prepared, {check(folder):,} images in two splits")
    sheet = Path(cfg.sheet) if cfg.sheet else folder.with_name(f"{folder.name}.png")
    contact_sheet(banks, sheet)
    print(f"a few images of it: {sheet}")


if __name__ == "__main__":
    main(prepare, "prepare")
