"""Weighted terms: values and gradients by hand, ties in and out of each term, weights by prompt and source, and steps in parts."""

import math
import re

import numpy as np
import pytest
import torch
from folders import split_folder
from training_cases import make_pairs, user_error

from mmpo.pipeline.errors import UserError
from mmpo.train.data import Renderer, check_sources, prepare, usable_pairs
from mmpo.train.objective import LOSSES, TERMS, Lists, Logits, Objective, pair_totals

LOG3 = math.log(3)
MARGIN = torch.tensor([2.0, 0.0, 1.0, 0.0], dtype=torch.float64)
P = torch.tensor([0.6, 0.5, 0.6, 0.5], dtype=torch.float64)
WEIGHT = torch.tensor([1.0, 0.25, 0.5, 2.0], dtype=torch.float64)


def logits(seed=0, pairs=4):
    values = torch.randn(4, pairs, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).unbind()
    return Logits(*(value.clone().requires_grad_() for value in values))


def total(objective, at, p=P, margin=MARGIN, weight=WEIGHT, totals=None):
    return objective.total(objective.per_pair(at, p, margin), weight, margin, totals)


def test_two_terms_by_hand():
    """z = log 3 is σ(z) = 3/4: mmpo at p = .6 is .6·log 4/3 + .4·log 4, at p = ½ (a tie) half of both; dpo is log 4/3.

    Weights 1 and 3, the second pair a tie: mmpo's mean is over both, dpo's over the first alone, whatever the tie weighs.
    """
    right, wrong = math.log(4 / 3), math.log(4)
    objective = Objective.parse("mmpo=2,dpo=0.5", gamma=0.2)
    at = Logits(torch.full((2,), LOG3, dtype=torch.float64))
    given = {"p": P[:2], "margin": MARGIN[:2], "weight": torch.tensor([1.0, 3.0], dtype=torch.float64)}
    mmpo = (1 * (0.6 * right + 0.4 * wrong) + 3 * (0.5 * right + 0.5 * wrong)) / 4
    assert float(total(objective, at, **given)) == pytest.approx(2 * mmpo + 0.5 * right, abs=1e-12)
    values = {name: value.numpy() for name, value in objective.per_pair(at, P[:2], MARGIN[:2]).items()}
    assert objective.means(values, given["weight"], MARGIN[:2]) == pytest.approx(
        {"loss": 2 * mmpo + 0.5 * right, "loss/mmpo": mmpo, "loss/dpo": right}
    )


def test_sft_and_ipo_read_their_own_values_by_hand():
    """ipo: (z̄/β − 1/(2β))² at z̄ = 1, β = ½ is 1; sft is the mean of 3 and 5 weighted 1 : ½, 11/3; ties weigh nothing."""
    objective = Objective.parse("ipo=0.1,sft=3", beta=0.5)
    at = Logits(torch.full((4,), 7.0).double(), torch.ones(4).double(), torch.tensor([3.0, 1e6, 5.0, 1e6]).double())
    assert float(total(objective, at)) == pytest.approx(0.1 * 1 + 3 * 11 / 3, abs=1e-12)


def test_centering_by_hand():
    """(r_w + r_l)², ties too: 1, 4, 9 and 16 weighted 1, ¼, ½ and 2 are 38.5 of 3.75."""
    at = Logits(torch.zeros(4).double(), sum=torch.tensor([1.0, -2.0, 3.0, -4.0]).double())
    assert float(total(Objective.parse("mmpo=1,centering=0.1"), at)) == pytest.approx(math.log(2) + 0.1 * 38.5 / 3.75)


def test_a_prompts_list_weighs_what_its_pairs_do():
    """Prompt 0 has the completions 0, 1, 2 and three pairs, prompt 1 two completions and one pair; all z are 0, so that they cost log 3 and
    log 2. With weights 1, ¼, ½ for the three pairs and 2 for the other: (1.75·log 3 + 2·log 2)/3.75. Of every pair weighted 1/(pairs of
    its prompt), prompts count alike.
    """
    zero = torch.zeros(5).double()
    lists = Lists(zero, torch.arange(5.0).double(), torch.tensor([0, 0, 0, 1, 1]), torch.tensor([0, 0, 0, 1]))
    objective, at = Objective.parse("listwise"), Logits(torch.zeros(4).double(), lists=lists)
    assert float(total(objective, at)) == pytest.approx((1.75 * math.log(3) + 2 * math.log(2)) / 3.75)
    alike = torch.tensor([1, 1, 1, 3]).double() / 3
    assert float(total(objective, at, weight=alike)) == pytest.approx((math.log(3) + math.log(2)) / 2)
    assert float(total(Objective.parse("mmpo=1,listwise=1"), at, weight=alike)) == pytest.approx(
        (math.log(3) + 3 * math.log(2)) / 2
    )


