"""Convert a dataset on disk to banks for training: `python tools/prepare.py dataset=mini source=<folder or archive>`.

It recognises the layout, converts once, and prints classes, images and fingerprints, with a picture of some images.
`check=true` reads every byte again, `force=true` converts anew, `dataset.reader.download=true` fetches the data first.
"""

import sys
from pathlib import Path

from omegaconf import DictConfig

from fewshot.core.errors import FewshotError
from fewshot.core.files import check_output
from fewshot.experiment.cli import main
from fewshot.experiment.config import resolved

SHEETS = (".png", ".jpg", ".jpeg", ".webp", ".pdf", ".svg")


def prepare(cfg: DictConfig) -> None:
    from tabulate import tabulate  # here, since these import torch and more: mistakes are answered before

    from fewshot.data.sources.convert import check_banks
    from fewshot.experiment.make_learner import instantiate_node

    name, reader = cfg.dataset.name, cfg.dataset.reader
    if cfg.source is not None:
        if "root" not in list(reader):  # `in reader` is false for a root without a value
            raise FewshotError(
                f"source={cfg.source}: {name} are drawn, not read; name the source's dataset, such as dataset=folder"
            )
        if not Path(cfg.source).exists() and not reader.get("download"):
            raise FewshotError(f"source={cfg.source}: no such file or folder; name one that is there")
        reader.root = cfg.source
    if cfg.sheet is not None:
        check_output("sheet", Path(cfg.sheet))
        if Path(cfg.sheet).suffix.lower() not in SHEETS:
            raise FewshotError(f"sheet={cfg.sheet}: name a picture that ends in {', '.join(SHEETS)}")
    resolved(cfg)
    cache = Path(reader.cache)
    before = {path.name for path in cache.iterdir()} if cache.is_dir() else set()
    banks = instantiate_node(reader, overwrite=cfg.force)
    folder = next(iter(banks.values())).folder
    metadata = next(iter(banks.values())).metadata
    if cfg.source is not None and not cfg.force and folder.name in before:
        note = "was not read, since these banks were there already; force=true converts it in their place"
        if reader._target_ == "fewshot.read_folder":  # which compares names, sizes and times of the images
            note = "is as it was when these banks were made, by its images; force=true converts it anew"
        print(f"note: {cfg.source} {note}", file=sys.stderr)
    if folder.name in before and not cfg.force:
        for note in metadata.get("notes", []):
            print(f"{name}: {note}")
    print(f"{name}, from {metadata.get('layout', metadata.get('source', reader._target_))}: {folder}")
    rows = [
        (split, len(bank.names), len(bank.examples), f"{int(bank.sizes.min())} ({bank.names[bank.sizes.argmin()]})",
         "x".join(map(str, bank.shape)), bank.fingerprint[:12])
        for split, bank in banks.items()
    ]  # fmt: skip
    print(tabulate(rows, ("split", "classes", "images", "smallest class", "shape", "fingerprint"), intfmt=","))
    if metadata.get("shared_images"):
        print(f"images that two splits share: {metadata['shared_images']:,}")
    if cfg.check:
        print(f"checked: every byte is as it was prepared, {check_banks(folder):,} images in two splits")
    if any(len(bank.shape) != 3 or bank.shape[0] not in (1, 3) for bank in banks.values()):
        print("no picture of them: they are no images of 1 or 3 channels")
        return
    from fewshot.data.contact_sheet import contact_sheet  # imports matplotlib

    sheet = Path(cfg.sheet) if cfg.sheet else folder.with_name(f"{folder.name}.png")
    contact_sheet(banks, sheet)
    print(f"some of its images: {sheet}")


if __name__ == "__main__":
    main(prepare, "prepare")
