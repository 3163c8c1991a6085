"""docs/trl.md beyond DPO, as it stands there: soft targets in TRL's RewardTrainer, our reward models and judges in its online trainers."""

import re
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from openai_server import serving
from simulated_judge import Qualities

from mmpo.pipeline.margins import target_probability
from mmpo.train.data import Renderer, prepare
from mmpo.train.model import tiny_model
from mmpo.train.training import RewardTrainer as OurTrainer

trl = pytest.importorskip("trl")
PAGE = Path(__file__).parents[3] / "docs" / "trl.md"
pytestmark = pytest.mark.filterwarnings("ignore")
QUIET = {
    "report_to": [],
    "use_cpu": True,
    "save_strategy": "no",
    "disable_tqdm": True,
    "bf16": False,
    "gradient_checkpointing": False,
}


def block(word: str) -> str:
    """The page's block that this word is in."""
    [found] = [code for code in re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL) if word in code]
    return found


def test_the_reward_trainer_has_our_loss_on_its_batch(pairs, tokenizer, trainer_of, tmp_path):
    names: dict = {}
    exec(block("class SoftRewardTrainer"), names)
    rows = pairs.slice(0, 8)
    p = target_probability(np.array(rows["quality_margin"]), 0.8)
    data = datasets.Dataset(rows.replace_schema_metadata(None)).add_column("p", p)
    model = tiny_model("reward", tokenizer, size=32, layers=1)
    torch.nn.init.normal_(model.score.weight)
    args = trl.RewardConfig(
        str(tmp_path), remove_unused_columns=False, max_length=1024, per_device_train_batch_size=8, max_steps=1, **QUIET
    )
    collator = names["SoftRewardCollator"](pad_token_id=tokenizer.pad_token_id)
    trainer = names["SoftRewardTrainer"](model, args=args, train_dataset=data, processing_class=tokenizer, data_collator=collator)
    found = trainer.compute_loss(trainer.model.eval(), next(iter(trainer.get_train_dataloader()))).item()
    prompts = prepare(rows, p, Renderer(tokenizer, 1024, 512)).prompts
    ours = trainer_of("reward", model, data=prompts, layout="rows")
    assert isinstance(ours, OurTrainer)
    step = ours.make_step(prompts)
    with torch.no_grad():
        wanted = sum(float(ours.loss_of(ours.values(ours.model.eval(), batch.parts[0]), batch, (step.total_weight, step.decided_weight))[0])
                     for batch in step.batches)  # fmt: skip
    assert found == pytest.approx(wanted, abs=1e-5) and abs(found - np.log(2)) > 0.01
    before = model.score.weight.detach().clone()
    trainer.train()
    assert not torch.equal(before, trainer.model.score.weight)


@pytest.fixture
def models(trained, tmp_path, monkeypatch):
    """The folders by the names that the page gives them, in a folder to work in."""
    (tmp_path / "models").mkdir()
    for kind, folder in trained.items():
        (tmp_path / "models" / kind).symlink_to(folder)
    monkeypatch.chdir(tmp_path)
    for name in ("GRPOConfig", "OnlineDPOConfig"):
        module = trl if name == "GRPOConfig" else __import__("trl.experimental.online_dpo", fromlist=[name])
        given = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *a, given=given, **k: given(*a, **{**QUIET, **k}))  # this machine has no GPU


def test_a_reward_model_of_ours_is_asked_by_grpo_and_online_dpo(models):
    names: dict = {}
    exec(block("from trl import GRPOConfig"), names)
    logged = [entry for entry in names["trainer"].state.log_history if "reward" in entry]
    assert np.isfinite(logged[-1]["reward"])
    exec(block("OnlineDPOTrainer("), names)
    assert names["online"].state.global_step == 1
    told = (
        [[{"role": "user", "content": "Question?"}]] * 2,
        [[{"role": "assistant", "content": text}] for text in ("good good", "bad bad bad")],
    )
    rewards = names["online"]._calculate_rewards_from_functions(*told, None)
    theirs = names["trainer"]._calculate_rewards([{"prompt": one} for one in told[0]], *told, [[0]] * 2)[:, 0]
    assert torch.allclose(rewards, theirs, atol=1e-4) and rewards[0] != rewards[1]


def test_a_judge_grades_the_replies_as_a_reward(models, trained, tmp_path, monkeypatch):
    """The mean of the simulated judge's distribution over the grades 1 to 5, by hand; an empty reply has none; the same again is free."""
    names: dict = {}
    exec(block("class JudgeReward"), names)
    texts = ["Because it is so.", "No.", "   ", "It rains since the air is wet and cools down."]
    prompts = [[{"role": "user", "content": f"Why {i % 2}?"}] for i in range(4)]
    replies = [[{"role": "assistant", "content": text}] for text in texts]
    values, wanted = np.arange(1, 6), []
    for text in texts:
        chances = np.exp(-((values - (3 + Qualities().of(text))) ** 2) / (2 * 0.8**2))
        wanted.append(float(np.average(values, weights=chances)))
    monkeypatch.setenv("OPENAI_API_KEY", "any")
    with serving({"defaults": {"bias": 0.0, "noise": 0.0, "tau": 0.8}}) as server:
        judged = names["JudgeReward"](tmp_path / "judged", model="judge-a", base_url=server.base_url)
        found = judged(prompts=prompts, completions=replies, completion_ids=[[0]] * 4)
        assert found[2] is None
        assert [found[i] for i in (0, 1, 3)] == pytest.approx([wanted[i] for i in (0, 1, 3)], abs=1e-6)
        asked = len(server.log())
        assert judged(prompts, replies) == found and len(server.log()) == asked
        args = trl.GRPOConfig(
            str(tmp_path / "run"), num_generations=2, per_device_train_batch_size=2, max_completion_length=8, max_steps=1
        )
        trainer = trl.GRPOTrainer(
            "models/policy", reward_funcs=judged, args=args, train_dataset=datasets.Dataset.from_list([{"prompt": prompts[0]}])
        )
        trainer.train()
        assert len(server.log()) > asked
    [mean] = [entry["rewards/judge/mean"] for entry in trainer.state.log_history if "rewards/judge/mean" in entry]
    assert 1 <= mean <= 5
