"""Objectives in a run: prompts' lists in micro-batches, length-normalised logits, centering, and what losses learn beside the model."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest
import torch
from folders import changed, split_folder
from panels import graded_pairs
from training_cases import make_pairs, user_error

from mmpo.cli.main import run
from mmpo.train.evaluation import evaluate
from mmpo.train.objective import LOSSES
from mmpo.train.options import TrainOptions


def losses_of(trainer, **changes):
    trainer.tokens_per_batch = changes.pop("tokens_per_batch", trainer.tokens_per_batch)
    step = trainer.make_step(trainer.prompts)
    return step, [
        trainer.compute_loss(trainer.model, batch, False, (step.total_weight, step.decided_weight)) for batch in step.batches
    ]


@pytest.mark.parametrize("kind", ["policy", "reward"])
def test_listwise_is_the_mean_over_prompts_in_any_micro_batches(kind, trainer_of):
    """Of every prompt by itself, from its completions' values; weighted by its pairs, or with `weight="prompt"` alike."""
    for weight in ("pair", "prompt"):
        trainer = trainer_of(kind, loss="listwise", weight=weight, run={"tiny_size": 16}, gamma=0.8)
        with torch.no_grad():
            for value in trainer.model.parameters():
                value.add_(0.1 * torch.randn(value.shape, generator=torch.Generator().manual_seed(1)))
        expected, size = 0.0, 0.0
        for prompt in trainer.prompts:
            (batch,) = trainer.make_step([prompt]).batches
            z = trainer.values(trainer.model, batch.parts[0])
            z = trainer.beta * (z - batch.reference) if kind == "policy" else z
            target = torch.softmax(0.8 * torch.from_numpy(prompt.scores).float(), 0)
            own = len(prompt.rows) if weight == "pair" else 1
            expected, size = expected - own * float((target * torch.log_softmax(z, 0)).sum().detach()), size + own
        for tokens in (60, 400, 10**6):
            step, losses = losses_of(trainer, tokens_per_batch=tokens)
            assert float(sum(losses).detach()) == pytest.approx(expected / size, abs=1e-5)
        assert len(step.batches) == 1


def test_listwise_starts_at_log_k_and_takes_the_same_step_in_parts(trainer_of):
    trainer = trainer_of(loss="listwise", weight="prompt")
    _, losses = losses_of(trainer)
    counts = [len(prompt.completions) for prompt in trainer.prompts]
    assert float(sum(losses).detach()) == pytest.approx(np.log(counts).mean(), abs=1e-5)
    weights = []
    for tokens in (60, 10**6):
        trainer = trainer_of(loss="listwise=1,davidson=0.5", tokens_per_batch=tokens, pairs_per_step=10**6)
        trainer.train()
        weights.append(torch.cat([value.detach().reshape(-1) for value in trainer.model.parameters()]))
        weights[-1] = torch.cat([weights[-1], trainer.objective.parameters["davidson.log_nu"].detach().reshape(-1)])
    torch.testing.assert_close(*weights, rtol=1e-4, atol=1e-5)


def test_listwise_of_two_completions_trains_as_mmpo(trainer_of):
    """The same logits and losses after the same steps, at the same γ, where every prompt has one pair."""
    data, found = make_pairs(9, [2], seed=5), []
    for loss in ("listwise", "mmpo"):
        trainer = trainer_of("reward", data=data, loss=loss, gamma=0.6)
        trainer.train()
        values = trainer.predict_pairs(trainer.prompts)
        found.append((values["z"], values[f"loss/{loss}"]))
    assert np.abs(found[0][0]).max() > 0.001
    np.testing.assert_allclose(*found, atol=1e-5)


def without_score(table, rows):
    column = table["score_rejected"].to_pylist()
    changed = pa.array([None if place in rows else value for place, value in enumerate(column)], pa.float64())
    return table.set_column(table.schema.get_field_index("score_rejected"), "score_rejected", changed)


