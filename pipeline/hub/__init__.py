"""Datasets and models on the Hugging Face Hub: `mmpo push` and `mmpo pull`, and the pages that say what they are."""

from mmpo.pipeline.hub.card import marked_page, parts_of_page
from mmpo.pipeline.hub.pull import pull_dataset
from mmpo.pipeline.hub.push import Pushed, PushedDataset, push_dataset
from mmpo.pipeline.hub.push_model import RECORD, PushedModel, push_model
