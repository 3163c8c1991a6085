"""Models as graders: values against a plain loop and against what evaluation measures, grades that are there, several models, bad input."""

import json
import math

import numpy as np
import pytest
import torch
from folders import feedback_folder, read_table
from huggingface_hub import constants
from training_cases import save_model, small_model, user_error

from mmpo.cli.main import run
from mmpo.pipeline.storage import read_manifest
from mmpo.train import evaluate, score
from mmpo.train.data import Renderer
from mmpo.train.model import load_pretrained, tiny_model
from mmpo.train.scoring import scorers_of

CHAT = [{"role": "user", "content": "Question 0?"}]


@pytest.fixture(scope="module")
def feedback(dataset, tmp_path_factory):
    """The prompts and completions of the test split, without grades."""
    rows = {}
    for pair in read_table(dataset / "test").to_pylist():
        row = rows.setdefault(pair["prompt_id"], {"prompt": pair["prompt"], "completions": []})
        row["completions"] += [pair[side][0]["content"] for side in ("chosen", "rejected")]
    rows = [{**row, "completions": list(dict.fromkeys(row["completions"]))} for row in rows.values()]
    return feedback_folder(tmp_path_factory.mktemp("feedback") / "feedback", rows)


def grades_of(folder):
    """{(completion id, rater): score} of a FEEDBACK folder."""
    rows = read_table(folder / "feedback").to_pylist()
    return {
        (row["completions"][grade["completion"]]["id"], grade["rater"]): grade["score"] for row in rows for grade in row["ratings"]
    }


def rendered(folder, tokenizer):
    """(completion id, its tokens, where it starts) of each completion."""
    renderer = Renderer(tokenizer, 1024, 512)
    for row in read_table(folder / "feedback").to_pylist():
        renderer.prompt_ids(row["prompt"])
        for one in row["completions"]:
            item = renderer.completion([{"role": "assistant", "content": one["text"]}])
            yield one["id"], torch.tensor(item.ids)[None].long(), item.start


def logprob(model, ids, start):
    """log p of the tokens from `start` on, by transformers alone."""
    with torch.no_grad():
        logs = model(ids).logits.log_softmax(-1)[0, start - 1 : -1]
    return float(logs.gather(1, ids[0, start:, None]).sum())


def test_scores_are_those_of_a_plain_loop_and_differences_are_what_evaluation_measures(trained, dataset, feedback, tmp_path):
    found = score(feedback, list(trained.values()), tmp_path / "scored")
    assert [(row["rater"], row["kind"], row["grades"], row["left_out"]) for row in found["raters"]] == [
        ("policy", "policy", 32, {}),
        ("reward", "reward", 32, {}),
    ]
    grades = grades_of(tmp_path / "scored")
    model, tokenizer = load_pretrained("reward", str(trained["reward"]))
    for name, ids, _ in rendered(feedback, tokenizer):
        with torch.no_grad():
            assert grades[name, "reward"] == pytest.approx(float(model(ids).logits[0, 0]), abs=1e-5)
    policy, tokenizer = load_pretrained("policy", str(trained["policy"]))
    reference, _ = load_pretrained("policy", str(trained["policy"] / "reference"))
    for name, ids, start in rendered(feedback, tokenizer):
        ratio = logprob(policy, ids, start) - logprob(reference, ids, start)
        assert grades[name, "policy"] == pytest.approx(0.1 * ratio, abs=1e-4)
    for kind, folder in trained.items():
        evaluate(kind, folder, dataset, split="test", per_pair=tmp_path / "pairs.parquet", bootstrap=0)
        for pair in read_table(tmp_path / "pairs.parquet").to_pylist():
            gap = grades[pair["chosen_id"], kind] - grades[pair["rejected_id"], kind]
            assert gap == pytest.approx(pair["z"], abs=1e-5)


def test_an_implicit_reward_by_hand(tokenizer, tmp_path):
    """A policy whose output layer is 0 gives each of V tokens 1/V; against a reference that gives a reply log-probability r, one of n
    tokens has the reward β(−n log V − r)."""
    policy, other = (tiny_model("policy", tokenizer, size=16, layers=1, seed=seed) for seed in (0, 1))
    policy.lm_head.weight.data.zero_()
    folders = [save_model(tmp_path / name, model, tokenizer) for name, model in (("uniform", policy), ("other", other))]
    feedback = feedback_folder(tmp_path / "feedback", 2)
    score(feedback, f"{folders[0]},reference={folders[1]},beta=0.5", tmp_path / "out")
    grades = grades_of(tmp_path / "out")
    for name, ids, start in rendered(feedback, tokenizer):
        n = ids.shape[1] - start
        by_hand = 0.5 * (-n * math.log(policy.config.vocab_size) - logprob(other, ids, start))
        assert grades[name, "uniform"] == pytest.approx(by_hand, abs=1e-4)


