"""Data out: pairs as other tools train on them, score them, or give them to people and judges; one table, EXPORTS."""

from mmpo.annotate.exports.base import TOLD, Export, ExportOptions
from mmpo.annotate.exports.run import EXPORTS, export
