"""A saved reward model gives its grades elsewhere too: in plain transformers, by its pipeline, and in TRL's trainers."""

import copy

import datasets
import pytest
import torch
from folders import feedback_folder, read_table
from training_cases import save_model, small_model
from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline

from mmpo.train import score

ROWS = [
    {"prompt": f"Question {i}: " + "why " * i, "completions": [f"{'Because. ' * (j + 1)}{j} good" for j in range(3)]}
    for i in range(4)
]


@pytest.fixture(scope="module", params=["as it is", "asked behind", "positions counted, base padded before texts"])
def graded(request, trained, dataset, train_tiny, tokenizer, tmp_path_factory):
    """The model's folder, conversations, and their grades, float32, (completions,); of a model of whole replies, of a question behind
    them, and of one made of a policy whose tokenizer pads as writing wants it."""
    folder, model = tmp_path_factory.mktemp("graded"), trained["reward"]
    if request.param == "asked behind":
        model = folder / "asked"
        train_tiny("reward", dataset, model, ask="Is this a good answer?", trainable="head", learning_rate=0.1)
    if request.param.startswith("positions"):
        model, writes = folder / "counted", copy.deepcopy(tokenizer)
        writes.padding_side = writes.init_kwargs["padding_side"] = "left"  # as it is where a folder says so
        base = save_model(folder / "base", small_model("GPT2", vocab_size=len(writes)), writes)
        train_tiny(
            "reward", dataset, model, model=str(base), learning_rate=0.01, max_steps=2, max_length=256, max_prompt_length=128
        )
    score(feedback_folder(folder / "feedback", ROWS), model, folder / "scored")
    conversations, grades = [], []
    for row in read_table(folder / "scored" / "feedback").to_pylist():
        for grade in row["ratings"]:
            reply = {"role": "assistant", "content": row["completions"][grade["completion"]]["text"]}
            conversations.append((row["prompt"], [reply]))
            grades.append(grade["score"])
    return str(model), conversations, torch.tensor(grades)


def test_in_plain_transformers_all_in_one_padded_batch(graded):
    folder, conversations, grades = graded
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForSequenceClassification.from_pretrained(folder).eval()
    texts = [tokenizer.apply_chat_template([*prompt, *reply], tokenize=False) for prompt, reply in conversations]
    batch = tokenizer(texts, padding=True, add_special_tokens=False, return_tensors="pt")
    assert len(set(batch["attention_mask"].sum(1).tolist())) > 3  # rows of several lengths
    with torch.inference_mode():
        assert torch.allclose(model(**batch).logits[:, 0], grades, atol=1e-3)


def test_by_the_pipeline_that_servers_of_classifiers_imitate(graded):
    """`function_to_apply="none"` gives the logit; with one label the default is its sigmoid, as servers answer unless asked."""
    folder, conversations, grades = graded
    tokenizer = AutoTokenizer.from_pretrained(folder)
    texts = [tokenizer.apply_chat_template([*prompt, *reply], tokenize=False) for prompt, reply in conversations]
    classify = pipeline("text-classification", folder, device="cpu")
    for function, wanted in (("none", grades), ("sigmoid", grades.sigmoid())):
        found = classify(texts, function_to_apply=function, add_special_tokens=False)
        assert torch.allclose(torch.tensor([one["score"] for one in found]), wanted, atol=1e-3)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["GRPO", "RLOO"])
def test_in_trls_trainers_that_take_a_reward_model(name, graded, trained, tmp_path):
    trl = pytest.importorskip("trl")
    folder, conversations, grades = graded
    quiet = {"report_to": [], "use_cpu": True, "bf16": False, "disable_tqdm": True, "num_generations": 2}
    args = getattr(trl, f"{name}Config")(str(tmp_path), per_device_train_batch_size=2, **quiet)
    data = datasets.Dataset.from_list([{"prompt": prompt} for prompt, _ in conversations])
    policy = str(trained["policy"])
    trainer = getattr(trl, f"{name}Trainer")(policy, reward_funcs=folder, args=args, train_dataset=data)
    prompts, replies = map(list, zip(*conversations, strict=True))
    rewards = trainer._calculate_rewards([{"prompt": prompt} for prompt in prompts], prompts, replies, [[0]] * len(prompts))
    assert torch.allclose(rewards[:, 0], grades, atol=1e-3)
