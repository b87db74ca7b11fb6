"""Batches as a function of (seed, step)."""

import numpy as np
import pytest
from support import core, structures

from bench.config.run import resolve
from bench.config.study import load_study, resolve_study
from bench.data import qm9
from bench.launch.items import plan
from bench.records.store import write_yaml
from bench.registry import datasets
from bench.run.batches import Batches, load_or_stand_in
from bench.structures.fetch import CannotStartError

DATA = structures([5, 3, 7, 4, 6, 5, 8, 3, 4, 6, 7], seed=8)  # 11 molecules: an incomplete batch is left over


def batches(seed: int = 0, batch_size: int = 4) -> Batches:
    return Batches(DATA, core(), batch_size, seed)


def test_an_epoch_takes_no_molecule_twice():
    b = batches()
    assert b.per_epoch == 2
    for epoch in range(5):
        seen = np.concatenate([b.indices(epoch * 2 + i).numpy() for i in range(2)])
        assert len(set(seen.tolist())) == 8


def test_every_molecule_is_seen_in_the_long_run():
    b = batches()
    counts = np.bincount(np.concatenate([b.indices(step).numpy() for step in range(400)]), minlength=11)
    assert np.abs(counts - 1600 / 11).max() < 5 * (200 * (8 / 11) * (3 / 11)) ** 0.5


def test_a_batch_does_not_depend_on_those_before_it():
    fresh, used = batches(), batches()
    for step in range(7):
        used.indices(step)
    for step in (6, 0, 13):
        assert fresh.indices(step).tolist() == used.indices(step).tolist()
    assert [fresh.indices(i).tolist() for i in range(4)] != [batches(seed=1).indices(i).tolist() for i in range(4)]
    assert fresh.indices(0).tolist() != fresh.indices(2).tolist()  # another epoch, another permutation


def test_a_batch_is_sorted_by_size_and_centred():
    x0 = batches()(3)
    assert (np.diff(x0.layout.sizes) >= 0).all()
    assert sorted(DATA.n_atoms[batches().indices(3).numpy()]) == x0.layout.sizes.tolist()
    assert x0.mean_over_atoms(x0.x).abs().max() < 1e-6


def test_a_batch_larger_than_the_data_is_the_data():
    b = batches(batch_size=100)
    assert b.per_epoch == 1
    assert sorted(b.indices(5).tolist()) == list(range(11))


# ---------------------------------------------------------------------- a data set out of reach

PAGE = {
    "study": "out_of_reach",
    "base": {"data": {"name": "qm9", "max_atoms": 12, "n_train": 50, "offline": "mini"}},
    "grid": {"method": ["haar"], "backbone": [{"name": "dit", "size": "tiny"}], "seed": [0, 1]},
}


@pytest.fixture
def out_of_reach(monkeypatch):
    def fail():
        raise CannotStartError("no network")

    monkeypatch.delenv("QM9_DIR", raising=False)
    monkeypatch.setattr(qm9, "from_download", fail)


@pytest.fixture
def in_reach(monkeypatch):
    mini = datasets["mini"]
    monkeypatch.delenv("QM9_DIR", raising=False)
    monkeypatch.setattr(qm9, "from_download", lambda: mini.build(mini.config()))


def test_out_of_reach_is_an_error_unless_the_page_names_what_stands_in(out_of_reach):
    with pytest.raises(CannotStartError, match="no network"):
        load_or_stand_in(resolve(datasets, "qm9", "data"))


def test_what_stands_in_is_told_loudly_and_named_in_label_note_and_record(out_of_reach, caplog, tmp_path):
    first, second = plan(resolve_study(PAGE, "page"), tmp_path)
    assert caplog.messages == ["THE DATA SET IS 'mini' INSTEAD OF 'qm9': no network"]
    for item in (first, second):
        assert (
            item.data["label"] == "mini (embedded, GFN2-xTB) in place of qm9, at most 12 atoms, 50 training molecules"
        )
        assert "not qm9, which was out of reach" in item.data["notes"][0]
        given = {"max_atoms": 12, "n_train": 50, "turned": False, "in_place_of": "qm9"}
        assert item.cfg.to_dict()["data"] == {"name": "mini", **given}


def test_a_run_repeated_from_its_record_never_falls_back(out_of_reach, monkeypatch, tmp_path):
    """On what it was made on, or not at all: from a record made with QM9 in reach, and from one made without."""
    (item, _) = plan(resolve_study(PAGE, "page"), tmp_path)
    write_yaml(tmp_path / "mini.yaml", item.cfg.to_dict())
    (again,) = plan(load_study(str(tmp_path / "mini.yaml")), tmp_path)
    assert again.folder.name == item.folder.name

    mini = datasets["mini"]
    with monkeypatch.context() as reachable:
        reachable.setattr(qm9, "from_download", lambda: mini.build(mini.config()))
        (item, _) = plan(resolve_study(PAGE, "page"), tmp_path)
        write_yaml(tmp_path / "qm9.yaml", item.cfg.to_dict())
        assert item.cfg.to_dict()["data"]["offline"] == "error"
        (again,) = plan(load_study(str(tmp_path / "qm9.yaml")), tmp_path)  # control
        assert again.folder.name == item.folder.name
    with pytest.raises(CannotStartError, match="no network"):
        plan(load_study(str(tmp_path / "qm9.yaml")), tmp_path)


def test_where_the_data_come_from_is_no_part_of_a_runs_name(in_reach, tmp_path):
    """A folder, a download or what stands in: the content decides."""
    (item, _) = plan(resolve_study(PAGE, "page"), tmp_path)
    own = {**PAGE, "base": {"data": {"name": "mini", "max_atoms": 12, "n_train": 50}}}
    assert plan(resolve_study(own, "page"), tmp_path)[0].folder.name == item.folder.name
    fewer = {**PAGE, "base": {"data": {"name": "mini", "max_atoms": 12, "n_train": 49}}}  # control
    assert plan(resolve_study(fewer, "page"), tmp_path)[0].folder.name != item.folder.name
