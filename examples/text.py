"""Real text as bytes: the Python sources of the standard library, or a folder or file of your own.

The default text needs no download and is the same for everybody with the same Python version: every
`*.py` below the standard library's folder, without installed packages and tests, in the order of
its relative path, once per distinct content. A whole file is either for training or for validation,
so that the validation text holds nothing that was trained on:

    validation if int(sha256(relative path)) mod 10 == 0        (about one file in ten)

A token is a byte (vocabulary 256), and a loss in bits per byte compares with the entropies here.
"""

from __future__ import annotations

import hashlib
import os
import sysconfig
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from hpc_alpa.errors import DataError

VOCABULARY = 256
EXCLUDED = frozenset({"site-packages", "test", "tests", "idle_test", "lib2to3"})

Tokens = npt.NDArray[np.uint8]
Rows = slice | Sequence[int] | npt.NDArray[np.integer]
Batch = dict[str, npt.NDArray[np.integer]]


@dataclass(frozen=True, eq=False)
class Corpus:
    """A text in two parts, and where it is from.

    Attributes:
        train, validation: bytes of the two parts, uint8, one dim.
        train_files, validation_files: relative paths; one file may be in both only if `split` says
            that the text was cut, not the list of files.
        source: the folder or file.
        split: "by file", or "last tenth" of the text where there are too few files to choose from.
    """

    train: Tokens
    validation: Tokens
    train_files: tuple[str, ...]
    validation_files: tuple[str, ...]
    source: Path
    split: str


def load(path: str | Path | None = None) -> Corpus:
    """Read the text: the standard library's sources, or all files of a folder, or one file.

    Hidden files are left out of a folder of your own; of the standard library only `*.py` is read.
    The order is that of the relative paths: two machines with equal files have equal tokens.

    Raises:
        DataError: nothing is at `path`, or it holds less than two bytes of text.
    """
    source = Path(sysconfig.get_paths()["stdlib"]) if path is None else Path(path)
    if not source.exists():
        raise DataError(f"no text at '{source}': neither a file nor a folder. Check --data.")
    names = _library_files(source) if path is None else _own_files(source)
    texts = _distinct(source, sorted(names))
    parts: dict[bool, list[str]] = {True: [], False: []}
    for name in texts:
        parts[is_validation(name)].append(name)
    if parts[True] and parts[False]:
        train, validation = (_joined([texts[n] for n in parts[key]]) for key in (False, True))
        if train.size > 1 and validation.size > 1:
            files = tuple(parts[False]), tuple(parts[True])
            return Corpus(train, validation, *files, source, "by file")
    whole = _joined(list(texts.values()))
    if whole.size < 20:
        raise DataError(
            f"too little text in '{source}': {whole.size} bytes in {len(texts)} files, at least 20"
            " are needed. Give --data a folder or a file with text."
        )
    cut = whole.size - whole.size // 10
    return Corpus(whole[:cut], whole[cut:], tuple(texts), tuple(texts), source, "last tenth")


def is_validation(name: str) -> bool:
    """Whether the file of this relative path (with `/`) belongs to the validation text."""
    return int(hashlib.sha256(name.encode()).hexdigest(), 16) % 10 == 0


def _library_files(folder: Path) -> Iterator[str]:
    for root, folders, files in os.walk(folder):
        folders[:] = set(folders) - EXCLUDED  # not entered: site-packages can be large
        for name in files:
            path = Path(root, name)
            if path.suffix == ".py" and path.is_file():  # a link may lead nowhere
                yield path.relative_to(folder).as_posix()


def _own_files(source: Path) -> Iterator[str]:
    if source.is_file():
        yield ""  # the relative path of a file to itself: `source / ""` is the file
        return
    for path in source.rglob("*"):
        name = path.relative_to(source)
        if path.is_file() and not any(part.startswith(".") for part in name.parts):
            yield name.as_posix()


def _distinct(source: Path, names: Sequence[str]) -> dict[str, bytes]:
    """Content per relative path; of files with equal content only the first."""
    texts: dict[str, bytes] = {}
    seen: set[bytes] = set()
    for name in names:
        try:
            content = (source / name).read_bytes()
        except OSError as error:
            raise DataError(
                f"cannot read the text '{source / name}': {error.strerror}. Make it readable for"
                " all ranks, or give --data another folder."
            ) from error
        digest = hashlib.sha256(content).digest()
        if digest not in seen:
            seen.add(digest)
            texts[name or source.name] = content
    return texts


def _joined(texts: Sequence[bytes]) -> Tokens:
    return np.frombuffer(b"".join(texts), dtype=np.uint8)


def unigram_entropy(tokens: Tokens) -> float:
    """H(byte) in bits, counted on `tokens`: what guessing by frequency alone costs per byte."""
    counts = np.bincount(tokens, minlength=VOCABULARY).astype(np.float64)
    seen = counts[counts > 0]
    return float(-(seen * np.log2(seen / counts.sum())).sum() / counts.sum())


def bigram_entropy(tokens: Tokens) -> float:
    """H(byte | previous byte) in bits, counted on `tokens`; 0 for less than two bytes."""
    pairs = tokens[:-1].astype(np.int64) * VOCABULARY + tokens[1:]
    counts = np.bincount(pairs, minlength=VOCABULARY**2).astype(np.float64)
    counts = counts.reshape(VOCABULARY, VOCABULARY)
    previous, _ = np.nonzero(counts)
    seen = counts[counts > 0]
    given = seen / counts.sum(axis=1)[previous]
    return float(-(seen * np.log2(given)).sum() / max(counts.sum(), 1.0))


