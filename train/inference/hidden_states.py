"""Hidden states of a frozen model as features of completions, for heads that are fitted in a moment.

Every completion is computed once, behind its prompt, as the model's own chat template writes the two. Where trees of completions are
exact for the model, a prompt that several share is computed once; else rows of like length go together. Where the processor has
instructions for bfloat16, linear layers compute in it, with weights that are cast once; the residual stream and all that lies
between the layers stay in float32.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from mmpo.pipeline.errors import UserError
from mmpo.pipeline.progress import ProgressReporter, say
from mmpo.pipeline.storage import atomic_file, text_digest
from mmpo.pipeline.tables import Message
from mmpo.train.batches import Batch, group_prompts
from mmpo.train.data import (
    REFUSALS,
    ChatTemplate,
    PromptPairs,
    Rendered,
    ask_behind,
    asked_behind,
    choose_template,
    common_prefix,
    pad_token,
)
from mmpo.train.inference.reference_store import default_folder
from mmpo.train.messages import warn
from mmpo.train.model import (
    ExecutionPlan,
    body_of,
    choose_plan,
    fingerprint_of,
    inputs_of,
    inputs_of_layer,
    layers_of,
    load_frozen,
    multiplies_bfloat16,
    positions_of,
)
from mmpo.train.options import pass_tokens

VERSION = 1
"""Of how features are made; a change that alters values must raise it."""


def hidden_states(
    prompts: Sequence[Sequence[Message]],
    completions: Sequence[str],
    prompt_of: Sequence[int] | np.ndarray,
    model: str,
    *,
    max_length: int = 1024,
    tokens: int | None = None,
    bf16: bool | None = None,
    cache: str | Path | Literal[False] | None = None,
    chat_template: str | None = None,
    ask: str | None = None,
    trust_remote_code: bool = False,
) -> np.ndarray:
    """Features of every completion, float32, shape (completions, 4 · the model's width), NaN for one that can't be rendered.

    Four states one behind another: at the completion's last token and the mean over its tokens, first of what comes into the layer in
    the middle of the stack, then of what the last one gives, behind the final norm.

    prompts: conversations, each once. completions: replies; prompt_of: the number of each one's prompt, (completions,). model: a folder
    or a Hugging Face name of a language model, a reward model or an encoder. max_length: tokens of prompt and completion (fewer where
    the model takes fewer): of a prompt of more than half of that the middle is left out, then of a completion the end; both are counted
    aloud. tokens: computed in one pass at most. bf16: default, where the processor has instructions for it. cache: the folder that
    keeps features by the digest of model and texts; None: `features` beside the reference cache of the user; False: none.
    chat_template: as `choose_template` takes it; default: the model's own, else plain. ask: a question put behind every reply
    (`ask_behind`), and taken for a part of it: at its end is the last token, its tokens count in the mean.

    Raises UserError for a model that can't be read, and for one without hidden states of a prompt with its reply.
    """
    frozen, tokenizer, kind = load_frozen(model, trust_remote_code=trust_remote_code)
    layers = layers_of(frozen)
    choose_template(tokenizer, chat_template or ("tokenizer" if tokenizer.chat_template else "plain"))
    if ask:
        ask_behind(tokenizer, ask)
    device = (
        torch.accelerator.current_accelerator() or torch.device("cpu") if torch.accelerator.is_available() else torch.device("cpu")
    )
    bf16 = _has_bfloat16(device) if bf16 is None else bf16
    length = min(max_length, positions_of(frozen) or max_length)
    items = _rendered(prompts, completions, prompt_of, tokenizer, length)
    file = None if cache is False else _place(cache, frozen, tokenizer, items, bf16)
    known = None if file is None else _read(file, len(items))
    if known is not None:
        say(f"features: {len(items)} completions are in {file}")
        return known
    width = frozen.config.get_text_config().hidden_size
    found = np.full((len(items), 4 * width), np.nan, dtype=np.float32)
    groups = _grouped(items, prompt_of)
    if groups:
        frozen.to(device)
        longest = max(group.length for group in groups)
        # Of what bfloat16 rounds a probe can't say whether it is exact, so that the plan comes first.
        plan = ExecutionPlan() if kind == "encoder" else choose_plan(frozen, kind, longest)
        if not plan.batches.tree:
            groups = [
                PromptPairs.without_pairs("", [item]) for group in groups for item in group.completions
            ]  # each with others of its length
        if bf16:
            _cast_linear_layers(frozen)
        place = {id(item): row for row, item in enumerate(items) if item is not None}
        _compute(frozen, layers, plan, groups, found, place, pass_tokens(tokens, device), pad_token(tokenizer))
    if file is not None:
        _write(file, found)
    return found


# --- texts ------------------------------------------------------------------------------------------------------------------


def _rendered(
    prompts: Sequence[Sequence[Message]], completions: Sequence[str], prompt_of: Any, tokenizer: Any, length: int
) -> list[Rendered | None]:
    """The completions behind their prompts, cut to `length` tokens; None for one that the template refuses or writes nothing of."""
    template, most = ChatTemplate(tokenizer), length // 2
    begun: dict[int, list[int] | None] = {}
    counts = dict.fromkeys(("prompts lost their middle", "completions lost their end", "completions can't be rendered"), 0)
    items: list[Rendered | None] = []

    def encode(text: str) -> list[int]:
        return tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]

    for text, number in zip(completions, map(int, prompt_of), strict=True):
        prompt = prompts[number]
        try:
            if number not in begun:
                begun[number] = None
                begun[number] = encode(template.prompt(prompt)[0])
                counts["prompts lost their middle"] += len(begun[number] or ()) > most
            before = begun[number]
            reply = [{"role": "assistant", "content": text}]
            written = "" if before is None else template.text(prompt, reply)[0]
            ids = encode(written)
        except REFUSALS:
            before, ids = None, []
        start = common_prefix(before or (), ids)
        if before is None or not 1 <= start < len(ids):
            counts["completions can't be rendered"] += 1
            items.append(None)
            continue
        head = ids[:start] if start <= most else [*ids[: most // 2], *ids[start - (most - most // 2) : start]]
        cut = len(ids) - start > length - len(head)
        asked = encode(asked_behind(tokenizer, written, reply)) if cut else []
        rest = [*ids[start : start + max(1, length - len(head) - len(asked))], *asked][: length - len(head)]
        counts["completions lost their end"] += cut
        items.append(Rendered(np.array([*head, *rest], dtype=np.int32), len(head), cut))
    where = f" (at {length} tokens)"
    warn(f"features: {count} of {len(items)} {what}{where if 'lost' in what else ''}" for what, count in counts.items() if count)
    return items


def _grouped(items: Sequence[Rendered | None], prompt_of: Any) -> list[PromptPairs]:
    """The completions that can be computed, by prompt."""
    groups: dict[int, list[Rendered]] = {}
    for item, number in zip(items, map(int, prompt_of), strict=True):
        if item is not None:
            groups.setdefault(number, []).append(item)
    return [PromptPairs.without_pairs(f"{number:09}", group) for number, group in groups.items()]


# --- passes -----------------------------------------------------------------------------------------------------------------


@torch.inference_mode()
def _compute(
    model: nn.Module,
    layers: nn.ModuleList,
    plan: ExecutionPlan,
    groups: Sequence[PromptPairs],
    found: np.ndarray,
    place: dict[int, int],
    tokens: int,
    pad: int,
) -> None:
    """Fills the rows of `found`. place: of each completion's id, its row."""
    body, device = body_of(model), next(model.parameters()).device
    done, total = 0, sum(group.tokens for group in groups)
    with ProgressReporter("features", "tokens") as report, inputs_of_layer(layers[len(layers) // 2]) as middle:
        for passes in group_prompts(groups, tokens, plan.batches):
            for parts in passes:
                report("", done, total)
                items = [item for _, part in parts for item in part]
                batch = plan.batches.build([part for _, part in parts], pad).to(device)
                last = body(**inputs_of(body, batch, plan)).last_hidden_state
                values = torch.cat([_pooled(states, batch) for states in (middle.pop(), last)], dim=1)
                found[[place[id(item)] for item in items]] = values.cpu().numpy()
                done += sum(len(item.ids) for item in items)


def _pooled(states: Tensor, batch: Batch) -> Tensor:
    """Of hidden states (rows, length, size): each completion's at its last token and the mean of its tokens, (completions, 2 · size)."""
    flat, ends = states.flatten(0, 1).float(), batch.counts.cumsum(0)
    own = batch.parents[batch.spans].roll(-1)  # the token before each of a completion's; one further on they are its own,
    own[ends - 1] = batch.last  # but for the last
    return torch.cat([flat[batch.last], torch.segment_reduce(flat[own], "mean", lengths=batch.counts)], dim=1)


def _has_bfloat16(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 faster than float32."""
    if device.type == "cpu":
        return multiplies_bfloat16()
    return device.type != "cuda" or torch.cuda.is_bf16_supported(including_emulation=False)


def _cast_linear_layers(model: nn.Module) -> None:
    """Lets linear layers keep their weights in bfloat16 and compute in it, from float32 to float32."""
    for module in model.modules():
        if type(module) is nn.Linear:
            module.to(torch.bfloat16)
            module.register_forward_pre_hook(lambda _, given: (given[0].bfloat16(), *given[1:]))
            module.register_forward_hook(lambda _, given, output: output.float())


# --- the cache --------------------------------------------------------------------------------------------------------------


def _place(cache: str | Path | None, model: nn.Module, tokenizer: Any, items: Sequence[Rendered | None], bf16: bool) -> Path:
    folder = default_folder().parent / "features" if cache is None else Path(cache)
    texts = "\n".join("" if item is None else f"{item.start} {item.ids.tolist()}" for item in items)
    return folder / f"{text_digest(f'{VERSION} {fingerprint_of(model, tokenizer, bf16=bf16).name}' + chr(10) + texts)}.npy"


def _read(file: Path, rows: int) -> np.ndarray | None:
    """The features in a file; None where it is not there or not whole."""
    try:
        values = np.load(file)
    except (OSError, ValueError, EOFError):
        return None
    return values if values.dtype == np.float32 and values.ndim == 2 and len(values) == rows else None


def _write(file: Path, values: np.ndarray) -> None:
    """Keeps the features; where that can't be, says so and goes on."""
    try:
        with atomic_file(file) as temporary, open(temporary, "wb") as opened:
            np.save(opened, values)
    except (UserError, OSError) as error:
        warn([f"features are computed anew the next time: {error}"])
