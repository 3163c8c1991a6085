"""Several processes: what launchers may ask for, how gradients are added up, and a cache that can't be written."""

import pytest
from folders import split_folder
from training_cases import make_pairs, small_model

from mmpo.pipeline.errors import UserError
from mmpo.train.distributed import check_launch, check_splittable
from mmpo.train.model import tiny_model

FSDP = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT"}


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"ACCELERATE_USE_DEEPSPEED": "true"}, "DeepSpeed is not supported"),
        ({"ACCELERATE_USE_MEGATRON_LM": "true"}, "data parallelism or FSDP"),
        ({"ACCELERATE_MIXED_PRECISION": "fp16"}, "mixed_precision fp16"),
        ({"ACCELERATE_MIXED_PRECISION": "bf16"}, "give --bf16 too"),
        ({"ACCELERATE_USE_FSDP": "true"}, "fsdp_version is 1; training needs 2"),
        ({"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}, "needs full_state_dict"),
        ({**FSDP, "FSDP_CPU_RAM_EFFICIENT_LOADING": "true"}, "fsdp_cpu_ram_efficient_loading is true; training needs false"),
    ],
)
def test_launchers_that_ask_for_what_is_not_exact_are_refused(environment, said, monkeypatch, train_tiny, dataset, tmp_path):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError) as refusal:
        train_tiny("reward", dataset, tmp_path / "out")
    assert said in str(refusal.value)
    if "bf16" in said:
        check_launch(bf16=True)


def test_what_fsdp_can_not_split_is_refused(tokenizer, monkeypatch, train_tiny, dataset, tmp_path):
    check_splittable(tiny_model("reward", tokenizer, size=16, layers=1))
    with pytest.raises(UserError, match=r"embeddings lie in the block bert\.embeddings"):
        check_splittable(small_model("Bert", "reward"))
    for name, value in FSDP.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match="LoRA adapter is merged"):
        train_tiny("reward", dataset, tmp_path / "out", lora=2)


OPTIONS = "tiny_size=32, tiny_vocab=400, pairs_per_step=10, tokens_per_batch=60, max_steps=3, data=sys.argv[1], out=sys.argv[2]"


REDUCED = f"""
import mmpo.train.training.trainer as module
from mmpo.train.options import TrainOptions
from mmpo.train.training import train_policy
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook

reduced, passes = [], []
step, backward = module.MarginTrainer.training_step, module.MarginTrainer.backward
def training_step(self, model, inputs, *rest):
    if not self.state.global_step:
        model.register_comm_hook(None, lambda state, bucket: reduced.append(1) or allreduce_hook(state, bucket))
    return step(self, model, inputs, *rest)
def counted(self, *arguments):
    passes.append(1)
    return backward(self, *arguments)
module.MarginTrainer.training_step, module.MarginTrainer.backward = training_step, counted
train_policy(TrainOptions("policy", {OPTIONS}))
print(len(reduced), len(passes))
"""


FULL = f"""
from mmpo.pipeline.errors import UserError
from mmpo.train.inference import reference
from mmpo.train.inference.reference_store import ReferenceStore
from mmpo.train.options import TrainOptions
from mmpo.train.training import train_policy

add = ReferenceStore.add
def full(self, keys, values):
    if len(keys):
        raise UserError("disk full")
    add(self, keys, values)
ReferenceStore.add, reference.SAVE_SECONDS, reference.BATCHES_PER_CHUNK = full, 0.0, 1
reference.cached_logprobs.__kwdefaults__["save_seconds"] = 0.0
try:
    train_policy(TrainOptions("policy", {OPTIONS}, reference_cache=sys.argv[3]))
except UserError as error:
    print(error)
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return split_folder(tmp_path_factory.mktemp("review") / "pairs", train=make_pairs(10, [2, 8, 3, 5], seed=1))


@pytest.mark.slow
def test_processes_add_up_their_gradients_once_a_step(processes, data, tmp_path):
    for done in processes(REDUCED, str(data), str(tmp_path / "out")):
        assert done.returncode == 0, done.stderr[-3000:]
        reduced, passes = map(int, done.stdout.split()[-2:])
        assert reduced == 3
        assert passes > 6


@pytest.mark.slow
def test_a_cache_that_cannot_be_written_midway_stops_all_processes(processes, data, tmp_path):
    for done in processes(FULL, str(data), str(tmp_path / "out"), str(tmp_path / "cache"), seconds=120):
        assert done.returncode == 0, done.stderr[-3000:]
        assert "disk full" in done.stdout
