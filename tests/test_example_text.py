"""The text of examples/train_gpt.py: which files, which split, which rows, which entropies."""

import hashlib
import importlib.util
import math
import sys
import sysconfig
import time
from collections import Counter
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from hpc_alpa.errors import DataError


def _example(name: str) -> ModuleType:
    path = Path(__file__).parents[1] / "examples" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"example_{name}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


text = _example("text")


@pytest.fixture(scope="module")
def corpus() -> Any:
    return text.load()


def _plain_library() -> dict[str, bytes]:
    """The rule of the corpus, written once more and slowly."""
    folder = Path(sysconfig.get_paths()["stdlib"])
    texts: dict[str, bytes] = {}
    for name in sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*.py")):
        excluded = {"site-packages", "test", "tests", "idle_test", "lib2to3"} & set(name.split("/"))
        content = b"" if excluded else (folder / name).read_bytes()
        if not excluded and content not in texts.values():
            texts[name] = content
    return texts


def test_default_text_is_the_library(corpus: Any) -> None:
    plain = _plain_library()
    chosen = {n for n in plain if int(hashlib.sha256(n.encode()).hexdigest(), 16) % 10 == 0}
    assert corpus.split == "by file"
    assert corpus.validation_files == tuple(n for n in plain if n in chosen)
    assert corpus.train_files == tuple(n for n in plain if n not in chosen)
    assert corpus.train.tobytes() == b"".join(plain[n] for n in corpus.train_files)
    assert corpus.validation.tobytes() == b"".join(plain[n] for n in corpus.validation_files)
    assert corpus.train.dtype == np.uint8 and corpus.train.size > 5e6


def test_parts_share_no_file_and_no_content(corpus: Any) -> None:
    assert not set(corpus.train_files) & set(corpus.validation_files)
    digests = [
        hashlib.sha256((corpus.source / name).read_bytes()).digest()
        for name in corpus.train_files + corpus.validation_files
    ]
    assert len(set(digests)) == len(digests)
    share = corpus.validation.size / (corpus.train.size + corpus.validation.size)
    assert 0.05 < share < 0.2


def test_loading_takes_less_than_a_second(corpus: Any) -> None:
    start = time.process_time()  # the files are in the page cache after the fixture
    again = text.load()
    assert time.process_time() - start < 1.0
    assert np.array_equal(again.train, corpus.train)


def test_entropies_of_the_library(corpus: Any) -> None:
    """About 4.7 and 3.49 bits; they differ a little with the Python version."""
    assert text.unigram_entropy(corpus.validation) == pytest.approx(4.75, abs=0.2)
    assert text.bigram_entropy(corpus.validation) == pytest.approx(3.49, abs=0.2)


def _plain_unigram(data: bytes) -> float:
    counts = Counter(data)
    return -sum(c / len(data) * math.log2(c / len(data)) for c in counts.values())


def _plain_bigram(data: bytes) -> float:
    pairs = Counter(zip(data, data[1:], strict=False))
    first = Counter(data[:-1])
    total = len(data) - 1
    return -sum(c / total * math.log2(c / first[a]) for (a, _), c in pairs.items())


@pytest.mark.parametrize("size", [2, 3, 50, 2000])
def test_entropies_equal_a_plain_count(size: int) -> None:
    data = np.random.default_rng(size).choice(list(b"aaabbc\xff\x00"), size).astype(np.uint8)
    assert text.unigram_entropy(data) == pytest.approx(_plain_unigram(data.tobytes()), abs=1e-12)
    assert text.bigram_entropy(data) == pytest.approx(_plain_bigram(data.tobytes()), abs=1e-12)


def test_entropies_of_known_texts() -> None:
    alternating = np.frombuffer(b"ab" * 100, dtype=np.uint8)
    assert text.unigram_entropy(alternating) == pytest.approx(1.0)
    assert text.bigram_entropy(alternating) == pytest.approx(0.0)
    assert text.unigram_entropy(np.arange(256, dtype=np.uint8)) == pytest.approx(8.0)


def test_own_folder_is_split_by_file(tmp_path: Path) -> None:
    for i in range(40):
        (tmp_path / f"d{i % 3}").mkdir(exist_ok=True)
        (tmp_path / f"d{i % 3}" / f"{i}.txt").write_text(f"text {i % 30}")  # ten are copies
    (tmp_path / ".hidden").write_text("secret")
    corpus = text.load(tmp_path)
    assert corpus.split == "by file" and len(corpus.train_files + corpus.validation_files) == 30
    assert all(text.is_validation(name) for name in corpus.validation_files)
    assert b"secret" not in corpus.train.tobytes() + corpus.validation.tobytes()


def test_own_file_gives_its_last_tenth(tmp_path: Path) -> None:
    (tmp_path / "one.txt").write_bytes(bytes(range(200)))
    corpus = text.load(tmp_path / "one.txt")
    assert corpus.train.tolist() == list(range(180))
    assert corpus.validation.tolist() == list(range(180, 200))
    assert corpus.split == "last tenth" and corpus.train_files == ("one.txt",)