def decode(tokens: npt.NDArray[np.integer]) -> str:
    """The text of the tokens; bytes that are no UTF-8 become the replacement character."""
    return tokens.astype(np.uint8).tobytes().decode("utf-8", errors="replace")


@dataclass(frozen=True, eq=False)
class Batches:
    """Training batches: `Batches(tokens, sequence, batch, seed)(step, rows)`.

    Gives only the rows asked for, so each rank reads its own. Row r of step t is sample
    t*batch + r; an epoch visits every window of the text once, in an order keyed by (seed, epoch,
    sample) and shifted by a phase keyed by (seed, epoch). Nothing depends on the number of ranks.

    Attributes:
        tokens: uint8, one dim.
        sequence: tokens per row.
        batch: rows of the global batch.
        seed: any integer.
        dtype: integer type of the arrays returned.
    """

    tokens: Tokens
    sequence: int
    batch: int
    seed: int = 0
    dtype: npt.DTypeLike = np.int32

    def __post_init__(self) -> None:
        _check_sizes(self.tokens, self.sequence, self.batch)

    @property
    def num_windows(self) -> int:
        """Samples of one epoch. One window of slack leaves room for the phase."""
        return max(1, (self.tokens.size - self.sequence) // self.sequence)

    def __call__(self, step: int, rows: Rows) -> Batch:
        """Rows `rows` of the batch of `step`: tokens and targets, (len(rows), sequence) each."""
        if step < 0:
            raise DataError(f"step {step} has no batch: steps count from 0.")
        samples = step * self.batch + _row_numbers(rows, self.batch)
        return _windows(self.tokens, self._starts(samples), self.sequence, self.dtype)

    def _starts(self, samples: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        epochs, positions = np.divmod(samples, self.num_windows)
        slack = self.tokens.size - 1 - self.num_windows * self.sequence
        starts = np.empty_like(samples)
        for epoch in np.unique(epochs):  # a batch at the border of two epochs has rows of both
            here = epochs == epoch
            order, phase = _epoch(self.seed, int(epoch), self.num_windows, slack)
            starts[here] = order[positions[here]] * self.sequence + phase
        return starts


@dataclass(frozen=True, eq=False)
class EvaluationBatches:
    """Validation batches: `EvaluationBatches(tokens, sequence, batch, limit)(index, rows)`.

    Disjoint windows spread evenly over the text, in whole batches so that every call has one shape.
    `len()` is the number of batches: at most `limit`, all that the text fills if `limit` is None.
    """

    tokens: Tokens
    sequence: int
    batch: int
    limit: int | None = None
    dtype: npt.DTypeLike = np.int32

    def __post_init__(self) -> None:
        _check_sizes(self.tokens, self.sequence, self.batch)
        if len(self) < 1:
            raise DataError(
                f"the validation text is too short: {self.tokens.size} bytes hold"
                f" {self._num_windows} windows of {self.sequence} bytes, one batch has"
                f" {self.batch}. Use a longer text, a shorter sequence or a smaller batch."
            )

    @property
    def _num_windows(self) -> int:
        return (self.tokens.size - 1) // self.sequence

    def __len__(self) -> int:
        full = self._num_windows // self.batch
        return full if self.limit is None else min(full, self.limit)

    def __call__(self, index: int, rows: Rows) -> Batch:
        """Rows `rows` of batch `index`: tokens and targets, (len(rows), sequence) each."""
        if not 0 <= index < len(self):
            raise DataError(f"no validation batch {index}: there are {len(self)}, counted from 0.")
        windows = index * self.batch + _row_numbers(rows, self.batch)
        spread = windows * self._num_windows // (len(self) * self.batch)
        return _windows(self.tokens, spread * self.sequence, self.sequence, self.dtype)


def _check_sizes(tokens: Tokens, sequence: int, batch: int) -> None:
    if sequence < 1 or batch < 1:
        raise DataError(f"sequence {sequence} and batch {batch} must both be at least 1.")
    if tokens.size <= sequence:
        raise DataError(
            f"the text is too short: {tokens.size} bytes, a row of {sequence} tokens and its"
            f" targets take {sequence + 1}. Use a longer text or a shorter sequence."
        )


def _row_numbers(rows: Rows, batch: int) -> npt.NDArray[np.int64]:
    if isinstance(rows, slice):
        rows = range(batch)[rows]
    numbers = np.asarray(rows, dtype=np.int64)
    if numbers.size and not (numbers.min() >= 0 and numbers.max() < batch):
        raise DataError(
            f"rows {numbers.min()} to {numbers.max()} are not all in the global batch of {batch}"
            " rows."
        )
    return numbers


def _windows(
    tokens: Tokens, starts: npt.NDArray[np.int64], sequence: int, dtype: npt.DTypeLike
) -> Batch:
    taken = tokens[starts[:, None] + np.arange(sequence + 1)].astype(dtype)
    return {
        "tokens": np.ascontiguousarray(taken[:, :-1]),
        "targets": np.ascontiguousarray(taken[:, 1:]),
    }


@lru_cache(maxsize=4)
def _epoch(
    seed: int, epoch: int, num_windows: int, slack: int
) -> tuple[npt.NDArray[np.int64], int]:
    """The order of an epoch's windows, and the phase in bytes by which they are shifted."""
    key = _mix(_mix(np.array([seed % 2**64], dtype=np.uint64)) ^ np.uint64(epoch))
    order = np.argsort(_mix(np.arange(num_windows, dtype=np.uint64) + key), kind="stable")
    return order.astype(np.int64), int(_mix(~key)[0] % np.uint64(slack + 1))


def _mix(x: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """SplitMix64 of each element (Steele, Lea, Flood 2014, Fig. 17).

    Written out because NumPy does not promise equal streams of its generators between versions.
    """
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