def test_listwise_is_refused_where_scores_are_null_or_differ(pairs, trainer_of, train_tiny, tmp_path):
    folder = split_folder(tmp_path / "data", train=make_pairs(4, [3]), validation=without_score(make_pairs(2, [3], seed=1), {2}))
    said = user_error("completions without a score of their own", train_tiny, "reward", folder, tmp_path / "out", loss="listwise")
    assert "data (validation): 1 of 12 sides" in said and "prompt_id" in said and "--loss mmpo" in said
    assert not (tmp_path / "out").exists()
    place = pairs.schema.get_field_index("score_chosen")
    mixed = pairs.set_column(place, "score_chosen", pa.array(np.arange(1.0 * pairs.num_rows)))
    user_error("with another score than", trainer_of, loss="listwise", data=mixed)
    trainer_of("reward", data=without_score(pairs, {0}))  # others do not need them


@pytest.mark.parametrize("scores", [None, np.nan])
def test_listwise_of_prepared_prompts_is_refused_where_scores_are_null(scores, trainer_of):
    prompts = trainer_of("reward").prompts
    lacks = [replace(prompts[0], scores=scores and np.full(len(prompts[0].completions), scores)), *prompts[1:]]
    said = user_error("have completions without a score", trainer_of, "reward", loss="listwise", data=lacks)
    assert f"1 of {len(prompts)} prompts" in said and prompts[0].prompt_id in said and "loss='mmpo'" in said
    assert trainer_of("reward", loss="listwise", data=prompts).prompts == prompts
    assert trainer_of("reward", data=lacks).prompts == lacks


def test_length_normalised_logits_are_of_means_per_token(trainer_of, other_policy, train_tiny, dataset, tmp_path):
    """Every loss then reads what ipo always has; an evaluation of the trained model measures the same logit."""
    plain, normal = (trainer_of(beta=2.0, ref_model=other_policy, length_normalised=way) for way in (False, True))
    one, two = (trainer.predict_pairs(trainer.prompts) for trainer in (plain, normal))
    counts = {row: prompt for prompt in normal.prompts for row in prompt.rows.tolist()}
    expected = []
    for row, *logps in zip(one["rows"].astype(int), one["rewards/chosen"], one["rewards/rejected"], strict=True):
        prompt = counts[row]
        at = prompt.rows.tolist().index(row)
        tokens = [
            len(prompt.completions[side[at]].ids) - prompt.completions[side[at]].start for side in (prompt.chosen, prompt.rejected)
        ]
        expected.append(logps[0] / tokens[0] - logps[1] / tokens[1])
    assert two["z"] == pytest.approx(np.array(expected), abs=1e-5) and np.abs(one["z"] - two["z"]).max() > 0.1
    assert two["loss/mmpo"] == pytest.approx(np.logaddexp(0, two["z"]) - two["p"] * two["z"], abs=1e-5)
    summary = train_tiny("policy", dataset, tmp_path / "run", length_normalised=True, beta=5.0, learning_rate=3e-3, epochs=2)
    found = evaluate("policy", tmp_path / "run", dataset, split="validation")
    for name in ("accuracy", "cross_entropy", "ece_target"):
        assert found[name] == pytest.approx(summary["metrics"][name], abs=1e-4)
    user_error(
        "length_normalised averages log-probabilities per token.*policies only", TrainOptions, "reward", length_normalised=True
    )


@pytest.fixture
def other_policy(tokenizer):
    from mmpo.train.model import tiny_model

    return tiny_model("policy", tokenizer, size=32, layers=1, seed=7)


@pytest.mark.slow
def test_centering_pulls_the_rewards_to_zero(trainer_of):
    found = {}
    for loss in ("mmpo", "mmpo=1,centering=1"):
        trainer = trainer_of("reward", loss=loss, run={"max_steps": 40})
        with torch.no_grad():  # a bias of the head that no pair sees
            trainer.model.score.weight += 0.3
        trainer.train()
        values = trainer.predict_pairs(trainer.prompts)
        found[loss] = np.mean((values["rewards/chosen"] + values["rewards/rejected"]) ** 2)
    assert found["mmpo=1,centering=1"] < 0.1 * found["mmpo"]
    user_error("reward models only", TrainOptions, "policy", loss="mmpo=1,centering=0.1")


