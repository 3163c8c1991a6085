"""The run over all of it: `mmpo build`, chunk by chunk, partition by partition."""

from mmpo.pipeline.build.options import BuildOptions, sources_of
from mmpo.pipeline.build.peek import check_format, peek
from mmpo.pipeline.build.prompt_filters import look_at, with_duplicates, without_dropped
from mmpo.pipeline.build.reading import check_rejects, none_left
from mmpo.pipeline.build.resolve import ResolvedBuild, merged_grades, prompt_rules, resolve_build, with_learned
from mmpo.pipeline.build.run import build
