"""What watches a run from the outside: callbacks of one's own, and what a policy writes while it is trained."""

from mmpo.train.training.watching.own import OwnCallbacks, RunCallback
from mmpo.train.training.watching.samples import SAMPLES, Samples, samples_of
