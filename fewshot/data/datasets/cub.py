"""CUB-200-2011: 11,788 images of 200 species of birds (Wah et al. 2011, The Caltech-UCSD Birds-200-2011 Dataset).

The split is that of Chen et al. 2019 (A Closer Look at Few-shot Classification), 100/50/50 species by the class's index
modulo 2 and 4; learn2learn's split is another one, 140/30/30. Class names are "001.Black_footed_Albatross" and so on.
Images are taken whole, without the bounding boxes. The layouts are CUB_200_2011.tgz (or .tar, or .zip), the folder that
it unpacks to, and class folders at any depth.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from fewshot.core.errors import FewshotError
from fewshot.data.sources.archives import Files, check_archive
from fewshot.data.sources.download import fetch
from fewshot.data.sources.images import is_image
from fewshot.data.sources.parts import SplitSource
from fewshot.data.sources.published import PARTLY, Found, PublishedDataset, Splits, check_classes, find_class_folders

NAME = "CUB_200_2011"
# As in learn2learn 0.2.0, learn2learn/vision/datasets/cu_birds200.py.
URL = "https://zenodo.org/record/8000562/files/CUB_200_2011.tgz"
PAGE = "https://data.caltech.edu/records/65de6-vp158"  # where the authors publish it
IMAGES = 11_788


def _find(files: Files, splits: Splits) -> Found | str:
    # Masks, which are published apart and named like the images, may have been unpacked beside them.
    images = replace(files, names=[name for name in files.names if "segmentations" not in name.split("/")])
    return find_class_folders(images, splits) or ""


def _check(where: str, parts: Mapping[str, SplitSource], splits: Splits) -> None:
    check_classes(where, parts, splits)
    total = sum(len(part.labels) for part in parts.values())
    if total != IMAGES:
        raise FewshotError(f"{where}: {total} images, not {IMAGES}; {PARTLY}")


def _download(root: Path) -> None:
    fetch(URL, root / f"{NAME}.tgz", check=check_archive)


read_cub = PublishedDataset(
    name="cub",
    title="CUB-200-2011",
    source="CUB-200-2011 (Wah et al. 2011), whole images",
    split_source="Chen et al. 2019: classes by index modulo 2 and 4, 100/50/50",
    is_wanted=is_image,
    find=_find,
    check=_check,
    download=_download,
    remedy=f"put {NAME}.tgz from {PAGE} there, or the folder {NAME} that it unpacks to",
    archive=NAME,
).read
