"""Rendered prompts to tensors: tries, layouts, steps."""

from mmpo.train.batches.layouts import BATCHES, Batch, Layout, MicroBatch, Segment, micro_batch
from mmpo.train.batches.steps import Step, group_prompts, make_step, plan_steps