def test_what_is_learned_is_started_from_the_pairs_stepped_and_told(train_tiny, record_of, dataset, tmp_path, capsys):
    options = {"loss": "ordinal=1,davidson=0.5", "epochs": 6, "learning_rate": 3e-3, "logging_steps": 1, "loss_learning_rate": 0.05}
    summary = train_tiny("reward", dataset, tmp_path / "run", **options)
    record = record_of(tmp_path / "run")
    learned, curves = record["learned"], record["history"]
    assert learned == summary["learned"]
    ordinal, davidson = learned["ordinal"], learned["davidson"]
    assert ordinal["levels"] == [0.0, 1.0, 2.0, 3.0, 4.0] and np.all(np.diff(ordinal["thresholds"]) > 0)
    assert curves["ordinal/gamma"][-1] == ordinal["gamma"] and curves["davidson/nu"][-1] == davidson["nu"]
    assert len(set(curves["ordinal/gamma"])) > 5 and len(set(curves["davidson/nu"])) > 5
    said = capsys.readouterr().err
    assert (
        f"γ = {ordinal['gamma']:.4g}" in said
        and "the convention of --gamma auto, mean target" in said
        and f"ν = {davidson['nu']:.3g}" in said
    )
    fixed = train_tiny("reward", dataset, tmp_path / "fixed", loss="davidson", loss_options={"log_nu": 0.0}, max_steps=2)
    assert fixed["learned"]["davidson"]["nu"] == 1.0
    assert not (tmp_path / "run" / "objective.pt").exists()  # the folder holds a plain model


def test_early_stopping_keeps_what_the_best_model_had_learned(train_tiny, record_of, dataset, tmp_path):
    options = {"early_stopping": 2, "eval_steps": 2, "logging_steps": 2, "epochs": 40, "schedule": "constant"}
    options |= {"loss": "ordinal", "learning_rate": 0.02, "loss_learning_rate": 0.1}
    summary = train_tiny("reward", dataset, tmp_path / "run", **options)
    curves = record_of(tmp_path / "run")["history"]
    assert summary["best_step"] < summary["steps"]
    at = curves["ordinal/gamma"][curves["steps"].index(summary["best_step"])]
    assert summary["learned"]["ordinal"]["gamma"] == at != curves["ordinal/gamma"][-1]


def voted(table, seed):
    """The same pairs with votes and margins of three raters, by completions' grades."""
    columns, _ = graded_pairs(1.5, 3, pairs=table.num_rows)
    random = np.random.default_rng(seed)
    take = random.permutation(table.num_rows)
    for name, values in columns.items():
        place = table.schema.get_field_index("quality_margin" if name == "quality_margin" else name)
        table = table.set_column(place, table.schema.field(place), pa.array(values[take]).cast(table.schema.field(place).type))
    return table


def test_levels_of_a_run_are_learned_in_training_and_measured_with(train_tiny, record_of, tmp_path):
    """On held-out pairs without votes as well."""
    held_out = make_pairs(6, [4], seed=9)
    assert set(held_out["raters"].to_pylist()) == {1}
    folder = split_folder(tmp_path / "data", train=voted(make_pairs(12, [6]), 0), validation=held_out, test=held_out)
    summary = train_tiny("reward", folder, tmp_path / "run", target="levels", epochs=2)
    levels = record_of(tmp_path / "run")["target_levels"]
    assert levels["margins"][0] == 0.0 and levels["p"][0] == 0.5 and np.all(np.diff(levels["p"]) >= 0) and levels["p"][-1] > 0.6
    found = evaluate("reward", tmp_path / "run", folder, per_pair=tmp_path / "pairs.parquet")
    assert found["cross_entropy"] == pytest.approx(summary["metrics"]["cross_entropy"], abs=1e-4)
    user_error(
        "none of the 36 pairs has them",
        train_tiny,
        "reward",
        split_folder(tmp_path / "few", train=held_out),
        tmp_path / "no",
        target="levels",
    )