@pytest.mark.parametrize("name", LOSSES)
def test_a_single_term_is_the_loss_itself(name):
    at, decided = logits(), MARGIN > 0
    objective = Objective.parse(name, gamma=0.7, beta=0.1)
    z = at.z_mean if name == "ipo" else at.z
    used = decided if LOSSES[name].needs_winner else torch.ones_like(decided)
    expected = LOSSES[name].per_pair(z[used], P[used], MARGIN[used], gamma=0.7)
    torch.testing.assert_close(total(objective, at), (WEIGHT[used] * expected).sum() / WEIGHT[used].sum())
    assert str(objective) == name


def gradient(objective, **given):
    at = logits()
    found = torch.autograd.grad(total(objective, at, **given), (at.z, at.z_mean, at.nll, at.sum), allow_unused=True)
    return torch.stack([torch.zeros(4).double() if part is None else part for part in found])


def test_the_gradient_of_the_sum_is_the_sum_of_the_weighted_gradients():
    seen = torch.zeros(4).bool()
    for terms, beta in ([n for n in TERMS if n != "centering"], 0.1), (["mmpo", "centering", "ordinal"], None):
        weights = {name: 0.1 * place + 0.3 for place, name in enumerate(terms)}
        alone = {name: gradient(Objective.parse(name, gamma=0.7, beta=beta)) for name in terms if name != "centering"}
        if "centering" in terms:
            alone["centering"] = gradient(Objective.parse("mmpo=1,centering=1", gamma=0.7)) - alone["mmpo"]
        together = sum(weight * alone[name] for name, weight in weights.items())
        torch.testing.assert_close(gradient(Objective.parse(weights, gamma=0.7, beta=beta)), together)
        seen |= (together != 0).any(dim=1)
    assert seen.all()


@pytest.mark.parametrize("name", [name for name in TERMS if TERMS[name].needs_winner])
def test_a_tie_has_neither_value_nor_gradient_where_a_winner_is_needed(name):
    """odpo's log 0 among them."""
    objective = Objective.parse(f"mmpo=1,{name}=1", beta=0.1)
    at = logits()
    values = objective.per_pair(at, P, MARGIN)[name]
    found = [g for g in torch.autograd.grad(values.sum(), (at.z, at.z_mean, at.nll), allow_unused=True) if g is not None]
    assert (values[MARGIN == 0] == 0).all() and (values[MARGIN > 0] != 0).all()
    assert len(found) == 1 and (found[0][MARGIN == 0] == 0).all() and (found[0][MARGIN > 0] != 0).all()


@pytest.mark.parametrize("loss", ["mmpo=1,odpo=1,sft=1", "dpo", "sft"])
def test_a_step_of_ties_only_leaves_the_term_at_nothing(loss):
    objective = Objective.parse(loss, beta=0.1)
    ties = {"p": torch.full_like(P, 0.5), "margin": torch.zeros_like(MARGIN)}
    found = gradient(objective, **ties)
    assert torch.isfinite(found).all() and (found[1:] == 0).all()
    expected = total(Objective.parse("mmpo"), logits(), **ties).item() if "mmpo" in loss else 0.0
    assert total(objective, logits(), **ties).item() == pytest.approx(expected)


def test_the_shares_of_any_partition_add_up_to_the_whole():
    objective = Objective.parse("mmpo=1,odpo=0.3,sft=0.5", beta=0.1)
    totals = pair_totals(WEIGHT, MARGIN)
    assert totals == (3.75, 1.5)
    at, parts = logits(), []
    for part in ([1], [0, 3], [2]):  # the first part holds nothing but a tie
        own = Logits(*(value[part] for value in (at.z, at.z_mean, at.nll)))
        parts.append(total(objective, own, P[part], MARGIN[part], WEIGHT[part], totals))
    torch.testing.assert_close(sum(parts), total(objective, at))


def test_options_nested_dotted_or_flat_are_the_same():
    ways = ({"cdpo": {"epsilon": 0.2}}, {"cdpo.epsilon": "0.2"}, {"epsilon": 0.2})
    assert all(Objective.parse("mmpo=1,cdpo=1", given).terms[1].options == {"epsilon": 0.2} for given in ways)
    (odpo,) = Objective.parse("odpo", {"alpha": "2", "transform": "identity"}).terms
    assert odpo.options == {"alpha": 2.0, "transform": "identity"}


