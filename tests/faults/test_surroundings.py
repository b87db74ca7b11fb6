"""The campaign of surroundings, in small; each of its verdicts can fail."""

from faults import surroundings


def test_no_option_text_or_library_does_harm(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    rows = [surroundings.options(300), surroundings.texts(300), surroundings.kernels(4, tmp_path)]
    assert [(row["trials"], row["losses"]) for row in rows] == [(300, 0), (300, 0), (4, 0)]
    refused, plain = (int(word.strip(",")) for word in rows[0]["detail"].split() if word.strip(",").isdigit())
    assert min(refused, plain) > 10


def test_harm_is_noticed(tmp_path, monkeypatch):
    """Control: without the refusal, the escapes and the checksum."""
    monkeypatch.setattr(surroundings, "refuse_shell_lines", lambda *_: None)
    monkeypatch.setattr(surroundings, "printable", lambda text: text)
    assert surroundings.options(300)["losses"] > 10
    assert surroundings.texts(300)["losses"] > 10
    monkeypatch.setattr(surroundings.native, "_is_ours", lambda _: True)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert surroundings.kernels(8, tmp_path)["losses"] > 0  # another's, or writable by others, is loaded
