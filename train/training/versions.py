"""Which releases of transformers the trainer was tested with. It overrides methods that are not part of the documented interface
(`mmpo.train.training.checkpoints`), so that any other release is refused in place of training something else.
"""

from importlib.metadata import version

from packaging.specifiers import SpecifierSet

from mmpo.pipeline.errors import UserError

KNOWN_TRANSFORMERS = ">=5.23,<6"
"""As in pyproject.toml (a test holds them equal)."""


def check_transformers(installed: str | None = None) -> None:
    """Raises UserError unless the transformers that is installed (or the version given) is one that the trainer was tested with."""
    found = version("transformers") if installed is None else installed
    if not SpecifierSet(KNOWN_TRANSFORMERS).contains(found, prereleases=True):
        raise UserError(
            f"transformers {found} is installed, and training is known to work with {KNOWN_TRANSFORMERS} only: its trainer relies on "
            f"internals of that range. Install one of those: pip install 'transformers{KNOWN_TRANSFORMERS}'"
        )
