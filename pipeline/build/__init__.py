"""The run over all of it: `mmpo build`, chunk by chunk, partition by partition."""

from mmpo.pipeline.build.run import BuildOptions, build, check_build_options

__all__ = ["BuildOptions", "build", "check_build_options"]
