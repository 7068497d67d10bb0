"""The database file: round trip, append, merge, and what is said of a file that cannot serve."""

import dataclasses

import h5py
import pytest

from hpc_alpa.cost import (
    Database,
    Quantiles,
    Run,
    Sample,
    append,
    default_path,
    fitted,
    load,
    machine_digest,
    machine_facts,
    merge,
    new,
    parameters,
    read,
    save,
)
from hpc_alpa.errors import CostError

QUANTILES = Quantiles(1e-6, 2e-6, 3e-6, 4e-6, 5e-6, 17)


def message(nbytes, seconds=QUANTILES, hosts=1):
    values = parameters("point_to_point", nbytes=nbytes, hosts=hosts, ranks=2, clock="wall")
    return Sample("point_to_point", "send", values, seconds)


def filled():
    matmul = parameters(
        "operators", dtype="float32", variant="nn", batch=1, m=2, n=3, k=4, threads=1, busy=2
    )
    gathered = parameters("collectives", nbytes=2**40, size=2, hosts=1, groups=1, ranks=2)
    samples = [
        message(1024),
        Sample("operators", "dot_general", matmul, QUANTILES),
        Sample("collectives", "all_gather", gathered, Quantiles.of([0.1, 0.3, 0.2])),
        Sample("copies", "copy", parameters("copies", nbytes=8, variant="hot"), QUANTILES),
    ]
    return append(new(), Run.of(command="test", date="today", cores=2), samples)


def same(a: Database, b: Database):
    order = {f.name: getattr(a, f.name) for f in dataclasses.fields(a)}
    other = {f.name: getattr(b, f.name) for f in dataclasses.fields(b)}
    for values in (order, other):
        values["samples"] = sorted(values["samples"], key=repr)
        values.pop("path")
    return order == other


def test_round_trip(tmp_path):
    path = tmp_path / "deep" / "costs.h5"
    database = fitted(filled())
    save(database, path)
    assert same(load(path), database)
    assert sorted(p.name for p in path.parent.iterdir()) == ["costs.h5"]
    with h5py.File(path) as file:
        assert file.attrs["format"] == "hpc_alpa-costs" and file.attrs["schema_version"] == 1
        assert file.attrs["machine_digest"] == machine_digest() and file.attrs["created"]
        assert {"operators", "collectives", "point_to_point", "copies"} <= set(file)
        assert file["runs/0"].attrs["command"] == "test"


def test_append_keeps_what_was_there(tmp_path):
    first = filled()
    second = append(first, Run.of(command="again"), [message(2048)])
    assert second.samples[:-1] == first.samples and second.samples[-1].run == 1
    assert second.runs[1]["command"] == "again"
    save(second, tmp_path / "a.h5")
    assert same(load(tmp_path / "a.h5"), second)


def test_merge_is_a_union_and_pools_when_used():
    base = filled()
    a = append(base, Run.of(command="a"), [message(1), message(2)])
    b = append(base, Run.of(command="b"), [message(2), message(3)])
    merged = merge(a, b)
    assert len(merged.samples) == 8 and [r["command"] for r in merged.runs] == ["test", "a", "b"]
    assert {merged.runs[s.run]["command"] for s in merged.samples if s["nbytes"] == 3} == {"b"}
    assert merge(merged, b) == merge(merged, a) == merge(merged, merged) == merged
    assert set(merge(b, a).keys) == set(merged.keys)
    pooled = Quantiles.pooled([Quantiles(1, 2, 3, 4, 5, 6), Quantiles(2, 3, 5, 8, 9, 1)])
    assert pooled == Quantiles(1, 2.5, 4, 6, 9, 7)