def test_missing_and_empty_texts_are_named_errors(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no text at .*nowhere.*--data"):
        text.load(tmp_path / "nowhere")
    with pytest.raises(DataError, match="too little text .*0 bytes in 0 files"):
        text.load(tmp_path)


def test_an_unreadable_file_is_a_named_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.txt").write_text("text")

    def refuse(path: Path) -> bytes:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "read_bytes", refuse)  # root reads every file whatever its mode
    with pytest.raises(DataError, match="cannot read the text .*a.txt.*Permission denied"):
        text.load(tmp_path)


def _batches(**changes: object) -> Any:
    # Every run of 4 tokens is distinct, so a window's tokens say where it begins.
    tokens = np.random.default_rng(0).permutation(250).astype(np.uint8)
    return text.Batches(**{"tokens": tokens, "sequence": 4, "batch": 24, "seed": 3, **changes})


@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 6, 8, 24])
def test_rows_do_not_depend_on_the_partition(ranks: int) -> None:
    batches = _batches()
    for step in range(8):  # three epochs, whose borders are inside batches
        whole = batches(step, slice(None))
        for name, array in whole.items():
            parts = [batches(step, part)[name] for part in np.split(np.arange(24), ranks)]
            assert np.array_equal(np.concatenate(parts), array)
            assert array.shape == (24, 4) and array.dtype == np.int32
    rows = np.random.default_rng(ranks).permutation(24)[: 24 // ranks]
    assert np.array_equal(batches(5, rows)["tokens"], batches(5, range(24))["tokens"][rows])


def test_targets_are_the_next_tokens() -> None:
    batches = _batches()
    place = {int(t): i for i, t in enumerate(batches.tokens)}
    for step in range(8):
        batch = batches(step, slice(None))
        for tokens, targets in zip(batch["tokens"], batch["targets"], strict=True):
            start = place[tokens[0]]
            assert tokens.tolist() == batches.tokens[start : start + 4].tolist()
            assert targets.tolist() == batches.tokens[start + 1 : start + 5].tolist()


@pytest.mark.parametrize("size", [5, 8, 250])
def test_an_epoch_visits_each_window_once(size: int) -> None:
    batches = _batches(tokens=np.arange(size, dtype=np.uint8), batch=1)
    orders = []
    for epoch in range(3):
        steps = range(epoch * batches.num_windows, (epoch + 1) * batches.num_windows)
        starts = [int(batches(step, [0])["tokens"][0, 0]) for step in steps]
        assert sorted(np.diff(sorted(starts))) == [4] * (batches.num_windows - 1)
        orders.append(starts)
    assert size < 250 or (orders[0] != orders[1] and orders[1] != orders[2])


def test_batches_are_keyed_by_the_seed() -> None:
    first, again, other = (_batches(seed=s)(0, slice(None))["tokens"] for s in (7, 7, -8))
    assert np.array_equal(first, again) and not np.array_equal(first, other)


def test_batches_are_the_same_forever() -> None:
    """A golden row: a run continues with the same data under another NumPy version."""
    batches = _batches(tokens=np.arange(250, dtype=np.uint8))
    assert batches(1, [0, 5, 23])["tokens"][:, 0].tolist() == [228, 12, 96]


def test_evaluation_windows_are_disjoint_and_spread() -> None:
    tokens = np.arange(250, dtype=np.uint8)
    for limit in (1, 3, None):
        batches = text.EvaluationBatches(tokens, sequence=4, batch=10, limit=limit)
        starts = np.concatenate(
            [batches(i, slice(None))["tokens"][:, 0] for i in range(len(batches))]
        )
        assert len(batches) == (limit or 6) and np.diff(starts).min() >= 4
        assert starts[0] == 0 and starts[-1] > 200
    assert batches(2, [7])["targets"].tolist() == (batches(2, [7])["tokens"] + 1).tolist()


def test_what_does_not_fit_is_a_named_error() -> None:
    tokens = np.arange(100, dtype=np.uint8)
    with pytest.raises(DataError, match="100 bytes, a row of 100 tokens .* take 101"):
        text.Batches(tokens, sequence=100, batch=1)
    with pytest.raises(DataError, match="sequence 0 and batch 1"):
        text.Batches(tokens, sequence=0, batch=1)
    with pytest.raises(DataError, match="rows 0 to 24 .* 24 rows"):
        _batches()(0, range(25))
    with pytest.raises(DataError, match="rows -1 to -1"):
        _batches()(0, [-1])
    with pytest.raises(DataError, match="step -1"):
        _batches()(-1, [0])
    with pytest.raises(DataError, match="24 windows of 4 bytes, one batch has 30"):
        text.EvaluationBatches(tokens, sequence=4, batch=30)
    with pytest.raises(DataError, match="no validation batch 2: there are 2"):
        text.EvaluationBatches(tokens, sequence=4, batch=12)(2, [0])


def test_decode_survives_any_bytes() -> None:
    assert text.decode(np.frombuffer(b"def f\xff", dtype=np.uint8)) == "def f\ufffd"
