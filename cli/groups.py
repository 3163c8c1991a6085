"""Which options stand together in a command's help, and which of them matter first: GROUPS; and which commands: COMMAND_GROUPS."""

COMMAND_GROUPS = {
    "start": "doctor init run",
    "data": "build validate report rejects gamma export push pull",
    "grades": "generate judge score select argilla agree calibrate",
    "models": "advise train merge evaluate",
    "what can be chosen": "list formats losses rubrics pairings replies",
}
"""Title → commands, in their order."""

_ENDPOINT = {
    "endpoint": "base_url api_key_env headers extra_body",
    "pace and cost": "max_cost prices concurrency requests_per_minute tokens_per_minute timeout retries patience",
    "batches": "batch batch_poll batch_requests batch_bytes",
    "what is kept": "cache journal",
}
_EVALUATE = {
    "model": "model | reference reference_cache chat_template trust_remote_code",
    "pairs": "data split suite votes | max_length max_prompt_length thinking graded_part",
    "measures": "gamma target against bootstrap | beta seed",
    "output": "out per_pair as_json",
    "running": "tokens_per_batch",
}

GROUPS: dict[str, dict[str, str]] = {
    "build": {
        "input": "format columns scale | sources decimal na gap_of clip encoding sep sheet fix_known_defects rater kind max_rejects",
        "grades": "merge_raters | evidence kinds raters aspects normalise score rater_weights one_order thinking graded_part",
        "pairs": "ties strategy | max_per_prompt min_margin min_raters agree_between max_chars min_chars max_tokens tokenizer languages "
        "language_of language_confidence duplicates similarity shingle decontaminate decontaminate_column decontaminate_ngram "
        "decontaminate_share",
        "output": "out split look as_json | split_by feedback_only bare_prompts",
        "running": "seed workers memory scratch engine ray_address",
    },
    "generate": {
        "models": "models local | base_url api_key_env headers extra_body",
        "prompts": "format columns limit | scale encoding sep sheet max_rejects",
        "replies": "n max_tokens temperature system | top_p stop keep seed",
        "output": "out dry_run as_json",
        **{title: names for title, names in _ENDPOINT.items() if title != "endpoint"},
        "running": "engine ray_address workers",
    },
    "judge": {
        "judges": "model judges base_url | api_key_env headers extra_body",
        "question": "mode rubrics pairs | orders reasoning reference template limit seed",
        "reply": "samples | reply logprobs min_mass temperature max_tokens structured",
        "output": "out dry_run show as_json | status",
        **{title: names for title, names in _ENDPOINT.items() if title != "endpoint"},
    },
    "score": {
        "model": "model | reference beta chat_template trust_remote_code",
        "rows": "max_length max_prompt_length | thinking graded_part",
        "output": "out as_json",
        "running": "tokens_per_batch bf16 | layout cache engine ray_address workers",
    },
    "argilla push": {
        "dataset": "dataset workspace as_json | api_url",
        "questions": "questions pairs select | aspects features limit raters seed",
        "what people see": "guidelines suggest scale | judge much_better rationale display",
    },
    "train": {
        "model": "model lora out | lora_alpha lora_targets lora_dropout load_in trainable layers chat_template ask dropout "
        "trust_remote_code tiny_size tiny_layers tiny_vocab",
        "objective": "loss gamma | loss_options loss_learning_rate target control beta length_normalised reference reference_cache ties "
        "weight source_weights",
        "data": "data max_length | max_prompt_length thinking graded_part",
        "optimisation": "learning_rate epochs max_steps pairs_per_step | more_steps optimizer warmup_ratio schedule weight_decay "
        "max_grad_norm seed",
        "speed": "bf16 gradient_checkpointing tokens_per_batch layout",
        "running": "as_json | eval_split eval_steps sample sample_tokens early_stopping logging_steps report_to save_steps resume",
    },
    "evaluate policy": _EVALUATE,
    "evaluate reward": _EVALUATE,
    "evaluate mt-bench": {
        "models": "models local answers | system temperature top_p max_tokens",
        "judges": "judges judgments | judge_temperature judge_max_tokens judge_prompts",
        "questions": "questions | references limit",
        "output": "out dry_run as_json | bootstrap seed",
        **_ENDPOINT,
    },
}  # fmt: skip
"""Command → title → its options by the names of their fields; those before | matter first. Shorter commands show all of theirs."""


def groups_of(command: str, options: list[str]) -> tuple[dict[str, list[str]], list[str]]:
    """The groups of a command's options, as far as it has these, and those that matter first; what no group names stands last."""
    table = GROUPS.get(command, {})
    found = {title: [name for name in names.split() if name in options] for title, names in table.items()}
    grouped = {name for names in found.values() for name in names}
    rest = [name for name in options if name not in grouped]
    first = [name for names in table.values() if "|" in names for name in names.partition("|")[0].split() if name in options]
    return {**found, **({"other" if found else "options": rest} if rest else {})}, first if found else options
