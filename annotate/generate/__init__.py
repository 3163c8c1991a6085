"""Candidates: prompts into FEEDBACK with replies of models at endpoints or on this machine, for judges, people and reward models."""

from mmpo.annotate.generate.estimate import estimate
from mmpo.annotate.generate.local import LocalEngine
from mmpo.annotate.generate.options import GenerateOptions, SampledModel, sampled_models
from mmpo.annotate.generate.run import generate, prepared
