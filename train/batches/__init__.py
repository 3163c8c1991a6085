"""Rendered prompts to tensors: tries, layouts, steps."""

from mmpo.train.batches.layouts import BATCHES, Batch, Layout, MicroBatch, Segment, micro_batch
from mmpo.train.batches.steps import Step, group_parts, group_prompts, make_step, pass_tokens, plan_steps, token_runs
