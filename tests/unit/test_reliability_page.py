"""docs/reliability.md shows its record."""

from faults import table
from faults.kills import row


def test_page_is_that_of_its_record():
    assert table.PAGE.read_text() == table.rendered()


def test_trials_and_losses_are_summed_and_shown():
    rows = [row("SIGKILL in training", 12, 0, "at random"), row("flipped bit in eval.json", 10, 3, "lost: 3")]
    text = table.table({"rows": rows, "code": {"commit": "0123456789abcdef"}, "device": "CPU", "created": "today"})
    assert "22 trials, 3 losses; CPU, commit 0123456789, today." in text
    assert "| flipped bit in eval.json | 10 | 3 | lost: 3 |" in text
