"""Episodes from a Bank: episode i is a pure function of (seed, split, i)."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch

from fewshot.core.checks import check_choice, check_number, check_seed
from fewshot.core.errors import FewshotError, TaskSizeError
from fewshot.core.random import draw_rows, fold_in, randint, sample_without_replacement, stream
from fewshot.data.bank import Bank
from fewshot.episodes import Episodes
from fewshot.tasks.transforms import ImageTransform

ROTATIONS = ("none", "per_class", "as_classes")
AS_STORED = ImageTransform()
LOWER = "lower shot or query"  # in a message, where others put their own keys
_CLASSES, _EXAMPLES, _ROTATIONS, _LEARNER, _VIEW = range(5)  # streams of one episode


@dataclass(frozen=True)
class EpisodeIndices:
    """The index lists of T episodes: all random draws, before any example is read."""

    classes: torch.Tensor  # [T, N] class of the bank
    rows: torch.Tensor  # [T, N, K+Q] row of the bank; the first K are the support set
    quarter_turns: torch.Tensor  # [T, N] rotation by 90 degrees times this, 0..3
    key: torch.Tensor  # [T] stream for the draws of the learner
    augment_keys: torch.Tensor | None  # [T, N, K+Q] stream of each image for random augmentation; None without

    def __getitem__(self, tasks: slice) -> EpisodeIndices:
        augment_keys = None if self.augment_keys is None else self.augment_keys[tasks]
        return EpisodeIndices(
            self.classes[tasks], self.rows[tasks], self.quarter_turns[tasks], self.key[tasks], augment_keys
        )


@dataclass(frozen=True)
class Sampler:
    """N-way K-shot episodes with Q queries per class.

    Args:
        seed: of all draws; another seed gives other episodes.
        rotations: turns whole classes by multiples of 90 degrees: `none`; `per_class` draws one rotation for each class
            of an episode (cbfinn/maml, where two rotations of one character never meet in an episode); `as_classes`
            takes the four rotations of a class as four classes, which may meet (openai/supervised-reptile).
        view: how the learner sees images, such as `ImageTransform(mean=..., std=...)`; they are in 0..1 without one.

    Raises:
        TaskSizeError: fewer classes than `way`, or a class with fewer than `shot + query` examples.
        FewshotError: a setting that does not fit the bank.
    """

    bank: Bank
    way: int
    shot: int
    query: int = 15
    seed: int = 0
    rotations: str = "none"
    view: ImageTransform = AS_STORED

    metric = "accuracy"

    def __post_init__(self) -> None:
        if not isinstance(self.bank, Bank):
            words = ": take one of its values" if isinstance(self.bank, Mapping) else ""
            raise FewshotError(f"Sampler: bank is a {type(self.bank).__name__}, and a Bank is wanted{words}")
        for name, least in (("way", 2), ("shot", 1), ("query", 0)):
            object.__setattr__(self, name, check_number(name, getattr(self, name), int, least))
        object.__setattr__(self, "seed", check_seed("seed", self.seed))
        check_choice("dataset.rotations", self.rotations, ROTATIONS)
        bank, where = self.bank, f"{self.bank.metadata.get('dataset', 'bank')}, split {self.bank.split}"
        shape = self.view.output_shape(bank.shape)
        if self.rotations != "none" and (len(shape) != 3 or shape[-1] != shape[-2]):
            raise FewshotError(f"{where}: rotations={self.rotations} takes square images; set rotations to none")
        if self.way > self._classes:
            raise TaskSizeError(f"{where}: way={self.way}, but there are only {self._classes} classes; lower way")
        self.view.check_range(f"{where}: ", bank.examples)
        smallest = int(bank.sizes.argmin())
        count = int(bank.sizes[smallest])
        if self.shot + self.query > count:
            # Tasks of unequal shots or queries would not fit into one batch.
            others = int((bank.sizes < self.shot + self.query).sum()) - 1
            raise TaskSizeError(
                f"{where}: shot={self.shot} plus query={self.query} is more than class {bank.names[smallest]} has "
                f"({count} examples){f', and than {others} others have' if others else ''}; all classes of a task have "
                f"as many of each: {LOWER}, or take the class out"
            )

    @property
    def source(self) -> Bank:
        """The bank."""
        return self.bank

    @property
    def device(self) -> torch.device:
        """The device on which episodes are drawn and gathered."""
        return self.bank.offsets.device

    @cached_property
    def largest_class(self) -> int:
        """Examples of the largest class; read once, since reading from a GPU waits for it."""
        return int(self.bank.sizes.max())

    @property
    def _classes(self) -> int:
        """Classes to draw from."""
        return len(self.bank.names) * (4 if self.rotations == "as_classes" else 1)

    def draw(self, first: int, count: int) -> EpisodeIndices:
        """The index lists of episodes first..first+count-1, on the bank's device."""
        device = self.device
        number = torch.arange(first, first + count, dtype=torch.int64, device=device)
        episode = fold_in(stream(self.seed, self.bank.split), number)  # [T]
        classes = sample_without_replacement(fold_in(episode, _CLASSES), self.way, self._classes)  # [T, N]
        quarter_turns = torch.zeros_like(classes)
        if self.rotations == "as_classes":
            classes, quarter_turns = classes // 4, classes % 4
        elif self.rotations == "per_class":
            way = torch.arange(self.way, device=device)
            quarter_turns = randint(fold_in(fold_in(episode, _ROTATIONS)[:, None], way), 4)
        rows = self._rows(fold_in(episode, _EXAMPLES), classes)
        augment_keys = None
        if self.view.augment != "none":
            item = torch.arange(rows[0].numel(), device=device).view(rows.shape[1:])
            augment_keys = fold_in(fold_in(episode, _VIEW)[:, None, None], item)
        return EpisodeIndices(classes, rows, quarter_turns, fold_in(episode, _LEARNER), augment_keys)

    def _rows(self, key: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
        """[T, N, K+Q] distinct rows of each class."""
        keys = fold_in(key[:, None], torch.arange(self.way, device=key.device))  # [T, N]
        chosen = draw_rows(keys, self.bank.sizes[classes], self.shot + self.query, self.largest_class)
        return self.bank.offsets[classes][..., None] + chosen

    def class_names(self, draw: EpisodeIndices) -> list[list[str]]:
        """The names [T][N] of the classes of these draws; with `as_classes` they say by how much a class is turned."""
        names, turned = self.bank.names, self.rotations == "as_classes"
        return [
            [names[label] + (f" turned {90 * quarter}" if turned else "") for label, quarter in zip(*task, strict=True)]
            for task in zip(draw.classes.tolist(), draw.quarter_turns.tolist(), strict=True)
        ]

    def episodes(self, first: int, count: int) -> Episodes:
        """Episodes first..first+count-1, images [T, N*K, C, H, W] as the view has them, features [T, N*K, D]."""
        return self.load(self.draw(first, count))

    def load(self, draw: EpisodeIndices) -> Episodes:
        """Gather the examples of these draws; rows [T, N, K] alone make episodes without queries."""
        parts = []
        for part in (slice(None, self.shot), slice(self.shot, None)):
            augment_keys = None if draw.augment_keys is None else draw.augment_keys[:, :, part]
            items = self.gather(draw.rows[:, :, part], augment_keys)  # [T, N, K or Q, *shape]
            parts.append(items if self.rotations == "none" else _rotate(items, draw.quarter_turns))
        support, query = parts
        label = torch.arange(self.way, device=support.device).expand(len(draw.key), self.way)
        return Episodes(
            support_x=support.flatten(1, 2),
            support_y=label.repeat_interleave(support.shape[2], dim=1),
            query_x=query.flatten(1, 2),
            query_y=label.repeat_interleave(query.shape[2], dim=1),
            key=draw.key,
            way=self.way,
        )

    def gather(self, rows: torch.Tensor, augment_keys: torch.Tensor | None = None) -> torch.Tensor:
        """The examples at some rows of the bank, [..., *shape]: images as the view has them, features as unit vectors.

        Args:
            rows: [...] int64, on the device where the examples are wanted.
            augment_keys: [...] streams for the random augmentation of each image.
        """
        items = self.bank.rows(rows.flatten()).view(*rows.shape, *self.bank.shape)
        features = len(self.bank.shape) == 1 and items.dtype != torch.uint8
        return unit_vectors(items) if features else self.view(items, augment_keys)

    def blocks(self) -> Iterator[torch.Tensor]:
        """All examples of the bank once, as episodes have them but not augmented: [up to 1000, *shape] each."""
        for rows in torch.arange(int(self.bank.offsets[-1]), device=self.device).split(1000):
            yield self.gather(rows)

    def manifest(self, first: int, count: int) -> str:
        """SHA-256 of the bank and of the index lists of these episodes: equal means the very same tasks.

        Features of images make the same tasks as the images. Two accuracies may stand in one column of a table only
        when their manifests are equal.
        """
        digest = hashlib.sha256(self.bank.image_fingerprint.encode())
        for start in range(first, first + count, 1000):
            draw = self.draw(start, min(1000, first + count - start))
            for index in (draw.rows, draw.quarter_turns):
                digest.update(index.cpu().numpy().astype("<i8").tobytes())
        digest.update(f"{self.shot}/{self.query}".encode())
        return digest.hexdigest()


def unit_vectors(features: torch.Tensor) -> torch.Tensor:
    """Features [..., D] at length 1, as deepmind/leo's data provider returns them."""
    return torch.nn.functional.normalize(features, dim=-1)


def _rotate(items: torch.Tensor, quarter_turns: torch.Tensor) -> torch.Tensor:
    """Turn the images of each class: items [T, N, K+Q, C, H, H], quarter_turns [T, N] in 0..3."""
    rotated = items
    for quarter in (1, 2, 3):
        mask = (quarter_turns == quarter)[:, :, None, None, None, None]
        rotated = torch.where(mask, items.rot90(quarter, dims=(-2, -1)), rotated)
    return rotated
