"""When displacement is said: as soon as the newest figures show it, and without reading the whole log at every entry."""

import pytest
from transformers import TrainerControl, TrainerState, TrainingArguments

from mmpo.train.training.displacement import Displacement, fallen

LOOKS = []


class Entry(dict):
    """A log entry that notes when something is looked up in it."""

    def __contains__(self, key):
        LOOKS.append(key)
        return super().__contains__(key)


def entry(fall, prefix=""):
    """Both completions' figures after a fall of so many nats from -100, at β = .1: more than 5 nats count."""
    figures = {f"logps/{side}": -100.0 - fall for side in ("chosen", "rejected")}
    figures |= {f"rewards/{side}": -0.1 * fall for side in ("chosen", "rejected")}
    return Entry({prefix + name: value for name, value in figures.items()})


@pytest.fixture
def said(tmp_path, capsys):
    """Hands the callback a growing log, entry by entry; the places after which it said something."""
    args = TrainingArguments(output_dir=str(tmp_path), use_cpu=True)

    def run(entries):
        state, callback, places = TrainerState(log_history=[]), Displacement(0.1), []
        for place, one in enumerate(entries):
            state.log_history.append(one)
            callback.on_log(args, state, TrainerControl())
            places += [place] * capsys.readouterr().err.count("likelihood displacement")
        return places

    return run


def test_training_figures_are_averaged_over_five_entries(said):
    """Falls ½, 1½, 2½, ...: the mean of five passes 5 nats where they are 3½ to 7½, at 5½; one before it is 4½."""
    falls = [entry(fall + 0.5) for fall in range(12)]
    assert said(falls) == [7]
    assert said([entry(50)] * 4) == []  # too few
    other = {"eval_runtime": 1.0}
    assert said([one for fall in falls for one in (fall, Entry(other))]) == [14]  # what has no figures does not count


def test_one_measurement_on_held_out_pairs_is_enough(said):
    assert said([entry(0), entry(3, "eval_"), entry(6, "eval_"), entry(7, "eval_")]) == [2]
    assert fallen(entry(6), 0.1) and not fallen(entry(3), 0.1)


def test_each_entry_is_looked_at_a_few_times_whatever_the_length_of_the_log(said):
    LOOKS.clear()
    assert said([entry(0) for _ in range(400)]) == []
    assert len(LOOKS) <= 400 * (1 + 5 * 4)
