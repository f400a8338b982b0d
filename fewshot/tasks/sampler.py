"""Episodes from a Bank: episode i is a pure function of (seed, split, i) and of nothing else."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property

import torch

from fewshot.core.errors import FewshotError
from fewshot.core.random import fold_in, randint, sample_without_replacement, stream
from fewshot.data.bank import Bank
from fewshot.episodes import Episodes
from fewshot.tasks.transforms import ImageTransform

ROTATIONS = ("none", "per_class", "as_classes")
AS_STORED = ImageTransform()
_CLASSES, _EXAMPLES, _ROTATIONS, _LEARNER, _VIEW = range(5)  # streams of one episode


@dataclass(frozen=True)
class EpisodeIndices:
    """The index lists of T episodes: everything that was drawn, before any example is read."""

    classes: torch.Tensor  # [T, N] class of the bank
    rows: torch.Tensor  # [T, N, K+Q] row of the bank; the first K are the support set
    quarter_turns: torch.Tensor  # [T, N] rotation by 90 degrees times this, 0..3
    key: torch.Tensor  # [T] stream for the draws of the learner
    augment_keys: torch.Tensor | None  # [T, N, K+Q] stream of each image, where training changes it at random


@dataclass(frozen=True)
class Sampler:
    """N-way K-shot episodes with Q queries per class.

    `rotations` turns whole classes by multiples of 90 degrees:
    `none`; `per_class` draws a rotation for each class of an episode, which is also what rotated classes give
    when two rotations of one character may not meet (cbfinn/maml); `as_classes` takes the four rotations of a
    class as four classes that may meet in one episode (openai/supervised-reptile).

    Raises:
        FewshotError: fewer classes than `way`, or a class with fewer than `shot + query` examples.
    """

    bank: Bank
    way: int
    shot: int
    query: int
    seed: int
    rotations: str = "none"
    view: ImageTransform = AS_STORED

    metric = "accuracy"

    def __post_init__(self) -> None:
        bank, where = self.bank, f"{self.bank.metadata.get('dataset', 'bank')}, split {self.bank.split}"
        for name, least in (("way", 2), ("shot", 1), ("query", 0)):
            if getattr(self, name) < least:
                raise FewshotError(f"{name}={getattr(self, name)}: must be at least {least}")
        if self.rotations not in ROTATIONS:
            raise FewshotError(f"dataset.rotations={self.rotations}: choose one of {', '.join(ROTATIONS)}")
        if self.rotations != "none" and (len(bank.shape) != 3 or bank.shape[-1] != bank.shape[-2]):
            raise FewshotError(
                f"{where}: rotations={self.rotations} takes square images; set dataset.rotations to none"
            )
        if self.way > self._choices:
            raise FewshotError(f"{where}: way={self.way}, but there are only {self._choices} classes; lower way")
        self.view.output_shape(bank.shape)
        smallest = int(bank.sizes.argmin())
        count = int(bank.sizes[smallest])
        if self.shot + self.query > count:
            raise FewshotError(
                f"{where}: shot={self.shot} plus query={self.query} is more than class "
                f"{bank.names[smallest]} has ({count} examples); lower shot or query"
            )

    @property
    def source(self) -> Bank:
        """The bank."""
        return self.bank

    @property
    def device(self) -> torch.device:
        """Where episodes are drawn and gathered."""
        return self.bank.offsets.device

    @cached_property
    def _largest(self) -> int:
        """Examples of the largest class; known once, since to ask a GPU is to wait for it."""
        return int(self.bank.sizes.max())

    @property
    def _choices(self) -> int:
        return len(self.bank.names) * (4 if self.rotations == "as_classes" else 1)

    def draw(self, first: int, count: int) -> EpisodeIndices:
        """The index lists of episodes first..first+count-1, on the bank's device."""
        device = self.device
        number = torch.arange(first, first + count, dtype=torch.int64, device=device)
        episode = fold_in(stream(self.seed, self.bank.split), number)  # [T]

        def branch(which: int) -> torch.Tensor:
            return fold_in(episode, which)

        classes = sample_without_replacement(branch(_CLASSES), self.way, self._choices)  # [T, N]
        if self.rotations == "as_classes":
            classes, turns = classes // 4, classes % 4
        elif self.rotations == "per_class":
            ways = torch.arange(self.way, device=device)
            turns = randint(fold_in(branch(_ROTATIONS)[:, None], ways), 4)
        else:
            turns = torch.zeros_like(classes)
        rows = self._rows(branch(_EXAMPLES), classes)
        changes = None
        if self.view.augment != "none":
            place = torch.arange(rows[0].numel(), device=device).view(rows.shape[1:])
            changes = fold_in(branch(_VIEW)[:, None, None], place)
        return EpisodeIndices(classes, rows, turns, branch(_LEARNER), changes)

    def _rows(self, key: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
        """[T, N, K+Q] distinct rows of each class: those with the smallest hashes, in the order of the hashes."""
        sizes = self.bank.sizes[classes]  # [T, N]
        place = torch.arange(self.way, device=key.device)
        member = torch.arange(self._largest, device=key.device)
        tickets = fold_in(fold_in(key[:, None], place)[..., None], member)  # [T, N, largest class]
        absent = member >= sizes[..., None]
        tickets = tickets.masked_fill(absent, torch.iinfo(torch.int64).max)
        chosen = tickets.topk(self.shot + self.query, dim=-1, largest=False, sorted=True).indices
        return self.bank.offsets[classes][..., None] + chosen

    def episodes(self, first: int, count: int) -> Episodes:
        """Episodes first..first+count-1, images [T, N*K, C, H, W] as the view has them, features [T, N*K, D]."""
        return self.load(self.draw(first, count))

    def load(self, draw: EpisodeIndices) -> Episodes:
        """The examples of what was drawn; rows [T, N, K] alone make episodes without queries."""
        support, query = (
            self._turned(draw, part) for part in (slice(None, self.shot), slice(self.shot, draw.rows.shape[2]))
        )
        label = torch.arange(self.way, device=support.device).expand(len(draw.key), self.way)
        return Episodes(
            support_x=support.flatten(1, 2),
            support_y=label.repeat_interleave(support.shape[2], dim=1),
            query_x=query.flatten(1, 2),
            query_y=label.repeat_interleave(query.shape[2], dim=1),
            key=draw.key,
            way=self.way,
        )

    def _turned(self, draw: EpisodeIndices, part: slice) -> torch.Tensor:
        """The examples of the support or query sets, [T, N, K or Q, *shape]."""
        changes = None if draw.augment_keys is None else draw.augment_keys[:, :, part]
        items = self.gather(draw.rows[:, :, part], changes)
        return items if self.rotations == "none" else _rotate(items, draw.quarter_turns)

    def gather(self, rows: torch.Tensor, changes: torch.Tensor | None = None) -> torch.Tensor:
        """The examples at some rows of the bank, [..., *shape]: images as the view has them, features as unit vectors.

        Args:
            rows: [...] int64, on the device where the examples are wanted.
            changes: [...] streams for the view's random changes of images.
        """
        items = self.bank.rows(rows.flatten()).view(*rows.shape, *self.bank.shape)
        if len(self.bank.shape) == 3 or items.dtype == torch.uint8:
            return self.view(items, changes)
        # Features as deepmind/leo's data provider hands them over.
        return torch.nn.functional.normalize(items, dim=-1)

    def manifest(self, first: int, count: int) -> str:
        """SHA-256 of the bank and of the index lists of these episodes: equal means the very same tasks.

        Features of images are the same tasks as the images. Two accuracies may stand in one column only when their
        manifests agree.
        """
        digest = hashlib.sha256(self.bank.image_fingerprint.encode())
        for start in range(first, first + count, 1000):
            draw = self.draw(start, min(1000, first + count - start))
            for index in (draw.rows, draw.quarter_turns):
                digest.update(index.cpu().numpy().astype("<i8").tobytes())
        digest.update(f"{self.shot}/{self.query}".encode())
        return digest.hexdigest()


def _rotate(items: torch.Tensor, turns: torch.Tensor) -> torch.Tensor:
    """Turn the images of each class: items [T, N, K+Q, C, H, H], turns [T, N] in 0..3."""
    turned = items
    for quarter in (1, 2, 3):
        mask = (turns == quarter)[:, :, None, None, None, None]
        turned = torch.where(mask, items.rot90(quarter, dims=(-2, -1)), turned)
    return turned
