"""`data.n_train` as an axis of a study: data efficiency."""

from bench.config.study import resolve_study
from bench.run.batches import load_data


def test_training_subsets_are_an_axis_of_a_grid_and_each_is_a_run_of_its_own():
    grid = {
        "data.n_train": [200, 1000, None],
        "method": ["haar"],
        "backbone": [{"name": "dit", "size": "tiny"}],
        "seed": [0],
    }
    runs = resolve_study({"study": "few", "base": {"data": {"name": "mini"}}, "grid": grid}, "few").runs
    found = [load_data(run) for run in runs]
    assert [len(data.train) for data in found] == [200, 1000, 4000]
    assert len({run.run_name(data.fingerprint) for run, data in zip(runs, found, strict=True)}) == 3
    for data in found[1:]:
        assert data.test.positions.tobytes() == found[0].test.positions.tobytes()
    assert found[0].facts.sizes != found[2].facts.sizes