@pytest.mark.parametrize(
    ("loss", "options", "said"),
    [
        ("cdpo=1,robust=1", {"epsilon": 0.1}, "write cdpo.epsilon or robust.epsilon"),
        ("mmpo=1,cdpo=1", {"robust": {"epsilon": 0.1}}, "unknown term in loss_options 'robust'"),
        ("mmpo=1,cdpo=1", {"epsilom": 0.1}, "did you mean 'cdpo.epsilon'"),
        ("mmpo=1,cdpo=1", {"cdpo": {"epsilon": 0.1}, "epsilon": 0.2}, "epsilon of cdpo twice"),
        ("mmpo=1,cdpo=1", {"cdpo": {"epsilon": 0.7}}, r"epsilon must be a number in \[0, 0.5\)"),
        ("sft", {"alpha": 1}, "option of loss sft"),
        ("ipo", {"beta": 0.2}, "set beta, not loss_options.beta"),
        ("mmpo=1,mmop=1", {}, "did you mean 'mmpo'"),
        ("centering=0.1", {}, "beside a loss, such as mmpo=1,centering=0.01"),
        ("mmpo=1,centering=0.1", {}, "reward models only"),
        *((loss, None, "policies only") for loss in ("ipo", "sft", "mmpo=1,sft=0.1")),  # without beta: a reward model's
    ],
)
def test_what_cannot_work_is_refused(loss, options, said):
    assert re.search(said, user_error("", Objective.parse, loss, options, beta=None if options is None else 0.1))


def test_each_term_is_logged_by_itself(trainer_of):
    trainer = trainer_of(loss="mmpo=1,sft=0.5", pairs_per_step=10**6)
    trainer.args.logging_steps = 1
    trainer.train()
    logged = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert len(logged) == 2
    for entry in logged:
        assert entry["loss"] == pytest.approx(entry["loss/mmpo"] + 0.5 * entry["loss/sft"], abs=1e-4)
    plain = trainer_of("reward")
    plain.args.logging_steps = 1
    plain.train()
    assert not any(name.startswith("loss/") for entry in plain.state.log_history for name in entry)


def test_source_weights_multiply_and_zero_leaves_out(pairs, tokenizer, trainer_of):
    sources = np.array(pairs["source"].to_pylist())
    renderer = Renderer(tokenizer, 1024, 512)
    for weight in ("pair", "prompt"):
        for prompt in prepare(pairs, np.full(len(pairs), 0.7), renderer, weight, {"source-0": 2.5}).prompts:
            factor = np.where(sources[prompt.rows] == "source-0", 2.5, 1.0)
            assert (prompt.weight == factor / (1 if weight == "pair" else len(prompt.rows))).all()
    kept, counts = usable_pairs(pairs, ties=False, source_weights={"source-0": 0.0, "source-1": 4})
    assert set(kept["source"].to_pylist()) == {"source-1"} and min(kept["quality_margin"].to_pylist()) > 0
    assert kept.num_rows + counts["dropped_source_weight"] + counts["dropped_ties"] == pairs.num_rows
    assert counts["dropped_source_weight"] == (sources == "source-0").sum()
    # a weight of two counts like the pairs twice
    trainer, plain = trainer_of("reward", source_weights={"source-0": 2.0}), trainer_of("reward")
    values = plain.predict_pairs(plain.prompts)
    expected = np.average(values["loss/mmpo"], weights=np.where(sources[values["rows"]] == "source-0", 2.0, 1.0))
    assert trainer.evaluate(trainer.prompts)["eval_loss"] == pytest.approx(expected, abs=1e-6)
    assert abs(expected - values["loss/mmpo"].mean()) > 1e-5


def test_sources_that_are_not_there_are_named(pairs, trainer_of):
    message = user_error("did you mean 'source-1'", check_sources, pairs, {"source-9": 2.0})
    assert "source-0, source-1" in message and "'a + b'" in message
    user_error("unknown source", trainer_of, source_weights={"arena": 2.0})
    user_error("-1 is not 0 or more", trainer_of, source_weights={"source-0": -1})


@pytest.mark.slow
def test_the_record_counts_what_each_term_leaves_out(train_tiny, record_of, tmp_path):
    folder = split_folder(tmp_path / "data", train=make_pairs(6, [7]), validation=make_pairs(2, [3], seed=4))  # two ties a prompt
    counts = {}
    for name, loss, more in (
        ("soft", "mmpo", {}),
        ("drop", "mmpo", {"ties": "drop"}),
        ("both", "mmpo=1,sft=0.1", {}),
        ("none", "dpo=1,sft=0.1", {}),
        ("half", "mmpo=1,sft=0.1", {"source_weights": {"source-1": 0.0}}),
    ):
        train_tiny("policy", folder, tmp_path / name, max_steps=1, loss=loss, **more)
        counts[name] = record_of(tmp_path / name)["counts"]
        assert record_of(tmp_path / name)["options"]["loss"] == loss
    assert counts["soft"] == {"pairs_in": 126, "pairs": 126, "prompts": 6}
    assert counts["both"] == {"pairs_in": 126, "pairs": 126, "prompts": 6, "ties_without_sft": 12}
    assert counts["none"] == counts["drop"] == {"pairs_in": 126, "dropped_ties": 12, "pairs": 114, "prompts": 6}
    assert counts["half"] == {"pairs_in": 126, "dropped_source_weight": 63, "pairs": 63, "prompts": 3, "ties_without_sft": 6}
    with pytest.raises(UserError, match="unknown source 'source-2'"):
        train_tiny("reward", folder, tmp_path / "no", max_steps=1, source_weights={"source-2": 1.0})
