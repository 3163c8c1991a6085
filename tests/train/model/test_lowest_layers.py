"""A reward model of a model's lowest layers alone (`--layers N`)."""

import pytest
import torch
from training_cases import small_model, user_error
from transformers import AutoModelForSequenceClassification

from mmpo.train.model import inputs_of_layer, keep_lowest, layers_of
from mmpo.train.options import TrainOptions


@pytest.mark.parametrize("family", ["Llama", "GPT2", "Gemma3Text", "Bert"])
def test_what_the_kept_layers_give_is_what_the_whole_model_has_there_and_it_is_saved_as_an_ordinary_model(family, tmp_path):
    more = {"layer_types": ["sliding_attention"] * 3 + ["full_attention"], "sliding_window": 8} if family == "Gemma3Text" else {}
    model = small_model(family, "reward", vocab_size=64, num_hidden_layers=4, max_position_embeddings=64, pad_token_id=0, **more)
    model.eval().requires_grad_(False)
    ids, given = torch.arange(1, 13).reshape(2, 6), []

    def scores(one):
        """Scores, and what the second layer gives."""
        hook = layers_of(one)[1].register_forward_hook(lambda _, __, out: given.append(out[0] if isinstance(out, tuple) else out))
        found = one(input_ids=ids).logits
        hook.remove()
        return found, given.pop()

    with inputs_of_layer(layers_of(model)[2]) as seen:
        whole, second = scores(model)
    keep_lowest(model, 2)
    cut, again = scores(model)
    assert torch.equal(again, second) and torch.equal(seen[0], second)
    assert not torch.allclose(cut, whole, atol=1e-4)
    model.save_pretrained(tmp_path)
    saved = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval().requires_grad_(False)
    assert len(layers_of(saved)) == 2
    torch.testing.assert_close(scores(saved)[0], cut)
    user_error(r"--layers 3: the model has 2 layers; give 1 to 2", keep_lowest, model, 3)


@pytest.mark.parametrize(
    ("given", "said"),
    [({"kind": "policy", "model": "some/model"}, "a policy's output layer"), ({"kind": "reward"}, "tiny has tiny_layers")],
)
def test_policies_and_tiny_have_no_use_for_it(given, said):
    assert said in user_error("", TrainOptions, layers=2, **given)