def test_lines_are_fitted_to_three_sizes_or_more():
    def exact(nbytes):
        return message(nbytes, Quantiles.of([2e-6 + 1e-9 * nbytes]))

    database = fitted(append(new(), Run.of(), [exact(n) for n in (10, 1000, 100000)]))
    (fit,) = database.fits
    assert fit.label == ("point_to_point", "send", "hosts=1 ranks=2")
    assert (fit.alpha, fit.beta) == pytest.approx((2e-6, 1e-9)) and fit.residual < 1e-9
    assert not fitted(append(new(), Run.of(), [exact(1), exact(2)])).fits


def test_default_place(monkeypatch, tmp_path):
    monkeypatch.setenv("HPC_ALPA_DB", str(tmp_path / "x.h5"))
    assert default_path() == tmp_path / "x.h5"
    monkeypatch.delenv("HPC_ALPA_DB")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_path() == tmp_path / ".cache" / "hpc_alpa" / f"{machine_digest()}.h5"


def test_no_file(tmp_path):
    with pytest.raises(CostError, match=r"there is no cost database at .*python -m hpc_alpa\.prof"):
        load(tmp_path / "none.h5")


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 something else", b"\x89HDF"])
def test_not_hdf5(tmp_path, content):
    path = tmp_path / "costs.h5"
    path.write_bytes(content)
    with pytest.raises(CostError, match=r"costs\.h5 is not HDF5: it begins with"):
        load(path)


def test_truncated_anywhere(tmp_path):
    whole, path = tmp_path / "whole.h5", tmp_path / "costs.h5"
    save(filled(), whole)
    content = whole.read_bytes()
    for share in (0.05, 0.3, 0.6, 0.9, 0.999):
        path.write_bytes(content[: int(share * len(content))])
        with pytest.raises(CostError, match=r"costs\.h5 is truncated or damaged: .* bytes\."):
            load(path)


def test_damaged_content(tmp_path):
    path = tmp_path / "costs.h5"
    for group in ("operators", "runs/0", "fits"):
        save(filled(), path)
        with h5py.File(path, "r+") as file:
            del file[group]
        with pytest.raises(CostError, match="truncated or damaged"):
            load(path)


def test_foreign_format(tmp_path):
    path = tmp_path / "weights.h5"
    with h5py.File(path, "w") as file:
        file.attrs["format"] = "weights"
    with pytest.raises(CostError, match=r"its attribute format is 'weights', not 'hpc_alpa-costs'"):
        load(path)
    with h5py.File(path, "w"):
        pass
    with pytest.raises(CostError, match=r"its attribute format is None"):
        load(path)


def test_newer_schema(tmp_path):
    path = tmp_path / "costs.h5"
    save(filled(), path)
    with h5py.File(path, "r+") as file:
        file.attrs["schema_version"] = 99
    with pytest.raises(CostError, match=r"schema_version 99; .* reads up to 1\. Install"):
        load(path)


def test_another_machine(tmp_path):
    path = tmp_path / "costs.h5"
    facts = {**machine_facts(), "cpu": "Another CPU", "cores": "96"}
    other = dataclasses.replace(filled(), machine=tuple(sorted(facts.items())))
    save(other, path)
    with pytest.raises(CostError) as error:
        load(path)
    message = str(error.value)
    assert machine_digest(facts) in message and machine_digest() in message
    assert "cores is '96' in the database" in message and "'Another CPU'" in message
    assert "python -m hpc_alpa.profiler" in message
    assert same(read(path), other)
    with pytest.raises(CostError, match="another machine"):
        merge(filled(), read(path))


def test_digest_has_no_host_name(monkeypatch):
    before = machine_digest()
    monkeypatch.setattr("socket.gethostname", lambda: "elsewhere")
    monkeypatch.setattr("platform.node", lambda: "elsewhere")
    assert machine_digest() == before and len(before) == 16


def test_samples_check_their_parameters():
    with pytest.raises(CostError, match="unknown"):
        Sample("operator", "add", (), QUANTILES)
    with pytest.raises(CostError, match="are needed"):
        Sample("copies", "copy", (1,), QUANTILES)
