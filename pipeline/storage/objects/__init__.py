"""Object stores (s3://, gs:// and what fsspec knows): inputs fetched once, dataset folders whole or not there."""

from mmpo.pipeline.storage.objects.addresses import name_of, refuse_url, url_of
from mmpo.pipeline.storage.objects.cache import cache_folder
from mmpo.pipeline.storage.objects.datasets import OURS, dataset_at, on_disk
from mmpo.pipeline.storage.objects.fetch import fetched, objects_at
from mmpo.pipeline.storage.objects.publish import check_target, publishing
from mmpo.pipeline.storage.objects.threads import apart, side_by_side