def test_what_is_learned_and_asked_of_pairs_leaves_out_sources_of_weight_0(trainer_of, train_tiny, tmp_path):
    """The levels of a trainer; the scores that a loss of whole lists needs."""
    table = voted(make_pairs(12, [6]), 0)
    mine = [row for row, source in enumerate(table["source"].to_pylist()) if source == "source-1"]
    fitted = [
        trainer_of("reward", data=data, target="levels", source_weights=weights).target.p.tolist()
        for data, weights in ((table, {"source-0": 0.0}), (table.take(mine), None), (table, None))
    ]
    assert fitted[0] == fitted[1] != fitted[2]
    bare = changed(table, "score_chosen", dict.fromkeys(set(range(len(table))) - set(mine)))
    user_error("needs one score", trainer_of, "reward", data=bare, loss="listwise")
    trainer_of("reward", data=bare, loss="listwise", source_weights={"source-0": 0.0})
    folder = split_folder(tmp_path / "data", train=bare, validation=bare)
    train_tiny("reward", folder, tmp_path / "run", loss="listwise", source_weights={"source-0": 0.0}, max_steps=1)


def gamma_learned_with_the_model(loss, steps=1500):
    """A linear model that explains about 60% of the margins' variance, trained with log γ in full batch; the last γ and z's mean size."""
    random = np.random.default_rng(0)
    x = torch.from_numpy(random.normal(size=(400, 5)))
    margin = x @ torch.tensor([1.0, -0.5, 0.8, 0.0, 0.3]).double() + torch.from_numpy(random.normal(size=400))
    x, margin = x * margin.sign()[:, None], margin.abs()
    weight, log_gamma = (
        torch.zeros(5, dtype=torch.float64, requires_grad=True),
        torch.zeros((), dtype=torch.float64, requires_grad=True),
    )
    optimizer = torch.optim.Adam([weight, log_gamma], lr=0.05)
    seen = []
    for _ in range(steps):
        optimizer.zero_grad()
        z, p = x @ weight, torch.sigmoid(log_gamma.exp() * margin)
        LOSSES[loss].per_pair(z, p, margin).mean().backward()
        optimizer.step()
        seen.append((log_gamma.exp().item(), z.detach().abs().mean().item()))
    return seen, margin


@pytest.mark.slow
def test_a_gamma_learned_with_the_model_is_not_identified():
    """By cross-entropy γ grows until the targets are hard labels, and what is trained is Bradley–Terry. By divergence it shrinks until
    targets and logits are nothing: both 0 fit one another perfectly. Neither stops at a γ that the data would have.
    """
    (seen, margin), (hard, _) = gamma_learned_with_the_model("mmpo"), gamma_learned_with_the_model("dpo")
    gammas = [gamma for gamma, _ in seen[100::200]]
    assert all(after > before for before, after in pairwise(gammas)) and gammas[-1] > 1000
    assert float(torch.sigmoid(gammas[-1] * margin).mean()) > 0.999 and seen[-1][1] == pytest.approx(hard[-1][1], rel=1e-3)
    seen, _ = gamma_learned_with_the_model("rpo-bwd")
    gammas = [gamma for gamma, _ in seen[100::200]]
    assert all(after < before for before, after in pairwise(gammas)) and gammas[-1] < 0.03 and seen[-1][1] < 0.03


@pytest.mark.parametrize(("loss", "said"), [("mmpo", True), ("dpo", False), ("ordinal", False)])
def test_gamma_is_told_where_it_is_used(loss, said, dataset, tmp_path, capsys):
    command = ["train", "reward", "--data", str(dataset), "--model", "tiny", "--out", str(tmp_path / "out"), "--max-steps", "1"]
    assert run([*command, "--loss", loss]) == 0
    [line] = [one for one in capsys.readouterr().err.splitlines() if "steps, training loss" in one]
    assert ("γ" in line) is said
