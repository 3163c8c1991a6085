"""Requests through OpenAI's Batch API."""

from mmpo.annotate.batch.api import BatchSettings
from mmpo.annotate.batch.queue import Queue
from mmpo.annotate.batch.run import Batches, open_batches
