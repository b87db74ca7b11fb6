"""docs/reliability.md shows its record."""

import importlib

from faults import table
from faults.kills import STAGES, row


def campaign(rows: list[dict], commit: str) -> dict:
    return {"rows": rows, "code": {"commit": commit}, "device": "CPU", "created": "today"}


def test_page_is_that_of_its_record():
    assert table.PAGE.read_text() == table.rendered()


def test_trials_and_losses_are_summed_and_shown():
    kills = campaign([row("SIGKILL in training", 12, 0, "at random")], "0123456789abcdef")
    hostile = campaign([row("damaged file for: xyz", 10, 3, "accepted: 1")], "fedcba9876543210")
    text = table.table({"campaigns": {"hostile": hostile, "kills": kills}})
    assert "22 trials, 3 losses." in text
    assert "| damaged file for: xyz | 10 | 3 | accepted: 1 |" in text
    assert "`faults.kills`: CPU, commit 0123456789, today" in text


def test_nothing_is_claimed_before_anything_was_measured():
    assert table.table({"campaigns": {}}) == table.NONE_YET


def test_a_failed_campaign_leaves_what_others_found(tmp_path, monkeypatch):
    monkeypatch.setattr(table, "RECORD", tmp_path / "reliability.json")
    monkeypatch.setattr(table, "PAGE", tmp_path / "page.md")
    table.PAGE.write_text("<!-- measured:begin -->\n<!-- measured:end -->\n")

    slurm = False

    def measured(name: str) -> dict:
        if name == "hostile":
            raise RuntimeError
        return campaign([row(f"fault of {name}", 1, 0, "")] if name != "on_slurm" or slurm else [], "0123456789abcdef")

    monkeypatch.setattr(table, "measured", measured)
    try:
        table.main([])
    except RuntimeError:
        assert "fault of disk" in table.PAGE.read_text()
        assert table.record()["campaigns"].keys() == {"kills", "launchers", "disk"}
    else:
        raise AssertionError("the failure was hidden")
    for slurm in (False, True, False):  # a machine without a Slurm takes nothing away
        assert table.main(["on_slurm"]) == 0
        assert ("on_slurm" in table.record()["campaigns"]) >= slurm
    assert table.record()["campaigns"].keys() == {"kills", "launchers", "disk", "on_slurm"}


def found(where: str) -> bool:
    module, name = where.rsplit(".", 1)
    return callable(getattr(importlib.import_module(module), name, None))


def test_functions_in_which_processes_are_killed_are_there():
    """Campaigns are too long for these tests, which so notice a name that has changed. Control: one that did."""
    assert all(found(where) for where, *_ in STAGES.values())
    assert not found("bench.run.execute.evaluate")