def test_a_policy_against_itself_is_refused(tokenizer, tmp_path):
    """All its implicit rewards would be 0; a copy elsewhere is the same model."""
    model = tiny_model("policy", tokenizer, size=16, layers=1, seed=0)
    policy, copy = (save_model(tmp_path / name, model, tokenizer) for name in ("policy", "copy"))
    feedback = feedback_folder(tmp_path / "feedback", 2)
    for reference in (policy, copy):
        said = user_error("have the same weights", score, feedback, f"{policy},reference={reference}", tmp_path / "out")
        assert "all of them would be 0" in said and not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["nosuch", "own/typo"])
def test_a_name_that_is_no_model_is_refused_before_the_libraries_look_for_it(name, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    said = user_error("no model of that name in the cache", score, feedback_folder(tmp_path / "f", 2), name, tmp_path / "out")
    assert "http://127.0.0.1:9 can't be reached" in said and "Retrying" not in caplog.text


@pytest.mark.parametrize("how", [{"layout": "rows"}, {"tokens_per_batch": 40}, {"bf16": True}])
def test_how_it_is_computed_changes_no_score(how, trained, feedback, tmp_path):
    score(feedback, trained["reward"], tmp_path / "one", cache=tmp_path / "cache")
    score(feedback, trained["reward"], tmp_path / "other", cache=tmp_path / "other-cache", **how)
    one, other = grades_of(tmp_path / "one"), grades_of(tmp_path / "other")
    assert other == pytest.approx(one, abs=0.05 if "bf16" in how else 1e-5)
    assert len(list((tmp_path / "cache").iterdir())) == 1


def test_grades_that_are_there_stay_and_a_second_run_adds_what_is_missing(trained, tmp_path, capfd):
    rows = [{"prompt": "Question?", "completions": ["Yes.", "No."], "scores": [4, 2], "rater": "anna", "kind": "human"}]
    few = feedback_folder(tmp_path / "few", rows)
    score(few, trained["reward"], tmp_path / "scored")
    first = grades_of(tmp_path / "scored")
    assert sorted(rater for _, rater in first) == ["anna"] * 2 + ["reward"] * 2
    rows.append({**rows[0], "completions": ["Maybe.", "Yes."], "scores": [3, 4]})
    more = feedback_folder(tmp_path / "more", rows)
    capfd.readouterr()
    again = score(more, trained["reward"], tmp_path / "scored")
    assert "2 of 3 completions are in" in capfd.readouterr().err  # from the cache
    assert again["raters"][0]["grades"] == 3
    second = grades_of(tmp_path / "scored")
    assert {key: second[key] for key in first} == first
    third = score(tmp_path / "scored", [trained["reward"], f"{trained['reward']},rater=twin"], tmp_path / "third")
    assert [(row["already"], row["grades"]) for row in third["raters"]] == [(3, 0), (0, 3)]
    grades = read_table(tmp_path / "third" / "feedback").to_pylist()[0]["ratings"]
    own = [grade for grade in grades if grade["rater"] == "reward"]
    assert len(own) == 3
    assert {(one["kind"], one["aspect"], one["low"], one["high"], one["spread"]) for one in own} == {
        ("reward_model", "overall", None, None, None)
    }


def test_one_rater_is_one_model(trained, tmp_path):
    """The manifest says which model's grades they are; where it is lost, the grades themselves do."""
    feedback = feedback_folder(tmp_path / "feedback", 2)
    score(feedback, f"{trained['reward']},rater=judge", tmp_path / "scored")
    other = f"{trained['policy']},rater=judge"
    user_error(
        r"4 grades by 'judge' that were made otherwise \(.*kind.*Give these grades",
        score,
        tmp_path / "scored",
        other,
        tmp_path / "x",
    )
    user_error(
        r"made otherwise \(max_length\)",
        score,
        tmp_path / "scored",
        f"{trained['reward']},rater=judge",
        tmp_path / "x",
        max_length=900,
    )
    assert run(["build", str(tmp_path / "scored"), "--format", "feedback", "--feedback-only", "--out", str(tmp_path / "bare")]) == 0
    user_error(r"4 of 4 grades by 'judge' are not those of .*policy", score, tmp_path / "bare", other, tmp_path / "x")
    same = score(tmp_path / "bare", f"{trained['reward']},rater=judge", tmp_path / "y")
    assert (same["raters"][0]["already"], same["raters"][0]["grades"]) == (4, 0)
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("evidence", ["ratings", "comparisons"])
def test_a_model_does_not_take_a_persons_name(evidence, trained, tmp_path):
    """A build goes by names: grades of the two would be averaged as those of one."""
    given = {"completion": "a", "score": 3} if evidence == "ratings" else {"first": "a", "second": "b", "gap": 1}
    folder = feedback_folder(tmp_path / "given", [{"prompt": "Q", "rater": "anna", **given}], kind="human")
    message = user_error("", score, folder, f"{trained['reward']},rater=anna", tmp_path / "out")
    assert "holds grades by 'anna' of the kind human, and one rater is one grader" in message
    assert not (tmp_path / "out").exists()


def test_completions_without_a_grade_are_counted_by_reason_and_named(trained, tmp_path):
    rows = [{"prompt": "Why? " * 60, "completions": ["Yes.", "No."]}, {"prompt": "Why?", "completions": ["No. " * 200, "Yes."]}]
    feedback = feedback_folder(tmp_path / "feedback", rows)
    found = score(feedback, trained["reward"], tmp_path / "out", max_prompt_length=60, max_length=100)
    row = found["raters"][0]
    assert (row["grades"], row["left_out"], row["truncated"]) == (2, {"prompt_too_long": 2}, 1)
    assert found["counts"] == {"prompt_too_long": 2}
    rejects = read_table(tmp_path / "out" / "rejects.parquet").to_pylist()
    assert {one["reason"] for one in rejects} == {"prompt_too_long"}
    assert len({json.loads(one["evidence"])["completion_id"] for one in rejects}) == 2
    counts = read_manifest(tmp_path / "out")["counts"]["score"]["grade"]
    assert (counts["created"], counts["out"], counts["dropped"]) == (4, 2, {"prompt_too_long": 2})
    user_error(
        "none of 4 completions can be graded .prompt_too_long",
        score,
        feedback,
        trained["reward"],
        tmp_path / "x",
        max_prompt_length=2,
    )


def test_an_encoder_is_a_reward_model_too_and_gets_no_longer_rows_than_it_takes(tokenizer, tmp_path):
    size = {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id, "max_position_embeddings": 64}
    model = small_model("Bert", "reward", **size).eval()
    folder = save_model(tmp_path / "bert", model, tokenizer)
    feedback = feedback_folder(tmp_path / "feedback", 3)
    score(feedback, folder, tmp_path / "out")
    grades = grades_of(tmp_path / "out")
    for name, ids, _ in rendered(feedback, tokenizer):
        with torch.no_grad():
            assert grades[name, "bert"] == pytest.approx(float(model(ids).logits[0, 0]), abs=1e-5)


def test_models_that_can_not_grade_are_refused_with_what_to_do(tokenizer, trained, tmp_path):
    feedback, size = feedback_folder(tmp_path / "feedback", 2), {"vocab_size": len(tokenizer)}

    def refused(model, match, **options):
        user_error(match, score, feedback, str(model), tmp_path / "out", **options)
        assert not (tmp_path / "out").exists()

    labels = {
        "num_labels": 3,
        "id2label": {0: "harmless", 1: "rude", 2: "cruel"},
        "label2id": {"harmless": 0, "rude": 1, "cruel": 2},
    }
    several = save_model(tmp_path / "several", small_model("Llama", "reward", **size, **labels), tokenizer)
    refused(several, r"classifier with 3 labels \(harmless, rude, cruel\), and a reward model has one score")
    policy = save_model(tmp_path / "policy", tiny_model("policy", tokenizer, size=16, layers=1), tokenizer)
    refused(policy, f"{policy} says nothing of a reference, and a policy is measured by its log-ratio to one: give --reference")
    few = save_model(tmp_path / "few", small_model("Llama", "reward"), tokenizer)
    refused(few, "completions have tokens that .*few does not know")
    other = save_model(tmp_path / "other", small_model("Llama"), tokenizer)
    refused(policy, "tokens that .*other does not know", reference=other, max_length=200, max_prompt_length=100)
    tokenizer_without = load_pretrained("reward", str(trained["reward"]))[1]
    tokenizer_without.chat_template = None
    bare = save_model(tmp_path / "bare", tiny_model("reward", tokenizer, size=16, layers=1), tokenizer_without)
    refused(bare, "no chat template.*--chat-template plain")
    assert score(feedback, f"{bare},chat_template=plain", tmp_path / "plain")["raters"][0]["grades"] == 4
    broken = tiny_model("reward", tokenizer, size=16, layers=1)
    broken.score.weight.data[0, 0] = np.nan
    refused(save_model(tmp_path / "broken", broken, tokenizer), "hold NaN or infinite values")
    refused(tmp_path / "nowhere" / "at" / "all", "there is no such folder")


def test_what_is_given_wrongly_is_said(trained, feedback, dataset, tmp_path):
    reward = str(trained["reward"])
    user_error("name the model that grades: --model DIR", scorers_of, [])
    user_error("two models are called 'reward' as raters.*rater=NAME", scorers_of, [reward, reward])
    user_error("write MODEL,key=value.*keys: rater, reference, beta, chat_template", scorers_of, f"{reward},judge")
    user_error("unknown key of a model that grades.*'raters'", scorers_of, f"{reward},raters=x")
    user_error("is the input itself", score, feedback, reward, feedback)
    user_error("name a folder", score, feedback, reward, tmp_path / "out", cache=tmp_path / "x.sqlite")
    pairs = tmp_path / "pairs"
    assert run(["build", str(feedback.with_suffix(".jsonl")), "--format", "jsonl", "--out", str(pairs)]) == 2
    user_error(
        "holds no completions",
        score,
        feedback_folder(tmp_path / "none", [{"prompt": "Why?", "completions": []}]),
        reward,
        tmp_path / "o",
    )


def test_the_command_prints_what_it_wrote(trained, feedback, tmp_path, capfd):
    words = [
        "score",
        feedback,
        "--model",
        f"{trained['reward']},rater=own",
        "--model",
        trained["policy"],
        "--out",
        tmp_path / "out",
        "--json",
    ]
    assert run(list(map(str, words))) == 0
    printed = capfd.readouterr()
    summary = json.loads(printed.out)
    assert (summary["out"], summary["prompts"], summary["completions"]) == (str(tmp_path / "out"), 8, 32)
    assert summary["seconds"] > 0
    assert [(row["rater"], row["grades"], row["left_out"]) for row in summary["raters"]] == [("own", 32, {}), ("policy", 32, {})]
    assert run(["build", str(tmp_path / "out"), "--format", "feedback", "--rater", "own", "--out", str(tmp_path / "pairs")]) == 0
    grades = grades_of(tmp_path / "out")
    files = [
        file for split in ("train", "validation", "test") if (file := tmp_path / "pairs" / split / "part-00000.parquet").exists()
    ]
    pairs = [pair for file in files for pair in read_table(file).to_pylist()]
    assert len(pairs) == 48
    for pair in pairs:
        assert pair["kind"] == "reward_model"
        gap = grades[pair["chosen_id"], "own"] - grades[pair["rejected_id"], "own"]
        assert pair["quality_margin"] == pytest.approx(gap, abs=1e-9)
    assert run(["score", str(tmp_path / "pairs"), "--model", str(trained["reward"]), "--out", str(tmp_path / "x")]) == 2
    said = capfd.readouterr().err
    assert "holds pairs, no FEEDBACK" in said
    words = (
        said.partition("mmpo build ")[2].partition(" makes FEEDBACK")[0].replace("--out DIR", f"--out {tmp_path / 'again'}").split()
    )
    assert run(["build", *words]) == 0  # as it stands in the message
    assert run(["score", str(tmp_path / "again"), "--model", f"{trained['reward']},rater=own", "--out", str(tmp_path / "y")]) == 0
    again = {key: value for key, value in grades_of(tmp_path / "y").items() if key[1] == "own"}
    assert again == pytest.approx({key: value for key, value in grades.items() if key[1] == "own"}, abs=1e-5)


def test_a_reward_model_has_no_reference(trained, feedback, tmp_path, capfd):
    for key in ("reference=x", "beta=2"):
        user_error(
            f"is a reward model, which scores by itself: {key.partition('=')[0]} belongs to policies",
            score, feedback, f"{trained['reward']},{key}", tmp_path / "out",
        )  # fmt: skip
    found = score(feedback, [str(trained["reward"])], tmp_path / "out", reference="no/such/model", beta=2.0)
    said = capfd.readouterr().err
    assert "reward is a reward model" in said and "--reference is for policies" in said and "--beta is for policies" in said
    assert found["raters"][0]["grades"] == 32
    assert grades_of(tmp_path / "out") == grades_of(score_again(trained, feedback, tmp_path))


def score_again(trained, feedback, folder):
    """The same without what a reward model has no use for."""
    score(feedback, [str(trained["reward"])], folder / "plain")
    return folder / "plain"
