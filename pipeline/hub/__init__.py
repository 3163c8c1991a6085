"""Dataset folders on the Hugging Face Hub and back: `mmpo push` and `mmpo pull`."""

from mmpo.pipeline.hub.pull import pull_dataset
from mmpo.pipeline.hub.push import PushedDataset, push_dataset
